"""A client of the torture test. It checks every message, and the order of the messages."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import zlib

from tests.support.frame_protocol import CLOSE, PING, PONG, FrameProtocol
from tests.torture.frames import encode_frame
from tests.torture.wire import (
    ALL,
    APPLICATION,
    DIRECT,
    ECHO,
    JOIN,
    LEAVE,
    POLICIES,
    ROOM,
    TAME,
    WILD,
    Message,
    as_text,
    decode,
    encode,
    filler,
)

__all__ = ["Client"]

CLOSE_POLICY = POLICIES.index("close")
LATEST = POLICIES.index("latest")
DEFAULT_POLICY = POLICIES.index(None)

NO_CODE = 1005
"""The code for a close frame without a code."""

OFFERS = (
    "",
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10; client_max_window_bits=12",
)


class Client(FrameProtocol):
    """One connection.

    Args:
        number: the sender in its messages.
    """

    def __init__(self, number: int, path: str, chance: random.Random) -> None:
        super().__init__()
        self.number = number
        self.path = path
        self.chance = chance
        self.status = 0
        self.close_reason = ""
        self.entered: set[int] = set()
        self.awaited: set[int] = set()  # rooms whose answer is pending
        self.sent: dict[tuple[int, int, int], int] = {}  # stream: messages sent
        self._serial = 0
        self._last_serial: dict[int, int] = {}  # sender: serial of its last message
        self._last: dict[tuple[int, ...], int] = {}  # stream: number of the last message
        self._deflater: tuple[int, bool] | None = None  # bits of its window, whether it has no context takeover
        self._context: zlib._Compress | None = None

    # The connection

    def request(self) -> bytes:
        offer = self.chance.choice(OFFERS)
        lines = [
            f"GET {self.path} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *([f"Sec-WebSocket-Extensions: {offer}"] if offer else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.address = transport.get_extra_info("sockname")
        self.transport.write(self.request())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self._buffer += data
            head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not end:
                return
            self.status = int(head.split()[1])
            if self.status != 101:
                self.transport.abort()
                return
            self._negotiated(head.decode("latin-1").lower())
            self._buffer = bytearray(rest)
            self.opened.set_result(None)
            data = b""
        self._buffer += data
        self._parse()

    def _negotiated(self, head: str) -> None:
        if "permessage-deflate" not in head:
            return
        self._inflater = zlib.decompressobj(-15)
        bits = re.search(r"client_max_window_bits=(\d+)", head)
        # zlib cannot make a raw stream with a window of 8 bits.
        self._deflater = (max(9, int(bits[1])) if bits else 15, "client_no_context_takeover" in head)

    def _frame(self, first: int, payload: bytes) -> None:
        super()._frame(first, payload)
        if first & 15 == CLOSE:
            self.close_code = self.close_code or NO_CODE
            self.close_reason = payload[2:].decode()

    def describe(self) -> str:
        names = ("number", "address", "path", "closing", "close_code", "close_reason", "error", "received")
        return ", ".join(f"{name} {getattr(self, name)!r}" for name in names) + f", buffer {bytes(self._buffer[:40])!r}"

    # Sent messages

    def write(self, opcode: int, payload: bytes) -> None:
        self._write_frame(0x80 | opcode, payload)

    def frame(self, first: int, payload: bytes) -> bytes:
        key = b"\0\0\0\0" if self.chance.random() < 0.5 else self.chance.randbytes(4)
        return encode_frame(first, payload, key)

    def _write_frame(self, first: int, payload: bytes) -> None:
        self.transport.write(self.frame(first, payload))

    def send_message(self, payload: bytes) -> None:
        """Send it as text or binary, compressed or not, in one or several frames, with control frames between them."""
        opcode = 2
        if self.chance.random() < 0.4:
            opcode, payload = 1, as_text(payload).encode()
        compressed = 0
        if self._deflater is not None and self.chance.random() < 0.6:
            compressed, payload = 0x40, self._compress(payload)
        pieces = self.chance.choice((1, 1, 1, 2, 5))
        size = len(payload) // pieces + 1
        for piece in range(pieces):
            first = (opcode | compressed if piece == 0 else 0) | (0x80 if piece == pieces - 1 else 0)
            self._write_frame(first, payload[piece * size : (piece + 1) * size])
            if pieces > 1 and self.chance.random() < 0.1:
                self.write(PING, b"between")

    def _compress(self, payload: bytes) -> bytes:
        assert self._deflater is not None
        bits, alone = self._deflater
        if self._context is None or alone:
            self._context = zlib.compressobj(wbits=-bits)
        return (self._context.compress(payload) + self._context.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def say(self, kind: int, *, room: int = 0, policy: int = CLOSE_POLICY, largest: int = 20_000) -> None:
        stream = (kind, room, policy)
        self.sent[stream] = number = self.sent.get(stream, 0) + 1
        self._serial += 1
        message = Message(kind, policy, room, self.number, number, self._serial, self.chance.randrange(3))
        self.send_message(encode(message, filler(self.chance, largest)))

    def ask(self, kind: int, room: int) -> None:
        """Ask to enter or leave a room. No other request about it may be pending."""
        self.awaited.add(room)
        self.say(kind, room=room)

    def ping(self, opcode: int = PING) -> None:
        self.write(opcode, self.chance.randbytes(self.chance.randrange(126)))

    def pong(self) -> None:
        self.ping(PONG)

    def close(self) -> None:
        self.closing = True
        payload = self.chance.choice((b"", b"\x03\xe8", b"\x03\xe9away", b"\x0f\xa0" + b"r" * 123))
        self.write(CLOSE, payload)

    # Received messages

    def message_received(self, payload: bytes) -> None:
        message = decode(payload)
        if message.policy not in (LATEST, DEFAULT_POLICY):
            # A message that replaces an older one may arrive early.
            last = self._last_serial.get(message.sender, 0)
            assert message.serial > last, f"{message} came after serial {last} of its sender"
            self._last_serial[message.sender] = message.serial
        if message.kind in (JOIN, LEAVE):
            self._answered(message)
        elif message.kind in (ECHO, ROOM, ALL, DIRECT):
            self._in_order(message)
        else:
            raise AssertionError(f"a message of no known kind: {message}")

    def _answered(self, message: Message) -> None:
        """Handle the answer to JOIN or LEAVE. Its ``number`` is that of the application's last message to the room."""
        room = message.room
        stream = (ROOM, room, CLOSE_POLICY, APPLICATION)
        if message.kind == JOIN:
            self._last[stream] = message.number
            self.entered.add(room)
        else:
            last = self._last.get(stream)
            assert last == message.number, f"the last message of room {room} is {last}, but {message.number} were sent"
            self.entered.discard(room)
            for left in [stream for stream in self._last if stream[:2] == (ROOM, room)]:
                del self._last[left]
        self.awaited.discard(room)

    def _in_order(self, message: Message) -> None:
        kind, policy, room, sender, number, _, key = message
        if kind == ECHO:
            assert sender == self.number, f"an echo for another client: {message}"
        if kind == ROOM and room in TAME:
            assert room in self.entered, f"a message of a room that this client has not joined: {message}"
        if policy == DEFAULT_POLICY and kind == ROOM and room in WILD:
            # The room's policy changes. A message kept by "close" may follow one that "latest" has conflated.
            return
        stream = (kind, room, policy, sender)
        if policy in (LATEST, DEFAULT_POLICY):
            stream += (key,)
        last = self._last.get(stream)
        if last is None:
            first = kind == ECHO or (kind == DIRECT and policy == CLOSE_POLICY)
            assert not first or number == 1, f"the first sent message of the stream is missing: {message}"
        else:
            assert number > last, f"{message} came after number {last}"
            gapless = policy == CLOSE_POLICY and (kind != ROOM or room in TAME)
            assert not gapless or number == last + 1, f"{message} came after number {last}: some are missing"
        self._last[stream] = number
