"""Channels that are wanted, refused or interrupted, for the subscriptions at every engine."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from wshub.errors import BrokerError, BrokerUnavailable, MisuseError

__all__ = ["WantedChannels", "unavailable"]

logger = logging.getLogger("wshub.broker")

# Seconds after which a refused channel is tried again, and the most that it becomes by doubling.
FIRST_RETRY = 1.0
LAST_RETRY = 60.0


class Refusal:
    """The error with which the engine has refused a channel."""

    __slots__ = ("attempts", "error", "retry_at")

    def __init__(self) -> None:
        self.error = BrokerError()
        self.attempts = 0
        self.retry_at: float | None = None
        """When to try again; None while that is being done."""

    @property
    def is_waiting(self) -> bool:
        """Whether it is not time to try again yet."""
        return self.retry_at is not None


class WantedChannels(ABC):
    """Knows which channels are wanted, who waits for them, and which were refused or interrupted.

    A subclass tells the engine.

    Args:
        service: the channels that are wanted from the beginning to the end.
        wanted: further channels that are wanted already.
        now: returns the time in seconds.
    """

    def __init__(self, service: Sequence[str], wanted: set[str], now: Callable[[], float]) -> None:
        self._now = now
        self._service = tuple(service)
        self._wanted = wanted.union(service)
        self._refusals: dict[str, Refusal] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        # Channels that were interrupted, and those of them that were acknowledged again and are to be reported.
        self._interrupted: set[str] = set()
        self._restored: list[str] = []

    # What a subclass has

    @property
    @abstractmethod
    def _is_connected(self) -> bool:
        """Whether there is a connection."""

    @abstractmethod
    def _is_settled(self, channel: str) -> bool:
        """Return whether the engine has the subscription to a wanted channel, and no change of it is due."""

    @abstractmethod
    def _mark(self, channel: str) -> None:
        """Compare the channel with what is wanted soon, if there is a connection."""

    # What is wanted

    @property
    def wanted_count(self) -> int:
        """The number of channels that are wanted."""
        return len(self._wanted)

    def want(self, channel: str) -> None:
        """Subscribe to a channel, and go on until the engine has the subscription."""
        if channel not in self._wanted:
            self._wanted.add(channel)
            self._mark(channel)

    def unwant(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        if channel in self._wanted and channel not in self._service:
            self._wanted.discard(channel)
            self._interrupted.discard(channel)
            self._refusals.pop(channel, None)
            self._fail_waiters(channel, BrokerUnavailable(f"the channel {channel!r} was unsubscribed from"))
            self._mark(channel)

    async def wait(self, channel: str) -> None:
        """Return when the engine has the subscription to a channel.

        Raises:
            BrokerUnavailable: there is no connection, or it ends; the channel is unsubscribed from; or the engine
                refuses the subscription, which is tried again all the same.
            MisuseError: the channel is not wanted.
        """
        if channel not in self._wanted:
            raise MisuseError(f"call subscribe() before subscribed(): the channel {channel!r} is not subscribed to")
        if not self._is_connected:
            raise BrokerUnavailable("there is no connection to the engine")
        if self._is_settled(channel):
            return
        refusal = self._refusals.get(channel)
        if refusal is not None and refusal.is_waiting:
            raise unavailable(refusal.error)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(channel, []).append(waiter)
        try:
            await waiter
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del waiter

    # What the engine says

    @property
    def service_error(self) -> BrokerError | None:
        """The error with which the engine has refused a service channel, or None."""
        return next((self._refusals[each].error for each in self._service if each in self._refusals), None)

    def take_restored(self) -> list[str]:
        """Return the channels that were interrupted, and acknowledged since the last call."""
        restored, self._restored = self._restored, []
        return restored

    def _acknowledge(self, channel: str) -> None:
        """Take the news that the engine has the subscription to a channel."""
        self._refusals.pop(channel, None)
        if channel in self._interrupted:
            self._interrupted.discard(channel)
            self._restored.append(channel)
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _refuse(self, channel: str, error: BrokerError) -> bool:
        """Try a wanted channel again later, which the engine has refused. Return whether it was not interrupted yet."""
        if not self._refusals:
            logger.warning("the engine refuses subscriptions, which are tried again: %s", error)
        self._try_later(channel, error)
        self._fail_waiters(channel, unavailable(error))
        if channel in self._interrupted:
            return False
        self._interrupted.add(channel)
        return True

    def _try_later(self, channel: str, error: BrokerError) -> None:
        refusal = self._refusals.setdefault(channel, Refusal())
        # The randomness keeps nodes apart, and channels within one sweep together.
        pause = min(FIRST_RETRY * 2.0**refusal.attempts, LAST_RETRY) * random.uniform(0.5, 1)
        refusal.error = error
        refusal.attempts = min(refusal.attempts + 1, 10)
        refusal.retry_at = self._now() + pause

    def _is_retry_waiting(self, channel: str) -> bool:
        """Return whether it is not time to try a refused channel again."""
        refusal = self._refusals.get(channel)
        return refusal is not None and refusal.is_waiting

    def _fail_waiters(self, channel: str, error: BrokerUnavailable) -> None:
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_exception(error)

    def _interrupt_all(self, *, had_any: bool) -> None:
        """Take the end of the connection. If the engine had any subscription, all channels are interrupted."""
        self._refusals.clear()
        self._restored.clear()
        if had_any:
            self._interrupted.update(self._wanted)
        for channel in list(self._waiters):
            self._fail_waiters(channel, BrokerUnavailable("the connection to the engine has ended"))

    # Time

    def sweep(self, now: float) -> None:
        """Try refused channels again whose time has come."""
        if self._is_connected:
            for channel, refusal in self._refusals.items():
                if refusal.retry_at is not None and refusal.retry_at <= now:
                    refusal.retry_at = None
                    self._mark(channel)


def unavailable(error: BrokerError) -> BrokerUnavailable:
    """Return what a caller raises for a refusal of the engine."""
    return BrokerUnavailable(f"the engine refuses the subscription: {error}")
