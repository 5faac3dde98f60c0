"""The key of an opening handshake and the answer to it, for both sides (RFC 6455 sections 4.1 and 4.2.2)."""

from __future__ import annotations

import binascii
from hashlib import sha1

__all__ = ["compute_accept", "is_valid_key"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def is_valid_key(key: bytes) -> bool:
    """Whether ``key`` is a ``Sec-WebSocket-Key``: 16 bytes in base64.

    The bits of the last character that base64 does not use may be anything: the key is only hashed and sent back.
    """
    try:
        return len(key) == 24 and len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        return False


def compute_accept(key: bytes) -> bytes:
    """Return the 28 bytes of ``Sec-WebSocket-Accept`` that answer ``key``. The key is not checked."""
    # The protocol uses SHA-1 as a checksum, so a build that forbids it for secrets must allow it here.
    return binascii.b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
