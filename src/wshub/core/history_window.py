"""The newest messages of a room, ready to be sent, while clients of it come back.

Clients often come back together, after a deploy or an outage. They share one reading of the history, and the frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from wshub.protocol.message import Message

__all__ = ["HistoryWindow", "Prepared"]


class Prepared(NamedTuple):
    """A message as members receive it."""

    offset: int
    message: Message | None
    """None if it could not be made."""
    compress: bool | None
    size: int


class HistoryWindow:
    """The messages behind one offset, without a hole, in order.

    Args:
        start: the offset behind which they begin.
        max_messages, max_bytes: how much is held.
    """

    def __init__(self, start: int, max_messages: int, max_bytes: int) -> None:
        self.start = start
        self._held: deque[Prepared] = deque()
        self._bytes = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._held)

    def append(self, prepared: Prepared) -> None:
        """Add the next message, and drop the oldest ones beyond the bounds."""
        self._held.append(prepared)
        self._bytes += prepared.size
        while len(self._held) > self._max_messages or (self._bytes > self._max_bytes and len(self._held) > 1):
            oldest = self._held.popleft()
            self._bytes -= oldest.size
            self.start = oldest.offset

    def reaches(self, offset: int) -> bool:
        """Whether all messages behind an offset are here."""
        return offset >= self.start

    def count_since(self, offset: int) -> int:
        """Return the number of messages behind an offset."""
        count = 0
        for prepared in reversed(self._held):
            if prepared.offset <= offset:
                break
            count += 1
        return count

    def since(self, offset: int) -> Iterator[Prepared]:
        """Return the messages behind an offset. They stay valid until the next ``append()``."""
        return islice(self._held, len(self._held) - self.count_since(offset), None)
