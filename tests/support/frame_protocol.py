"""A connection of a client: its handshake, its frames, and messages that may be compressed."""

from __future__ import annotations

import asyncio
import base64
import os
import zlib

__all__ = ["CLOSE", "PING", "PONG", "FrameProtocol"]

TEXT_OR_BINARY = (1, 2)
CLOSE, PING, PONG = 8, 9, 10
EXTENSION = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


class FrameProtocol(asyncio.Protocol):
    """One connection. A class of its own takes the messages.

    Args:
        compresses: it offers permessage-deflate.
    """

    def __init__(self, *, compresses: bool = False) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = 0  # messages
        self.close_code = 0
        self.error: Exception | None = None
        self.address: tuple[str, int] = ("", 0)
        self.closing = False
        self._buffer = bytearray()
        self._offer = EXTENSION if compresses else b""
        self._inflater: zlib._Decompress | None = None

    def message_received(self, payload: bytes) -> None:
        """Take a message."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.address = transport.get_extra_info("sockname")
        key = base64.b64encode(os.urandom(16))
        self.transport.write(
            b"GET / HTTP/1.1\r\nHost: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n" + self._offer + b"\r\n"
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.done():
            head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise AssertionError(f"refused: {head!r}")
            if b"permessage-deflate" in head:
                self._inflater = zlib.decompressobj(-15)
            self._buffer = bytearray(rest)
            self.opened.set_result(None)
        self._parse()

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError())
        if not self.ended.done():
            self.ended.set_result(None)

    def _parse(self) -> None:
        buffer = self._buffer
        place = 0
        size = len(buffer)
        while size - place >= 2:
            first = buffer[place]
            length = buffer[place + 1]
            start = place + 2
            if length == 126:
                if size - place < 4:
                    break
                length = buffer[place + 2] << 8 | buffer[place + 3]
                start = place + 4
            elif length > 126:
                raise AssertionError("the server does not send messages of that length")
            if size - start < length:
                break
            place = start + length
            self._frame(first, bytes(buffer[start:place]))
        del buffer[:place]

    def _frame(self, first: int, payload: bytes) -> None:
        opcode = first & 15
        if opcode in TEXT_OR_BINARY:
            if first & 0x40:
                assert self._inflater is not None
                payload = self._inflater.decompress(payload + b"\0\0\xff\xff")
            self.received += 1
            self.message_received(payload)
        elif opcode == PING:
            self.write(PONG, payload)
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big")
            if not self.closing:
                self.write(CLOSE, payload[:2])
            self.transport.close()

    def write(self, opcode: int, payload: bytes) -> None:
        """Send a frame with at most 125 bytes."""
        self.transport.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    def close(self) -> None:
        self.closing = True
        self.write(CLOSE, (1000).to_bytes(2, "big"))
