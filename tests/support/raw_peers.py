"""Clients that misbehave. They use sockets, without a WebSocket library."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

from wshub import Frame, Opcode

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = b"\x01\x02\x03\x04"
# Characters that end a line or move a cursor. A line of a log must contain none of them.
CONTROLS = {*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029}


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def masked(frame: Frame) -> bytes:
    return frame.with_mask(MASK).encode()


class RawPeer:
    """The client's end of a connection. The test chooses the bytes that it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._received = b""

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def send(self, frame: Frame) -> None:
        self.writer.write(masked(frame))

    async def handshake(self, extensions: bytes = b"") -> bytes:
        """Send the request, and return the head of the response."""
        field = b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b""
        self.write(REQUEST[:-2] + field + b"\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head

    async def frame(self) -> Frame:
        """Return the next frame from the server. Raises EOFError at the end."""
        while True:
            if (found := Frame.decode(self._received)) is not None:
                frame, length = found
                self._received = self._received[length:]
                return frame
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self._received += data

    async def close_code(self) -> int:
        """Skip frames up to the close frame, and return its code. The stream must end after it."""
        while (frame := await self.frame()).opcode is not Opcode.CLOSE:
            pass
        return int.from_bytes(frame.payload[:2], "big")

    def reset(self) -> None:
        """End the connection with an RST."""
        connected = self.writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def raw_peer(
    url: str, *, handshake: bool = True, extensions: bytes = b"", limit: int = 1 << 16
) -> AsyncIterator[RawPeer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url), limit=limit)
    peer = RawPeer(reader, writer)
    try:
        if handshake:
            await peer.handshake(extensions)
        yield peer
    finally:
        writer.transport.abort()


async def read_slowly(peer: RawPeer, hub: Any, clock: Any, *, seconds: int) -> None:
    """Read a little in each second of the clock. The hub must not end the connection meanwhile."""
    for _ in range(seconds):
        taken = 0
        while taken < 1 << 18:
            taken += len(await peer.reader.read(1 << 16))
        await asyncio.sleep(0.005)
        clock.pass_for(1, hub)
        assert hub.connection_count == 1


async def code_that_ends(url: str, request: bytes, data: bytes) -> int:
    """Send ``data`` after a request that the server accepts. Returns the code of the server's close frame."""
    async with raw_peer(url, handshake=False) as peer:
        peer.write(request)
        assert b" 101 " in await peer.reader.readuntil(b"\r\n\r\n")
        peer.write(data)
        return await peer.close_code()
