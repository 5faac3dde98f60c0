"""The accepted connections whose opening handshake has not been answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["PendingByAddress", "PendingHandshakes"]


class Pending(Protocol):
    """A connection that has not been answered."""

    @property
    def deadline(self) -> float:
        """When its time is over, in seconds."""

    def drop(self) -> None:
        """End it without an answer."""

    def expire(self) -> None:
        """End it since its time is over."""


Opening = TypeVar("Opening", bound=Pending)


class PendingHandshakes(Generic[Opening]):
    """So many of which the request is not complete, and as many of which the application is asked, as they came."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._incomplete: dict[Opening, None] = {}
        self._asked: dict[Opening, None] = {}

    def add(self, opening: Opening) -> None:
        """Note one more, for which the oldest makes room."""
        if len(self._incomplete) >= self._at_most:
            # Whoever is served as it should be has come and gone in less time than this one has had.
            _remove_oldest(self._incomplete).drop()
        self._incomplete[opening] = None

    def ask(self, opening: Opening) -> None:
        """Note that a request is complete, and the application asked what is to become of it."""
        self.discard(opening)
        if len(self._asked) >= self._at_most:
            _remove_oldest(self._asked).expire()
        self._asked[opening] = None

    def discard(self, opening: Opening) -> None:
        """Forget one that has ended, or is a handshake no more."""
        if self._incomplete.pop(opening, self) is self:
            self._asked.pop(opening, None)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        for opening in self:
            if opening.deadline <= now:
                opening.expire()

    def __len__(self) -> int:
        return len(self._incomplete) + len(self._asked)

    def __iter__(self) -> Iterator[Opening]:
        return iter((*self._incomplete, *self._asked))


class PendingByAddress(PendingHandshakes[Opening]):
    """``PendingHandshakes`` with a bound for each address as well: the oldest of an address makes room for one more.

    Args:
        at_most: incomplete requests altogether.
        at_most_each: incomplete requests of one address.
        key_of: the address of an opening, or None for one that only counts altogether.
    """

    def __init__(self, at_most: int, at_most_each: int, key_of: Callable[[Opening], str | None]) -> None:
        super().__init__(at_most)
        self._at_most_each = at_most_each
        self._key_of = key_of
        self._keys: dict[Opening, str] = {}
        self._of_address: dict[str, dict[Opening, None]] = {}

    def add(self, opening: Opening) -> None:
        key = self._key_of(opening)
        if key is not None:
            same = self._of_address.get(key, {})
            if len(same) >= self._at_most_each:
                oldest = next(iter(same))
                self.discard(oldest)
                oldest.drop()
            self._of_address.setdefault(key, {})[opening] = None
            self._keys[opening] = key
        super().add(opening)

    def discard(self, opening: Opening) -> None:
        super().discard(opening)
        key = self._keys.pop(opening, None)
        if key is not None:
            same = self._of_address[key]
            del same[opening]
            if not same:
                del self._of_address[key]


def _remove_oldest(openings: dict[Opening, None]) -> Opening:
    """The oldest of these, which is one of them no more."""
    oldest = next(iter(openings))
    # Its link tells of its end only later, when many more may have come.
    del openings[oldest]
    return oldest
