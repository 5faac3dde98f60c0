"""The frames of a client (RFC 6455 section 5.2), made without wshub: the load has no native code of the server."""

from __future__ import annotations

__all__ = ["encode_frame", "encode_header"]


def encode_header(first: int, length: int) -> bytes:
    """Encode a header for a masked payload of that length; the masking key follows it."""
    if length < 126:
        return bytes((first, 0x80 | length))
    if length < 65_536:
        return bytes((first, 0xFE)) + length.to_bytes(2, "big")
    return bytes((first, 0xFF)) + length.to_bytes(8, "big")


def encode_frame(first: int, payload: bytes, key: bytes) -> bytes:
    """Encode a frame, masked with the key of four bytes."""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
    return encode_header(first, len(payload)) + key + masked
