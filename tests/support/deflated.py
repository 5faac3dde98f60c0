"""Compressed payloads, as Python's zlib makes them."""

from __future__ import annotations

import zlib

# The end of a flush, which a message leaves out (RFC 7692 section 7.2.1).
TAIL = b"\x00\x00\xff\xff"


def deflated(data: bytes, *, level: int = 6, bits: int = 15, strategy: int = 0, history: bytes = b"") -> bytes:
    """The payload of a compressed message, which may refer to what is in ``history``."""
    return deflated_on(zlib.compressobj(level, zlib.DEFLATED, -bits, 8, strategy, history), data)


def dynamic_blocks(count: int, literals: int = 0) -> bytes:
    """The payload of ``count`` blocks of ``literals`` zero bytes, each with its own codes (RFC 1951 section 3.2.7)."""

    def number(value: int, bits: int) -> str:
        return f"{value:0{bits}b}"[::-1]

    # Lengths of codes are told in codes themselves: 0, 8, 9 and "again", of two bits each.
    header = number(2 << 1, 3) + number(0, 5) + number(0, 5) + number(3, 4)
    header += "".join(number(length, 3) for length in (2, 0, 0, 2, 2, 0, 2))
    # 255 literals of eight bits; one, and the end of the block, of nine; no distance.
    header += "01" + ("11" + number(3, 2)) * 42 + "01" * 2 + "10" * 2 + "00"
    bits = (header + "0" * 8 * literals + "1" * 9) * count + "000"
    return int(bits[::-1], 2).to_bytes((len(bits) + 7) // 8, "little")


def deflated_on(compressor: zlib._Compress, data: bytes) -> bytes:
    """The same from a compressor that goes on from message to message."""
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]
