"""Messages of a room, ready to be sent, while clients of it come back.

Clients often come back together, after a deploy or an outage. They share what is read of the history, and the frames.
The window has the newest messages, which were delivered since it was opened, and pages of earlier ones. Both are
bounded. A client asks for the next few messages behind its offset; if they are not here, it has their page read.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import attrgetter
from typing import NamedTuple

from wshub.protocol.message import Message

__all__ = ["HistoryWindow", "Page", "Prepared"]

# Messages, and bytes of them, of the newest ones. Up to twice as many are held for a while.
LIVE_MESSAGES = 1000
LIVE_BYTES = 1024 * 1024

PAGES_BYTES = 2 * 1024 * 1024
"""Bytes of all pages."""

CHARGE = 256
"""Bytes that a message counts for, besides its own."""

offset_of = attrgetter("offset")


class Prepared(NamedTuple):
    """A message as members receive it."""

    offset: int
    message: Message | None
    """None if it could not be made."""
    compress: bool | None
    size: int
    excluded: int | None = None
    """The id of the connection of this node that does not get it."""


class Page(NamedTuple):
    """All messages behind one offset, up to another one."""

    start: int
    end: int
    messages: list[Prepared]

    @property
    def size(self) -> int:
        """The bytes that it counts for."""
        return sum(prepared.size + CHARGE for prepared in self.messages)


class HistoryWindow:
    """The newest messages of a room, and some pages of earlier ones.

    Args:
        start: the offset behind which the newest messages begin.
    """

    def __init__(self, start: int) -> None:
        self._start = self._end = start
        self._live: list[Prepared] = []
        self._live_bytes = 0
        self._pages: dict[int, Page] = {}
        self._starts: list[int] = []
        self._pages_bytes = 0

    @property
    def size(self) -> int:
        """The bytes that it counts for."""
        return self._pages_bytes + self._live_bytes + CHARGE * len(self._live)

    def append(self, prepared: Prepared) -> None:
        """Add the next message, and drop the oldest ones beyond the bounds."""
        self._live.append(prepared)
        self._live_bytes += prepared.size
        self._end = prepared.offset
        if len(self._live) > 2 * LIVE_MESSAGES or (self._live_bytes > 2 * LIVE_BYTES and len(self._live) > 1):
            self._trim()

    def _trim(self) -> None:
        dropped = 0
        while len(self._live) - dropped > 1 and (
            len(self._live) - dropped > LIVE_MESSAGES or self._live_bytes > LIVE_BYTES
        ):
            self._live_bytes -= self._live[dropped].size
            self._start = self._live[dropped].offset
            dropped += 1
        del self._live[:dropped]

    def add(self, page: Page) -> None:
        """Add a page, and drop the oldest ones beyond the bound."""
        self._drop(page.start)
        self._pages[page.start] = page
        insort(self._starts, page.start)
        self._pages_bytes += page.size
        while self._pages_bytes > PAGES_BYTES and len(self._pages) > 1:
            self._drop(next(iter(self._pages)))

    def _drop(self, start: int) -> None:
        page = self._pages.pop(start, None)
        if page is not None:
            self._pages_bytes -= page.size
            self._starts.remove(start)

    def following(self, offset: int, limit: int, max_bytes: int) -> Page | None:
        """Return the next messages behind an offset; None if their page is to be read.

        Args:
            offset: of the last message that a client has.
            limit: maximum number of messages.
            max_bytes: maximum number of bytes. The first message is returned whatever its size.
        """
        if offset >= self._start:
            messages, end = self._live, self._end
        else:
            index = bisect_right(self._starts, offset) - 1
            if index < 0:
                return None
            page = self._pages[self._starts[index]]
            if offset >= page.end:
                return None
            messages, end = page.messages, page.end
        first = bisect_right(messages, offset, key=offset_of)
        chosen: list[Prepared] = []
        size = 0
        for prepared in messages[first : first + limit]:
            size += prepared.size
            if chosen and size > max_bytes:
                break
            chosen.append(prepared)
        if first + len(chosen) < len(messages):
            end = chosen[-1].offset
        return Page(offset, end, chosen)
