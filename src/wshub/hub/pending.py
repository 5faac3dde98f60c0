"""The accepted connections whose request is not complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from wshub.hub.opening import OpeningHandshake

__all__ = ["PendingHandshakes"]

Opening = TypeVar("Opening", bound=OpeningHandshake)


class PendingHandshakes(Generic[Opening]):
    """So many of them at the most, in the order in which they came."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._openings: dict[Opening, None] = {}

    def add(self, opening: Opening) -> None:
        """Note one more, for which the oldest makes room."""
        if len(self._openings) >= self._at_most:
            # Whoever is served as it should be has come and gone in less time than this one has had.
            oldest = next(iter(self._openings))
            # Its link tells of its end only later, when many more may have come.
            self.discard(oldest)
            oldest.drop()
        self._openings[opening] = None

    def discard(self, opening: Opening) -> None:
        """Forget one that has ended, or is a handshake no more."""
        self._openings.pop(opening, None)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        for opening in self:
            if opening.deadline <= now:
                opening.expire()

    def __iter__(self) -> Iterator[Opening]:
        return iter(tuple(self._openings))
