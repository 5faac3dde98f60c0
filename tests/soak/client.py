"""A client of the soak test. It checks every message, and reports missing, repeated and misordered ones."""

from __future__ import annotations

from tests.soak.wire import ALL, ECHO, JOIN, LEAVE, NUMBERED, OF_ROOM, ROOM
from tests.support.frame_protocol import FrameProtocol

__all__ = ["Client"]


class Client(FrameProtocol):
    """One connection.

    Args:
        steady: it reads all the time, so no message may be missing. Otherwise the policies may drop messages.
        compresses: it offers permessage-deflate.
    """

    def __init__(self, *, steady: bool, compresses: bool) -> None:
        super().__init__(compresses=compresses)
        self.steady = steady
        self.missing = 0  # dropped messages to rooms, known from later ones
        self.rooms: dict[int, int] = {}  # room: number of the last message
        self.asked: set[int] = set()  # rooms whose answer is pending
        self.last_of_all = -1
        self.echoes_sent = 0
        self.echoes_received = 0

    def describe(self) -> str:
        """Return everything that may explain the connection's end."""
        names = ("address", "steady", "closing", "close_code", "error", "received", "echoes_sent", "echoes_received")
        rest = bytes(self._buffer[:40])
        return ", ".join(f"{name} {getattr(self, name)}" for name in names) + f", unread bytes {rest!r}"

    # Received messages

    def message_received(self, payload: bytes) -> None:
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
        self.write(2, NUMBERED.pack(ECHO, self.echoes_sent))
        self.echoes_sent += 1

    def ask(self, kind: int, room: int) -> None:
        """Ask to enter or leave a room. No other request about it may be pending."""
        self.asked.add(room)
        self.write(2, OF_ROOM.pack(kind, room, 0))
