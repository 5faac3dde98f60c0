"""The order of stored envelopes that arrive.

If several nodes publish at once, nats-server 2.9 now and then sends an envelope before the one that precedes it on the
channel. So an envelope whose predecessor has not arrived waits until it has, or for a barrier: then it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from wshub.brokers.envelope import encode_stored
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_epochs import Place
from wshub.errors import BrokerUncertain

__all__ = ["StoredOrder"]

# Channels whose last envelope is known, and envelopes of one that wait.
MAX_KNOWN = 100_000
MAX_HELD = 256


class StoredOrder:
    """Passes stored envelopes on in the order of their channel, as far as they arrive.

    Args:
        barriers: tell when what is on its way has arrived.
        receive: takes the envelopes.
    """

    def __init__(self, barriers: Barriers, receive: Callable[[bytes], None]) -> None:
        self._barriers = barriers
        self._receive = receive
        # The epoch and the offset of the last envelope by subject, and the envelopes that wait.
        self._last: dict[str, tuple[str, int]] = {}
        self._held: dict[str, list[tuple[Place, bytes]]] = {}

    def clear(self) -> None:
        """Forget everything: the connection has ended."""
        self._last.clear()
        self._held.clear()

    def take(self, subject: str, place: Place, envelope: bytes) -> None:
        """Take an envelope that has arrived."""
        held = self._held.get(subject)
        if self._follows(subject, place):
            self._pass_on(subject, place, envelope)
            if held is not None:
                self._release(subject)
        elif held is None:
            self._held[subject] = held = [(place, envelope)]
            self._barriers.after(partial(self._barrier_passed, subject, held))
        else:
            held.append((place, envelope))
            if len(held) >= MAX_HELD:
                self._release_all(subject)

    def _follows(self, subject: str, place: Place) -> bool:
        """Return whether no envelope is missing before this one."""
        epoch, offset = self._last.get(subject, ("", 0))
        return place.previous <= (offset if epoch == place.epoch else 0)

    def _pass_on(self, subject: str, place: Place, envelope: bytes) -> None:
        epoch, offset = self._last.get(subject, ("", 0))
        if epoch != place.epoch or offset < place.offset:
            if len(self._last) >= MAX_KNOWN:
                self._last.clear()
            self._last[subject] = place.epoch, place.offset
        self._receive(encode_stored(envelope, offset=place.offset, previous=place.previous, epoch=place.epoch))

    def _release(self, subject: str) -> None:
        """Pass on what waits, as far as nothing is missing."""
        held = self._held[subject]
        held.sort(key=lambda each: each[0].offset)
        while held and self._follows(subject, held[0][0]):
            self._pass_on(subject, *held.pop(0))
        if not held:
            del self._held[subject]

    def _release_all(self, subject: str) -> None:
        """Pass on all that waits. The hub finds out what is missing, and reads it."""
        for place, envelope in sorted(self._held.pop(subject), key=lambda each: each[0].offset):
            self._pass_on(subject, place, envelope)

    def _barrier_passed(self, subject: str, held: list[tuple[Place, bytes]], error: BrokerUncertain | None) -> None:
        if error is None and self._held.get(subject) is held:
            self._release_all(subject)
