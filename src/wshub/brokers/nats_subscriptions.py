"""The channels that a node wants, and those whose subscriptions a NATS server has."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from wshub.brokers.interface import PATTERN_CHANNELS
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_connection import MessageSink, NatsConnection
from wshub.brokers.nats_subjects import SubjectNames
from wshub.brokers.wanted_channels import WantedChannels
from wshub.errors import BrokerError, BrokerUncertain

__all__ = ["Subscriptions"]

# Subscriptions that are sent in one iteration of the loop, so that other things go on.
BATCH = 512

# Batches that wait for their barriers at a time. They bound the bytes on both sides.
BATCHES_IN_FLIGHT = 8

# Intervals of the probes in which each subscription is tested once: 30 seconds. A test is a message to all nodes that
# have the channel, so an interval has a bounded number. With more than 480 channels, a round takes longer.
ROUND_INTERVALS = 15
FEWEST_TESTS = 4
MOST_TESTS = 32


class Subscribed:
    """A subscription of the present connection."""

    __slots__ = ("is_acknowledged", "subscription")

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.is_acknowledged = False
        """Whether a barrier has come back that was sent after it."""


class Subscriptions(WantedChannels):
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
        super().__init__(service, wanted, now)
        self._names = names
        self._sink = MessageSink(receive)
        self._receive_matching = receive_matching
        self._barriers = barriers
        self._settled = settled
        self._subscribed: dict[str, Subscribed] = {}
        # Channels whose subscriptions are to be compared with what is wanted, each once.
        self._due: deque[str] = deque()
        self._queued: set[str] = set()
        self._batches = 0
        # Channels whose turn to be tested has not come.
        self._untested: deque[str] = deque()
        self._connection: NatsConnection | None = None
        self._flush_handle: asyncio.Handle | None = None

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
        for forgotten in (self._subscribed, self._due, self._queued, self._untested):
            forgotten.clear()
        self._interrupt_all(had_any=had_any)
        return had_any

    @property
    def _is_connected(self) -> bool:
        return self._connection is not None

    def _is_settled(self, channel: str) -> bool:
        return self.is_subscribed(channel) and channel not in self._queued

    @property
    def are_serving(self) -> bool:
        """Whether the engine has the subscriptions to the service channels."""
        return all(map(self.is_subscribed, self._service))

    # What the engine says

    def refused(self, subject: str, error: BrokerError) -> list[str]:
        """Take the refusal of a subscription. Return its channels that were not interrupted yet.

        Args:
            subject: in small letters, because nats-py has made them so. Several channels may have it.
            error: what the engine has said.
        """
        channels = [channel for channel in self._subscribed if self._names.subject(channel).lower() == subject]
        for channel in channels:
            self._unsubscribe(channel)
        return [channel for channel in channels if channel in self._wanted and self._refuse(channel, error)]

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

    # How it is

    def next_to_test(self) -> list[tuple[str, Subscription]]:
        """Return the channels that are tested next, with their subscriptions. Each acknowledged one has its turn."""
        count = min(max(len(self._subscribed) // ROUND_INTERVALS + 1, FEWEST_TESTS), MOST_TESTS)
        if len(self._untested) < count:
            self._untested.extend(self._subscribed)
        channels = [self._untested.popleft() for _ in range(min(count, len(self._untested)))]
        return [(each, self._subscribed[each].subscription) for each in channels if self.is_subscribed(each)]

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
        if self._connection is None or self._is_retry_waiting(channel):
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
