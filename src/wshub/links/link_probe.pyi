from collections.abc import Callable
from typing import Any, Literal

from wshub.links.link import Link, LinkCounters, Receiver

class LinkProbe(Receiver):
    """Records what a link calls it with, in order, in ``events``.

    An event is a tuple: ``("data", bytes)``, ``("eof",)``, ``("drained",)`` or ``("lost", error)``.

    Args:
        link: the link whose receiver the probe becomes, or None for ``attach()`` later.
        buffer_size: size of the probe's own buffer, into which the link reads; 0 for none.
    """

    on_event: Callable[[tuple[Any, ...]], object] | None
    @property
    def events(self) -> list[tuple[Any, ...]]: ...
    @property
    def link(self) -> Link | None: ...
    @property
    def counters(self) -> LinkCounters | None: ...
    @property
    def nested(self) -> int: ...
    def __init__(self, link: Link | None = None, *, buffer_size: int = 0) -> None: ...
    def attach(self, link: Link) -> None:
        """Become the receiver of a link. Give it counters if it has none."""

    def start_anew(self) -> None:
        """Forget the events, and count in new counters."""

    @property
    def received(self) -> bytes:
        """All bytes that have arrived."""

    def count(self, name: str) -> int:
        """Return how many events have that name."""

    def write(self, data: bytes) -> None:
        """Queue bytes that are sent as they are."""

    def send(self, payload: bytes, *, droppable: bool = False) -> None:
        """Queue a binary message."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self, *, after_flush: bool = False) -> None: ...
    def flush_now(self) -> None: ...
    def drop_unsent(self) -> None: ...
    def make_space(self, bound: int) -> bool: ...
    def end_of_queue(self) -> int: ...
    def notify_when_left(self, length: int) -> None: ...
    def notify_whenever_drained(self) -> None:
        """Have ``drained()`` called each time that the link was blocked and its queue is empty again."""

    def poll_progress(self) -> Literal["at rest", "taking", "stalled"]:
        """Return "at rest", "taking" or "stalled"."""

    @property
    def blocked(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def queued(self) -> int:
        """Bytes in the queue."""

    @property
    def charge(self) -> int:
        """The bytes of the queue that count against a bound."""

    @property
    def peer_name(self) -> tuple[str, int] | None: ...
    @property
    def counts(self) -> dict[str, Any]:
        """The values of the link's counters. Messages in the queue are ``messages_pending``."""
