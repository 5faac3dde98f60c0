"""The accepted connections whose opening handshake has not been answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["PendingByAddress", "PendingHandshakes"]


class Pending(Protocol):
    """A connection whose handshake has not been answered."""

    @property
    def deadline(self) -> float:
        """The time when the connection expires, in seconds."""

    def drop(self) -> None:
        """End the connection without an answer."""

    def expire(self) -> None:
        """End the connection because its time is over."""

    def shut_down(self) -> None:
        """End the connection because the server shuts down."""


Waiting = TypeVar("Waiting", bound=Pending)


class PendingHandshakes(Generic[Waiting]):
    """The pending handshakes of a server, the oldest first.

    The limit applies separately to requests that have not fully arrived, and to requests that wait for ``on_upgrade``.
    If one more arrives, the oldest is ended.

    Args:
        at_most: the limit.
        reached: called each time that the oldest is ended.
    """

    def __init__(self, at_most: int, reached: Callable[[], None]) -> None:
        self._at_most = at_most
        self._reached = reached
        self._incomplete: dict[Waiting, None] = {}
        self._asked: dict[Waiting, None] = {}

    def add(self, waiting: Waiting) -> None:
        """Add a connection. If there are too many, drop the oldest."""
        if len(self._incomplete) >= self._at_most:
            # A client that sends its request at once has come and gone in less time than this one has had.
            self._reached()
            _remove_oldest(self._incomplete).drop()
        self._incomplete[waiting] = None

    def ask(self, waiting: Waiting) -> None:
        """Record that a request is complete, and waits for the result of ``on_upgrade``."""
        self.discard(waiting)
        if len(self._asked) >= self._at_most:
            self._reached()
            _remove_oldest(self._asked).expire()
        self._asked[waiting] = None

    def discard(self, waiting: Waiting) -> None:
        """Remove a connection that has ended or been answered."""
        if self._incomplete.pop(waiting, self) is self:
            self._asked.pop(waiting, None)

    def expire(self, now: float) -> None:
        """End the connections whose time is over."""
        for waiting in self:
            if waiting.deadline <= now:
                waiting.expire()

    def shut_down(self) -> None:
        """End all connections because the server shuts down."""
        for waiting in self:
            waiting.shut_down()

    def __len__(self) -> int:
        return len(self._incomplete) + len(self._asked)

    def __iter__(self) -> Iterator[Waiting]:
        return iter((*self._incomplete, *self._asked))


class PendingByAddress(PendingHandshakes[Waiting]):
    """``PendingHandshakes`` with a second limit, for each address. A handshake beyond it drops the oldest of the same
    address.

    Args:
        at_most: incomplete requests altogether.
        reached: called each time that the oldest of all is ended.
        at_most_each: incomplete requests of one address.
        key_of: returns the address that a handshake counts for; None if it only counts altogether.
    """

    def __init__(
        self,
        at_most: int,
        reached: Callable[[], None],
        at_most_each: int,
        key_of: Callable[[Waiting], str | None],
    ) -> None:
        super().__init__(at_most, reached)
        self._at_most_each = at_most_each
        self._key_of = key_of
        self._keys: dict[Waiting, str] = {}
        self._of_address: dict[str, dict[Waiting, None]] = {}

    def add(self, waiting: Waiting) -> None:
        key = self._key_of(waiting)
        if key is not None:
            same = self._of_address.get(key, {})
            if len(same) >= self._at_most_each:
                oldest = next(iter(same))
                self.discard(oldest)
                oldest.drop()
            self._of_address.setdefault(key, {})[waiting] = None
            self._keys[waiting] = key
        super().add(waiting)

    def discard(self, waiting: Waiting) -> None:
        super().discard(waiting)
        key = self._keys.pop(waiting, None)
        if key is not None:
            same = self._of_address[key]
            del same[waiting]
            if not same:
                del self._of_address[key]


def _remove_oldest(handshakes: dict[Waiting, None]) -> Waiting:
    """Remove the oldest, and return it."""
    oldest = next(iter(handshakes))
    # Its link reports its end only later, when many more may have come.
    del handshakes[oldest]
    return oldest
