"""Compressed payloads, as Python's zlib makes them."""

from __future__ import annotations

import zlib

# The end of a flush, which a message leaves out (RFC 7692 section 7.2.1).
TAIL = b"\x00\x00\xff\xff"


def deflated(data: bytes, *, level: int = 6, bits: int = 15, strategy: int = 0, history: bytes = b"") -> bytes:
    """The payload of a compressed message, which may refer to what is in ``history``."""
    return deflated_on(zlib.compressobj(level, zlib.DEFLATED, -bits, 8, strategy, history), data)


def deflated_on(compressor: zlib._Compress, data: bytes) -> bytes:
    """The same from a compressor that goes on from message to message."""
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]
