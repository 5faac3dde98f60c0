"""Barriers: messages of a node to itself, which tell that all that it has sent before has arrived at the engine.

A server carries out what comes through one connection in order. So when a barrier comes back, the server has taken each
message and each subscription that was sent before it. Barriers are also the probes: a connection can look healthy and
carry nothing, for ever. So a node sends one every few seconds. A PING would not do: nats-py sends it before what waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from wshub.errors import BrokerUncertain

__all__ = ["Barriers", "Passed"]

Passed: TypeAlias = Callable[[BrokerUncertain | None], None]
"""Called with None when a barrier has come back, or with an error if its connection has ended before."""

# Seconds between two barriers, if nothing else needs one.
INTERVAL = 2.0

# Seconds in which a barrier must have come back. With sweeps a second apart, a failure is noticed within ten seconds.
TIMEOUT = 6.0

# Barriers that are under way at a time. Further callbacks wait and share the next one, so a slow engine gets few.
IN_FLIGHT = 4


class Barriers:
    """The barriers of one node, by number.

    Args:
        now: returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.round_trip: float | None = None
        """Seconds that the last barrier took to come back; None before the first one has."""
        self._now = now
        self._send: Callable[[bytes], object] | None = None
        self._number = 0
        self._next_at = 0.0
        # Callbacks for the next barrier, and the barriers that are under way: number, time, callbacks.
        self._waiting: list[Passed] = []
        self._sent: deque[tuple[int, float, list[Passed]]] = deque()
        self._flush_handle: asyncio.Handle | None = None

    def connected(self, send: Callable[[bytes], object]) -> None:
        """Send barriers over a new connection."""
        self._send = send
        self._send_one()

    def disconnected(self, error: BrokerUncertain) -> None:
        """Fail all that waits: the connection has ended."""
        self._send = None
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        waiting, self._waiting = self._waiting, []
        sent, self._sent = self._sent, deque()
        for _, _, callbacks in sent:
            for passed in callbacks:
                passed(error)
        for passed in waiting:
            passed(error)

    def after(self, passed: Passed) -> None:
        """Have a function called when all that was sent until now has arrived at the engine."""
        self._waiting.append(passed)
        if self._flush_handle is None and len(self._sent) < IN_FLIGHT:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def heard(self, payload: bytes) -> None:
        """Take a barrier that has come back."""
        if not payload.isdigit() or len(payload) > 20:
            return
        number = int(payload)
        while self._sent and self._sent[0][0] <= number:
            _, sent_at, callbacks = self._sent.popleft()
            self.round_trip = self._now() - sent_at
            for passed in callbacks:
                passed(None)
        if self._waiting and self._flush_handle is None:
            self._send_one()

    def is_due(self, now: float) -> bool:
        """Return whether it is time for a barrier that tests the connection."""
        return self._send is not None and now >= self._next_at

    def sweep(self, now: float) -> None:
        """Send a barrier if it is time for one."""
        if self.is_due(now):
            self._next_at = now + INTERVAL
            if len(self._sent) < IN_FLIGHT:
                self._send_one()

    def is_late(self, now: float) -> bool:
        """Return whether a barrier should have come back by now."""
        return bool(self._sent) and now - self._sent[0][1] >= TIMEOUT

    def _flush(self) -> None:
        self._flush_handle = None
        if self._waiting:
            self._send_one()

    def _send_one(self) -> None:
        if self._send is not None:
            self._number += 1
            waiting, self._waiting = self._waiting, []
            self._sent.append((self._number, self._now(), waiting))
            self._send(b"%d" % self._number)
