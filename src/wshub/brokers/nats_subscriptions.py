"""The channels that a node wants, and those whose subscriptions a NATS server has."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from wshub.brokers.interface import PATTERN_CHANNELS
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_connection import MessageSink, NatsConnection
from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, MisuseError

__all__ = ["Subscriptions"]

logger = logging.getLogger("wshub.broker")

# Subscriptions that are sent in one iteration of the loop, so that other things go on.
BATCH = 512

# Batches that wait for their barriers at a time. They bound the bytes on both sides.
BATCHES_IN_FLIGHT = 8

# Seconds after which a refused channel is tried again, and the most that it becomes by doubling.
FIRST_RETRY = 1.0
LAST_RETRY = 60.0


class Subscribed:
    """A subscription of the present connection."""

    __slots__ = ("is_acknowledged", "subscription")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.is_acknowledged = False
        """Whether a barrier has come back that was sent after it."""


class Refusal:
    """The error with which the engine has refused a channel."""

    __slots__ = ("attempts", "error", "retry_at")

    def __init__(self) -> None:
        self.error = BrokerError()
        self.attempts = 0
        self.retry_at: float | None = None
        """When to try again; None while that is being done."""


class Subscriptions:
    """Keeps the subscriptions of a connection equal to the channels that are wanted.

    Changes within an iteration of the loop leave together.

    Args:
        names: the subjects of the channels.
        service: the channels that are wanted from the beginning to the end. They are subscribed to first.
        wanted: further channels that are wanted already.
        receive: takes the messages.
        receive_matching: takes those of patterns, with the channel of the pattern.
        barriers: tell when the engine has a subscription.
        settled: called when channels were acknowledged.
        now: returns the time in seconds.
    """

    def __init__(
        self,
        names: SubjectNames,
        service: Sequence[str],
        wanted: set[str],
        receive: Callable[[Msg], None],
        receive_matching: Callable[[str, Msg], None],
        barriers: Barriers,
        settled: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._names = names
        self._now = now
        self._service = tuple(service)
        self._wanted = wanted.union(service)
        self._sink = MessageSink(receive)
        self._receive_matching = receive_matching
        self._barriers = barriers
        self._settled = settled
        self._subscribed: dict[str, Subscribed] = {}
        # Channels whose subscriptions are to be compared with what is wanted, each once.
        self._due: deque[str] = deque()
        self._queued: set[str] = set()
        self._batches = 0
        self._refusals: dict[str, Refusal] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        # Channels that were interrupted, and those of them that were acknowledged again and are to be reported.
        self._interrupted: set[str] = set()
        self._restored: list[str] = []
        self._connection: NatsConnection | None = None
        self._flush_handle: asyncio.Handle | None = None

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
        if self._connection is None:
            raise BrokerUnavailable("there is no connection to the engine")
        if self.is_subscribed(channel) and channel not in self._queued:
            return
        refusal = self._refusals.get(channel)
        if refusal is not None and refusal.retry_at is not None:
            raise unavailable(refusal.error)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(channel, []).append(waiter)
        try:
            await waiter
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del waiter

    # The connection

    def connected(self, connection: NatsConnection) -> None:
        """Subscribe to everything on a new connection."""
        self._connection = connection
        self._due.extend(self._service)
        self._due.extend(self._wanted.difference(self._service))
        self._queued.update(self._due)
        self._flush()

    def disconnected(self) -> bool:
        """Forget the subscriptions of a connection that has ended. Return whether the engine had any."""
        had_any = any(each.is_acknowledged for each in self._subscribed.values())
        self._connection = None
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._batches = 0
        for forgotten in (self._subscribed, self._due, self._queued, self._refusals, self._restored):
            forgotten.clear()
        if had_any:
            self._interrupted.update(self._wanted)
        for channel in list(self._waiters):
            self._fail_waiters(channel, BrokerUnavailable("the connection to the engine has ended"))
        return had_any

    @property
    def are_serving(self) -> bool:
        """Whether the engine has the subscriptions to the service channels."""
        return all(map(self.is_subscribed, self._service))

    @property
    def service_error(self) -> BrokerError | None:
        """The error with which the engine has refused a service channel, or None."""
        return next((self._refusals[each].error for each in self._service if each in self._refusals), None)

    def take_restored(self) -> list[str]:
        """Return the channels that were interrupted, and acknowledged since the last call."""
        restored, self._restored = self._restored, []
        return restored

    # What the engine says

    def refused(self, subject: str, error: BrokerError) -> list[str]:
        """Take the refusal of a subscription. Return its channels that were not interrupted yet.

        Args:
            subject: in small letters, because nats-py has made them so. Several channels may have it.
            error: what the engine has said.
        """
        channels = [channel for channel in self._subscribed if self._names.subject(channel).lower() == subject]
        return [channel for channel in channels if self._refuse(channel, error)]

    def _refuse(self, channel: str, error: BrokerError) -> bool:
        """Try a refused channel again later. Return whether it was not interrupted yet."""
        self._unsubscribe(channel)
        if channel not in self._wanted:
            return False
        if not self._refusals:
            logger.warning("the engine refuses subscriptions, which are tried again: %s", error)
        refusal = self._refusals.setdefault(channel, Refusal())
        # The randomness keeps nodes apart, and channels within one sweep together.
        pause = min(FIRST_RETRY * 2.0**refusal.attempts, LAST_RETRY) * random.uniform(0.5, 1)
        refusal.error = error
        refusal.attempts = min(refusal.attempts + 1, 10)
        refusal.retry_at = self._now() + pause
        self._fail_waiters(channel, unavailable(error))
        if channel in self._interrupted:
            return False
        self._interrupted.add(channel)
        return True

    def resubscribe(self, channel: str, subscription: Subscription) -> bool:
        """Subscribe again to a channel whose subscription the engine has lost.

        Return False if the channel is not wanted any more, or has another subscription by now.
        """
        subscribed = self._subscribed.get(channel)
        if channel not in self._wanted or subscribed is None or subscribed.subscription is not subscription:
            return False
        self._unsubscribe(channel)
        self._interrupted.add(channel)
        self._mark(channel)
        return True

    # Time

    def sweep(self, now: float) -> None:
        """Try refused channels again whose time has come."""
        if self._connection is not None:
            for channel, refusal in self._refusals.items():
                if refusal.retry_at is not None and refusal.retry_at <= now:
                    refusal.retry_at = None
                    self._mark(channel)

    def sample(self, count: int) -> list[tuple[str, Subscription]]:
        """Return some channels at random, out of those that are acknowledged, with their subscriptions."""
        # Neighbours from a random place: a list of all would take too long.
        first = random.randrange(max(len(self._subscribed) - count, 0) + 1)
        neighbours = islice(self._subscribed.items(), first, first + count)
        return [(channel, each.subscription) for channel, each in neighbours if self.is_subscribed(channel)]

    def is_subscribed(self, channel: str) -> bool:
        """Return whether the engine has the subscription to a channel, and it is wanted."""
        subscribed = self._subscribed.get(channel)
        return subscribed is not None and subscribed.is_acknowledged and channel in self._wanted

    # Changes

    def _mark(self, channel: str) -> None:
        """Compare the channel with what is wanted at the next flush."""
        if self._connection is None or channel in self._queued:
            return
        self._queued.add(channel)
        self._due.append(channel)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._due and self._flush_handle is None and self._batches < BATCHES_IN_FLIGHT:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        batch: list[tuple[str, Subscribed]] = []
        for _ in range(min(len(self._due), BATCH)):
            channel = self._due.popleft()
            self._queued.discard(channel)
            if channel not in self._wanted:
                self._unsubscribe(channel)
                continue
            subscribed = self._subscribed.get(channel)
            if subscribed is None:
                subscribed = self._subscribe(channel)
                if subscribed is not None:
                    batch.append((channel, subscribed))
            elif subscribed.is_acknowledged:
                # It was left and joined again within one iteration.
                self._acknowledge(channel)
        if batch:
            self._batches += 1
            self._barriers.after(partial(self._batch_passed, batch))
        self._flush_soon()

    def _subscribe(self, channel: str) -> Subscribed | None:
        """Subscribe to a channel. Return None if it is not time to try a refused one again, or the connection ends."""
        refusal = self._refusals.get(channel)
        if self._connection is None or (refusal is not None and refusal.retry_at is not None):
            return None
        sink = self._sink
        if channel.startswith(PATTERN_CHANNELS):
            sink = MessageSink(partial(self._receive_matching, channel))
        subscription = self._connection.subscribe(self._names.subject(channel), sink)
        if subscription is None:
            return None
        subscribed = self._subscribed[channel] = Subscribed(subscription)
        return subscribed

    def _unsubscribe(self, channel: str) -> None:
        subscribed = self._subscribed.pop(channel, None)
        if subscribed is not None and self._connection is not None:
            self._connection.unsubscribe(subscribed.subscription)

    def _batch_passed(self, batch: list[tuple[str, Subscribed]], error: BrokerUncertain | None) -> None:
        if error is not None:
            return
        self._batches -= 1
        for channel, subscribed in batch:
            # Since then it may have been refused, or left and joined again.
            if self._subscribed.get(channel) is subscribed:
                subscribed.is_acknowledged = True
                if channel in self._wanted:
                    self._acknowledge(channel)
        self._settled()
        self._flush_soon()

    def _acknowledge(self, channel: str) -> None:
        self._refusals.pop(channel, None)
        if channel in self._interrupted:
            self._interrupted.discard(channel)
            self._restored.append(channel)
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _fail_waiters(self, channel: str, error: BrokerUnavailable) -> None:
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_exception(error)


def unavailable(error: BrokerError) -> BrokerUnavailable:
    """Return what a caller raises for a refusal of the engine."""
    return BrokerUnavailable(f"the engine refuses the subscription: {error}")
