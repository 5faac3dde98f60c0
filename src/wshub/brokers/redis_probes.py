"""Whether messages go out to an engine, and come back in: found out with probes.

A connection can look healthy and bring nothing, for ever. So a node publishes a probe to itself every few seconds, by
the way of all its messages. Nothing here does I/O, or reads a clock.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["TIMEOUT", "ProbeVerdict", "Probes"]

# Seconds between two probes.
INTERVAL = 5.0

# Seconds in which the engine must have taken a probe, and in which a probe that it has taken must have come back. With
# sweeps a second apart, a failure is noticed within 15 seconds.
TIMEOUT = 8.0

ProbeVerdict: TypeAlias = Literal["fine", "unanswered", "deaf"]
"""``unanswered`` if the engine has not answered a probe, ``deaf`` if it has and the probe was not heard."""


class Probes:
    """The probes of one node, by number. Times are in seconds, by any clock that never goes back."""

    def __init__(self) -> None:
        self.round_trip: float | None = None
        """Seconds that the last probe took to come back; None before the first one has."""
        self._number = 0
        self._next_at = 0.0
        # Probes without an answer of the engine, and probes that were not heard: when they were sent.
        self._unanswered: dict[int, float] = {}
        self._sent: dict[int, float] = {}
        # Probes that the engine has taken and that were not heard: when it answered.
        self._unheard: dict[int, float] = {}

    def is_due(self, now: float) -> bool:
        """Return whether it is time for a probe."""
        return now >= self._next_at

    def send(self, now: float, *, audible: bool) -> int:
        """Return the number of a probe that is being sent. ``audible`` says whether a subscription can hear it."""
        self._number += 1
        self._next_at = now + INTERVAL
        self._unanswered[self._number] = now
        if audible:
            self._sent[self._number] = now
        return self._number

    def answered(self, number: int, now: float) -> None:
        """Note that the engine has taken a probe."""
        if self._unanswered.pop(number, None) is not None and number in self._sent:
            self._unheard[number] = now

    def refused(self, number: int) -> None:
        """Note that the engine has refused a probe, which is no news about what is heard."""
        self._unanswered.pop(number, None)
        self._sent.pop(number, None)

    def heard(self, number: int, now: float) -> bool:
        """Note that a probe has come back. Return False if it is none that was waited for."""
        sent_at = self._sent.get(number)
        if sent_at is None:
            return False
        self.round_trip = now - sent_at
        # Probes come back in order: those before it never will.
        for probes in (self._sent, self._unheard):
            for earlier in [earlier for earlier in probes if earlier <= number]:
                del probes[earlier]
        return True

    def forget_answers(self) -> None:
        """Wait for no answer any more: the connection that brings them has ended."""
        self._unanswered.clear()

    def forget_all(self) -> None:
        """Wait for nothing that was sent: the connection that hears has ended."""
        self._sent.clear()
        self._unheard.clear()

    def verdict(self, now: float) -> ProbeVerdict:
        """Return what has taken too long."""
        if any(now - answered_at >= TIMEOUT for answered_at in self._unheard.values()):
            return "deaf"
        if any(now - sent_at >= TIMEOUT for sent_at in self._unanswered.values()):
            return "unanswered"
        return "fine"
