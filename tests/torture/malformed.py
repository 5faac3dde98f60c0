"""Frames that a client must not send."""

from __future__ import annotations

import random

from tests.torture.frames import encode_header

__all__ = ["frame"]


def _masked(first: int, payload: bytes, *, declared: int | None = None) -> bytes:
    return encode_header(first, len(payload) if declared is None else declared) + b"\0\0\0\0" + payload


def frame(chance: random.Random) -> bytes:
    """Return one or several frames. The last violates RFC 6455 or RFC 7692, or exceeds a limit of a hub."""
    return chance.choice(
        (
            _masked(0x83, b"reserved opcode"),
            _masked(0x8F, b""),
            _masked(0xA2, b"reserved bit"),
            _masked(0x90 | 9, b"reserved bit of a ping"),
            bytes((0x82, 3)) + b"abc",  # not masked
            _masked(0x80, b"goes on with nothing"),
            _masked(0x02, b"begins") + _masked(0x82, b"begins again"),
            _masked(0x81, b"\xff\xfe no UTF-8"),
            _masked(0x81, b"\xed\xa0\x80"),  # a surrogate
            _masked(0x89, b"a long ping" * 20),
            _masked(0x09, b"a fragment of a ping"),
            _masked(0x88, b"\x03"),
            _masked(0x88, (1005).to_bytes(2, "big")),
            _masked(0x88, (999).to_bytes(2, "big")),
            _masked(0x88, b"\x03\xe8\xff\xff"),
            _masked(0x82, b"", declared=2**40),
            _masked(0x82, b"", declared=2**63),
            _masked(0xC2, b"\xff\xff\xff\xff no deflate"),
            bytes((0x82, 0xFE)) + (5).to_bytes(2, "big") + b"\0\0\0\0" + b"short",  # not the shortest form
        )
    )
