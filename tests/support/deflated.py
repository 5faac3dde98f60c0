"""Compressed payloads, made by Python's zlib."""

from __future__ import annotations

import zlib

# The end of a flush. A message leaves it out (RFC 7692 section 7.2.1).
TAIL = b"\x00\x00\xff\xff"


def deflated(data: bytes, *, level: int = 6, bits: int = 15, strategy: int = 0, history: bytes = b"") -> bytes:
    """Return the payload of a compressed message. It may refer to the data in ``history``."""
    return deflated_on(zlib.compressobj(level, zlib.DEFLATED, -bits, 8, strategy, history), data)


def dynamic_blocks(count: int, literals: int = 0) -> bytes:
    """Return ``count`` blocks of ``literals`` zero bytes, each with its own codes (RFC 1951 section 3.2.7)."""

    def number(value: int, bits: int) -> str:
        return f"{value:0{bits}b}"[::-1]

    # The lengths of codes are coded too: 0, 8, 9 and "repeat" have two bits each.
    header = number(2 << 1, 3) + number(0, 5) + number(0, 5) + number(3, 4)
    header += "".join(number(length, 3) for length in (2, 0, 0, 2, 2, 0, 2))
    # 255 literals have eight bits. One literal and the end of the block have nine. There is no distance.
    header += "01" + ("11" + number(3, 2)) * 42 + "01" * 2 + "10" * 2 + "00"
    bits = (header + "0" * 8 * literals + "1" * 9) * count + "000"
    return int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")


def deflated_on(compressor: zlib._Compress, data: bytes) -> bytes:
    """Return the payload of a message from a compressor that keeps its context between messages."""
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]
