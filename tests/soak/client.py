"""A client of the soak test. It checks every message, and reports missing, repeated and misordered ones."""

from __future__ import annotations

import asyncio
import base64
import os
import zlib

from tests.soak.wire import ALL, ECHO, JOIN, LEAVE, NUMBERED, OF_ROOM, ROOM

__all__ = ["Client"]

TEXT_OR_BINARY = (1, 2)
CLOSE, PING, PONG = 8, 9, 10
EXTENSION = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


class Client(asyncio.Protocol):
    """One connection.

    Args:
        steady: it reads all the time, so no message may be missing. Otherwise the policies may drop messages.
        compresses: it offers permessage-deflate.
    """

    def __init__(self, *, steady: bool, compresses: bool) -> None:
        self.steady = steady
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = 0  # messages
        self.missing = 0  # dropped messages to rooms, known from later ones
        self.close_code = 0
        self.error: Exception | None = None
        self.address: tuple[str, int] = ("", 0)
        self.closing = False
        self.rooms: dict[int, int] = {}  # room: number of the last message
        self.asked: set[int] = set()  # rooms whose answer is pending
        self.last_of_all = -1
        self.echoes_sent = 0
        self.echoes_received = 0
        self._buffer = bytearray()
        self._offer = EXTENSION if compresses else b""
        self._inflater: zlib._Decompress | None = None

    # The connection

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
            self._message(payload)
        elif opcode == PING:
            self._write(PONG, payload)
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big")
            if not self.closing:
                self._write(CLOSE, payload[:2])
            self.transport.close()

    def _write(self, opcode: int, payload: bytes) -> None:
        self.transport.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    def describe(self) -> str:
        """Return everything that may explain the connection's end."""
        names = ("address", "steady", "closing", "close_code", "error", "received", "echoes_sent", "echoes_received")
        rest = bytes(self._buffer[:40])
        return ", ".join(f"{name} {getattr(self, name)}" for name in names) + f", unread bytes {rest!r}"

    # Received messages

    def _message(self, payload: bytes) -> None:
        kind = payload[0]
        if kind == ROOM:
            _, room, number = OF_ROOM.unpack_from(payload)
            self._of_room(room, number)
        elif kind == ECHO:
            _, number = NUMBERED.unpack(payload)
            self._expect(number == self.echoes_received, "an echo", number, self.echoes_received)
            self.echoes_received = number + 1
        elif kind == ALL:
            _, number = NUMBERED.unpack(payload)
            if self.last_of_all >= 0:
                self._expect(number == self.last_of_all + 1, "a message to all", number, self.last_of_all + 1)
            self.last_of_all = number
        else:
            _, room, number = OF_ROOM.unpack(payload)
            self.asked.discard(room)
            if kind == JOIN:
                self.rooms[room] = number
            elif kind == LEAVE:
                last = self.rooms.pop(room)
                self._expect(number == last, f"the last of room {room}", number, last)
                self.missing += number - last

    def _of_room(self, room: int, number: int) -> None:
        last = self.rooms.get(room)
        if last is None:
            raise AssertionError(f"message {number} of room {room}, which this client has not joined")
        if number <= last:
            raise AssertionError(f"message {number} of room {room} came after {last}")
        self._expect(number == last + 1, f"a message of room {room}", number, last + 1)
        self.missing += number - last - 1
        self.rooms[room] = number

    def _expect(self, holds: bool, what: str, found: int, expected: int) -> None:
        if self.steady and not holds:
            raise AssertionError(f"{what}: {found} instead of {expected}")

    # Sent messages

    def echo(self) -> None:
        self._write(2, NUMBERED.pack(ECHO, self.echoes_sent))
        self.echoes_sent += 1

    def ask(self, kind: int, room: int) -> None:
        """Ask to enter or leave a room. No other request about it may be pending."""
        self.asked.add(room)
        self._write(2, OF_ROOM.pack(kind, room, 0))

    def close(self) -> None:
        self.closing = True
        self._write(CLOSE, (1000).to_bytes(2, "big"))
