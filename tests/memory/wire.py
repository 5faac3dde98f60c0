"""The bytes that a client sends."""

from __future__ import annotations

import zlib

from tests.support.deflated import TAIL
from wshub import Frame
from wshub.protocol.writer import encode_frame

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OFFERING = REQUEST[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


def messages_in(data: bytes) -> list[bytes]:
    """Return the messages in a server's output, decompressed with one window; an incomplete frame is left out."""
    window = zlib.decompressobj(-15)
    found = []
    while (decoded := Frame.decode(data)) is not None:
        received, length = decoded
        data = data[length:]
        if received.opcode in (TEXT, BINARY):
            found.append(window.decompress(received.payload + TAIL) if received.rsv1 else received.payload)
    return found


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, rsv1: bool = False, mask: bytes = b"\0\0\0\0"
) -> bytes:
    """Return a client's frame."""
    return encode_frame((0x80 if final else 0) | (0x40 if rsv1 else 0) | opcode, payload, mask)
