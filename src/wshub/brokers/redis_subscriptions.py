"""The channels that a node wants, and those that an engine has acknowledged."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from enum import Enum
from itertools import islice
from typing import NamedTuple

from wshub.brokers.redis_commands import ChannelNames, pack_command
from wshub.brokers.redis_subscription_count import SubscriptionCount
from wshub.brokers.wanted_channels import WantedChannels
from wshub.errors import BrokerError, BrokerUnavailable

__all__ = ["REDIRECTION", "ChannelMoved", "Subscriptions"]

logger = logging.getLogger("wshub.broker")

# Names in one command. While it runs, an engine does nothing else.
BATCH_NAMES = 512

# Bytes of names after which a command gets no further name.
BATCH_BYTES = 64 * 1024

# Commands that wait for their answers at a time. They bound the bytes on both sides.
BATCHES_IN_FLIGHT = 8

# How the error begins with which a node of a cluster says that another one owns a slot.
REDIRECTION = "MOVED "


class ChannelMoved(BrokerUnavailable):
    """Another engine has the channel now."""


class State(Enum):
    """How a channel is on the present connection. A channel that is not subscribed to has no state."""

    SUBSCRIBING = 1
    SUBSCRIBED = 2
    UNSUBSCRIBING = 3


class Change(NamedTuple):
    """A command that the engine has not answered for all its channels."""

    verb: str
    channels: list[str]
    sent_at: float
    is_repeated: bool
    """Whether the engine has acknowledged the channels already."""


class Subscriptions(WantedChannels):
    """Keeps the subscriptions of a connection equal to the channels that are wanted.

    At most one command about a channel is under way, so an acknowledgement belongs to the last one. Changes within an
    iteration of the loop leave together.

    Args:
        names: the names of the channels in the engine.
        service: the channels that are wanted from the beginning to the end. They are subscribed to first.
        wanted: further channels that are wanted already.
        now: returns the time in seconds.
    """

    def __init__(self, names: ChannelNames, service: Sequence[str], wanted: set[str], now: Callable[[], float]) -> None:
        super().__init__(service, wanted, now)
        self._names = names
        self._states: dict[str, State] = {}
        self._count = SubscriptionCount()
        # Channels of which the engine is to say whether it has them, by subscribing to them once more.
        self._doubted: set[str] = set()
        # Whether the number in the next answer about the last service channel is to be compared.
        self._is_counting = False
        # Channels whose state is to be compared with what is wanted, each once. One command has channels of one group.
        self._due: dict[int, deque[str]] = {}
        self._queued: set[str] = set()
        self._changes: deque[Change] = deque()
        self._is_refusal_to_unsubscribe_logged = False
        # Channels that the engine has refused, and that are still to be reported.
        self._refused: list[str] = []
        self._write: Callable[[bytes], None] | None = None
        self._flush_handle: asyncio.Handle | None = None

    # The connection

    def connected(self, write: Callable[[bytes], None]) -> None:
        """Subscribe to everything on a new connection, whose ``write`` sends commands."""
        self._write = write
        self._send("SUBSCRIBE", list(self._service))
        for channel in self._wanted.difference(self._service):
            self._add_due(channel)
        self._flush()

    def disconnected(self) -> bool:
        """Forget the subscriptions of a connection that has ended. Return whether the engine had acknowledged any."""
        had_any = State.SUBSCRIBED in self._states.values()
        self._write = None
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        for forgotten in (
            self._states,
            self._count,
            self._doubted,
            self._due,
            self._queued,
            self._changes,
            self._refused,
        ):
            forgotten.clear()
        self._interrupt_all(had_any=had_any)
        return had_any

    @property
    def _is_connected(self) -> bool:
        return self._write is not None

    def _is_settled(self, channel: str) -> bool:
        return self._states.get(channel) is State.SUBSCRIBED

    @property
    def are_serving(self) -> bool:
        """Whether the engine has acknowledged the service channels."""
        return all(self._states.get(channel) is State.SUBSCRIBED for channel in self._service)

    def take_refused(self) -> list[str]:
        """Return the channels that the engine has refused since the last call, and that were not interrupted yet."""
        refused, self._refused = self._refused, []
        return refused

    # What the engine says

    def acknowledged(self, name: bytes, count: object) -> str | None:
        """Take the acknowledgement of a subscription, with the number that the engine has on the connection.

        Return the channel if it is wanted and the engine had lost it. It is subscribed to again.
        """
        channel = self._names.decode(name)
        if channel is None:
            return None
        has_grown = self._count.take(count)
        state = self._states.get(channel)
        lost = None
        if state is State.SUBSCRIBING:
            self._hold(channel)
            self._acknowledge(channel)
            if channel not in self._wanted:
                self._mark(channel)
        elif state is State.SUBSCRIBED:
            if has_grown and channel in self._wanted:
                self._count.note_found()
                self._interrupted.add(channel)
                self._acknowledge(channel)
                lost = channel
        elif state is None and channel not in self._wanted:
            # Another engine has the channel since this was asked for.
            self._hold(channel)
            self._mark(channel)
        self._finish_change("SUBSCRIBE", channel)
        if self._is_counting and channel == self._service[-1]:
            self._is_counting = False
            if self._count.must_search():
                self._doubt_all()
        return lost

    def _hold(self, channel: str) -> None:
        """Note that the engine has a subscription."""
        self._states[channel] = State.SUBSCRIBED
        self._count.held += 1

    def _drop(self, channel: str) -> None:
        """Forget the state of a channel."""
        if self._states.pop(channel, State.SUBSCRIBING) is not State.SUBSCRIBING:
            self._count.held -= 1

    def _doubt_all(self) -> None:
        """Subscribe once more to all channels: the engine has lost some. Its answers tell which."""
        self._doubted.update(channel for channel, state in self._states.items() if state is State.SUBSCRIBED)
        for channel in self._doubted:
            self._mark(channel)

    def unsubscribed(self, name: bytes, count: object) -> str | None:
        """Take the news that a channel is not subscribed to any more, with the number of the others.

        Return the channel if it is wanted and the node had not asked for this. It is subscribed to again.
        """
        channel = self._names.decode(name)
        if channel is None:
            return None
        self._count.take(count)
        state = self._states.get(channel)
        if state is State.UNSUBSCRIBING:
            self._drop(channel)
            if channel in self._wanted:
                self._mark(channel)
        self._finish_change("UNSUBSCRIBE", channel)
        # While a SUBSCRIBE is under way, its acknowledgement follows this.
        if state is State.SUBSCRIBED and self.resubscribe(channel):
            return channel
        return None

    def resubscribe(self, channel: str) -> bool:
        """Subscribe again to a channel whose subscription the engine has lost. Return False if it is not wanted."""
        self._drop(channel)
        if channel not in self._wanted:
            return False
        self._interrupted.add(channel)
        self._mark(channel)
        return True

    def refused(self, error: BrokerError) -> None:
        """Take the error with which the engine has answered the oldest command.

        The engine refuses a command as a whole, if it refuses one channel. Then smaller commands find out which.
        """
        if not self._changes:
            return
        verb, channels, *_ = self._changes.popleft()
        if str(error).startswith(REDIRECTION):
            for channel in channels:
                self._drop(channel)
                if channel in self._wanted:
                    self._try_later(channel, error)
        elif verb == "UNSUBSCRIBE":
            for channel in channels:
                if self._states.get(channel) is State.UNSUBSCRIBING:
                    self._states[channel] = State.SUBSCRIBED
            if not self._is_refusal_to_unsubscribe_logged:
                self._is_refusal_to_unsubscribe_logged = True
                logger.warning("the engine refuses to unsubscribe, which is not tried again: %s", error)
        elif len(channels) > 1 and str(error).startswith("NOPERM"):
            for channel in channels:
                self._drop(channel)
            middle = len(channels) // 2
            self._send(verb, channels[:middle])
            self._send(verb, channels[middle:])
        else:
            for channel in channels:
                self._drop(channel)
                if channel in self._wanted and self._refuse(channel, error):
                    self._refused.append(channel)
        self._flush()

    # Time

    def retry_soon(self) -> None:
        """Try all refused channels again at the next sweep."""
        for refusal in self._refusals.values():
            if refusal.retry_at is not None:
                refusal.retry_at = self._now()

    def probe(self) -> None:
        """Subscribe once more to a service channel.

        The answer has the number of subscriptions. Nothing else may tell that no command arrives any more.
        """
        channel = self._service[-1]
        if self._states.get(channel) is State.SUBSCRIBED:
            # While a search goes on, the number does not tell how it ends.
            self._is_counting = not self._doubted and not any(change.is_repeated for change in self._changes)
            self._send("SUBSCRIBE", [channel], is_repeated=True)

    def waiting_time(self, now: float) -> float:
        """Return the seconds for which the oldest command has waited for its answer."""
        return now - self._changes[0].sent_at if self._changes else 0.0

    def sample(self, count: int) -> list[str]:
        """Return some channels at random, out of those that are acknowledged."""
        # Neighbours from a random place: a list of all would take too long.
        first = random.randrange(max(len(self._states) - count, 0) + 1)
        neighbours = islice(self._states, first, first + count)
        return [channel for channel in neighbours if self._states[channel] is State.SUBSCRIBED]

    def is_subscribed(self, channel: str) -> bool:
        """Return whether the engine has acknowledged the channel, and it is wanted."""
        return channel in self._wanted and self._states.get(channel) is State.SUBSCRIBED

    # A cluster

    @property
    def wanted(self) -> frozenset[str]:
        """The channels that are wanted, without those of the service."""
        return frozenset(self._wanted.difference(self._service))

    def replace_service(self, channel: str) -> None:
        """Have another service channel in place of all."""
        for old in self._service:
            self._wanted.discard(old)
            self._interrupted.discard(old)
            self._mark(old)
        self._service = (channel,)
        self._wanted.add(channel)
        self._mark(channel)

    def live_groups(self, groups: Set[int]) -> set[int]:
        """Return those of the groups of which the engine may bring messages."""
        return {self._names.group(channel) for channel in self._states}.intersection(groups)

    def release(self, groups: Set[int]) -> tuple[list[str], set[str]]:
        """Want the channels of some groups no more. Return them, and those of them that were interrupted."""
        channels = [
            channel for channel in self._wanted if channel not in self._service and self._names.group(channel) in groups
        ]
        interrupted = self._interrupted.intersection(channels)
        for channel in channels:
            self._wanted.discard(channel)
            self._interrupted.discard(channel)
            self._refusals.pop(channel, None)
            if self._states.get(channel) is State.SUBSCRIBING:
                del self._states[channel]
            self._fail_waiters(channel, ChannelMoved(f"another engine has the channel {channel!r} now"))
            self._mark(channel)
        return channels, interrupted

    def adopt(self, channels: Iterable[str], interrupted: Set[str]) -> None:
        """Want channels that another engine has released."""
        self._interrupted.update(interrupted)
        for channel in channels:
            self.want(channel)

    # Commands

    def _mark(self, channel: str) -> None:
        """Compare the channel with what is wanted at the next flush."""
        if self._write is None or channel in self._queued:
            return
        self._add_due(channel)
        if self._flush_handle is None and len(self._changes) < BATCHES_IN_FLIGHT:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def _add_due(self, channel: str) -> None:
        self._queued.add(channel)
        self._due.setdefault(self._names.group(channel), deque()).append(channel)

    def _flush(self) -> None:
        self._flush_handle = None
        while self._due and len(self._changes) < BATCHES_IN_FLIGHT:
            self._send_batch()

    def _send_batch(self) -> None:
        to_subscribe: list[str] = []
        to_repeat: list[str] = []
        to_unsubscribe: list[str] = []
        size = 0
        group, due = next(iter(self._due.items()))
        while due and size < BATCH_BYTES and max(map(len, (to_subscribe, to_repeat, to_unsubscribe))) < BATCH_NAMES:
            channel = due.popleft()
            self._queued.discard(channel)
            state = self._states.get(channel)
            is_doubted = channel in self._doubted
            self._doubted.discard(channel)
            if channel in self._wanted:
                if is_doubted and state is State.SUBSCRIBED:
                    to_repeat.append(channel)
                elif state is not None or self._is_retry_waiting(channel):
                    continue
                else:
                    to_subscribe.append(channel)
            elif state is State.SUBSCRIBED:
                to_unsubscribe.append(channel)
            else:
                continue
            size += len(channel)
        if not due:
            del self._due[group]
        self._send("SUBSCRIBE", to_subscribe)
        self._send("SUBSCRIBE", to_repeat, is_repeated=True)
        self._send("UNSUBSCRIBE", to_unsubscribe)

    def _send(self, verb: str, channels: list[str], *, is_repeated: bool = False) -> None:
        if not channels or self._write is None:
            return
        is_subscribe = verb == "SUBSCRIBE"
        if not is_repeated:
            state = State.SUBSCRIBING if is_subscribe else State.UNSUBSCRIBING
            self._states.update(dict.fromkeys(channels, state))
        self._changes.append(Change(verb, channels, self._now(), is_repeated))
        word = self._names.subscribe_word if is_subscribe else self._names.unsubscribe_word
        self._write(pack_command(word, *map(self._names.encode, channels)))

    def _finish_change(self, verb: str, channel: str) -> None:
        """Note that a command is answered, if this was its last channel."""
        if self._changes and self._changes[0].verb == verb and self._changes[0].channels[-1] == channel:
            self._changes.popleft()
            self._flush()
