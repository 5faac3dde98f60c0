"""Watches: a function of the application gets each message to the rooms of a pattern, without members in them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from wshub.brokers.envelope import decode_envelope, decode_stored
from wshub.brokers.interface import PatternBroker, Position, pattern_channel
from wshub.brokers.room_patterns import RoomPattern
from wshub.errors import BrokerUnavailable, MisuseError

if TYPE_CHECKING:
    from wshub.core.cluster import Cluster

__all__ = ["RoomMessage", "Watch", "Watches", "calling_watch", "pattern_broker_of"]

logger = logging.getLogger("wshub.server")

# The first byte of an envelope with the head of a stored one.
STORED_VERSION = b"\xc1"

# Bytes that a message counts for while it waits, besides its own.
MESSAGE_CHARGE = 256

# Calls of a function after which other tasks have their turn.
CALLS_IN_A_ROW = 64


@dataclass(frozen=True, slots=True)
class RoomMessage:
    """A message to a room that the application watches."""

    room: str
    """The name of the room."""

    data: str | bytes
    """The message, as it was published."""

    publisher: str | None = None
    """The name of the user who has published it, if the room has a history and ``publish()`` was given the name."""

    position: Position | None = None
    """The position of the message in the history of its room; None if the room has none."""

    time: float = 0.0
    """When it was sent: seconds since 1970, by the clock of the sending machine."""


calling_watch: ContextVar[Watch | None] = ContextVar("calling_watch", default=None)
"""The watch in whose function this code runs, or has begun; None outside of watches."""


class HubWithWatches(Protocol):
    """The hub, as far as watches use it."""

    _watches: Any

    @property
    def is_in_use(self) -> bool: ...


class Watch:
    """Calls a function with each message to rooms that match a pattern. ``Hub.watch`` returns it.

    The function is called in a task, with one message after the other. If it raises, the error is logged, and it is
    called with the next message. ``async with`` closes the watch at the end of the block.
    """

    def __init__(
        self, watches: Watches, pattern: RoomPattern, function: Callable[[RoomMessage], Any], max_pending: int
    ) -> None:
        self._watches = watches
        self._pattern = pattern
        self._function = function
        self._max_pending = max_pending
        self._waiting: deque[tuple[RoomMessage, int]] = deque()
        self._waiting_bytes = 0
        self._handled = 0
        self._failed = 0
        self._dropped = 0
        self._interruptions = 0
        self._wake = asyncio.Event()
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        # Is done once the function waits for the hub to close.
        self._waits_for_hub: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Watch {self.pattern!r} {state}, {self.pending} messages wait>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pattern(self) -> str:
        """The pattern."""
        return str(self._pattern)

    @property
    def pending(self) -> int:
        """The number of messages that wait for the function."""
        return len(self._waiting)

    @property
    def handled(self) -> int:
        """The number of messages that the function was called with."""
        return self._handled

    @property
    def failed(self) -> int:
        """The number of these calls that have raised."""
        return self._failed

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped: the function was too slow, or the watch has ended before it."""
        return self._dropped

    @property
    def interruptions(self) -> int:
        """How often messages of other nodes may have been lost, because the broker was interrupted."""
        return self._interruptions

    @property
    def is_closed(self) -> bool:
        """Whether no more messages arrive: ``close()`` was called, or the hub has closed."""
        return self._is_closed

    async def close(self) -> None:
        """Take no more messages, and return when the function was called with those that wait.

        If the call is cancelled, the function is cancelled too, and the messages that wait are dropped. The function
        itself may call it, and the tasks that it has started: then it returns at once. A second call waits for the
        same end.
        """
        self._watches.remove(self)
        # A task that the function has started may be one that it waits for, as with asyncio.wait_for().
        if calling_watch.get() is not self:
            await self.wait_ended()

    # For the hub

    async def wait_ended(self) -> None:
        """Return when the function was called with all messages, or when it waits for the hub to close."""
        task, waits_for_hub = self._task, self._waits_for_hub
        if task is None or waits_for_hub is None or task.get_loop().is_closed():
            return
        try:
            await asyncio.wait([task, waits_for_hub], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def matches(self, room: str) -> bool:
        """Return whether messages to a room are for this watch."""
        return self._pattern.matches(room)

    def begin(self) -> None:
        """Call the function from now on."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name=f"wshub watch {self.pattern}")
        # Something may cancel the task, even before its first step.
        self._task.add_done_callback(self._ended)
        self._waits_for_hub = loop.create_future()

    def put(self, message: RoomMessage, size: int) -> None:
        """Have the function called with a message of so many bytes, or drop it if too much waits."""
        size += MESSAGE_CHARGE
        if self._waiting and self._waiting_bytes + size > self._max_pending:
            if not self._dropped:
                logger.warning("the function that watches %r is too slow: messages are dropped", self.pattern)
            self._dropped += 1
            return
        self._waiting.append((message, size))
        self._waiting_bytes += size
        self._wake.set()

    def hub_close_called(self, hub: object) -> None:
        """Note that ``Hub.close`` was called, in this function or in a task that it has started.

        If the function itself waits for its hub, that closes without it: each would wait for the other.
        """
        future = self._waits_for_hub
        if not self._watches.is_of(hub) or self._task is not asyncio.current_task():
            return
        if future is not None and not future.done():
            future.set_result(None)

    def interrupted(self) -> None:
        """Count an interruption of the broker."""
        self._interruptions += 1

    def end(self) -> None:
        """Take no more messages. The task ends when the function was called with those that wait."""
        self._is_closed = True
        self._wake.set()

    async def _run(self) -> None:
        """Call the function with each message, until the watch is closed and none waits."""
        calling_watch.set(self)
        calls = 0
        while True:
            while self._waiting:
                message, size = self._waiting.popleft()
                self._waiting_bytes -= size
                await self._call(message)
                calls += 1
                if calls % CALLS_IN_A_ROW == 0:
                    # The function may never wait.
                    await asyncio.sleep(0)
            if self._is_closed:
                return
            self._wake.clear()
            await self._wake.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Drop what waits, since nothing calls the function any more."""
        self._watches.remove(self)
        self._dropped += len(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0

    async def _call(self, message: RoomMessage) -> None:
        """Call the function with a message, and wait until it has ended."""
        self._handled += 1
        try:
            outcome = self._function(message)
            if inspect.isawaitable(outcome):
                await outcome
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Something that the function waited for was cancelled.
            self._note_failure(message)
        except Exception:
            self._note_failure(message)

    def _note_failure(self, message: RoomMessage) -> None:
        self._failed += 1
        logger.exception(
            "the function that watches %r has failed for a message to the room %r", self.pattern, message.room
        )


class Watches:
    """The watches of a hub. The hub knows of it only while there are any.

    Args:
        hub: in use.
        cluster: the hubs that a broker joins to this one; None without a broker.
    """

    def __init__(self, hub: HubWithWatches, cluster: Cluster | None) -> None:
        self._hub = hub
        self._cluster = cluster
        self._broker = pattern_broker_of(cluster.broker) if cluster is not None else None
        # The watches of each pattern, which has at least one.
        self._by_pattern: dict[str, list[Watch]] = {}

    async def open(self, pattern: RoomPattern, function: Callable[[RoomMessage], Any], max_pending: int) -> Watch:
        """Return a new watch, once messages of all nodes arrive. Raises ``BrokerUnavailable``."""
        watch = Watch(self, pattern, function, max_pending)
        try:
            self._add(watch)
            if self._broker is not None:
                await self._broker.pattern_subscribed(watch.pattern)
            if watch.is_closed:
                raise BrokerUnavailable("the hub has closed")
        except BaseException:
            self.remove(watch)
            raise
        watch.begin()
        return watch

    def _add(self, watch: Watch) -> None:
        watches = self._by_pattern.setdefault(watch.pattern, [])
        watches.append(watch)
        self._hub._watches = self
        if len(watches) == 1 and self._broker is not None:
            self._broker.subscribe_pattern(watch.pattern, partial(self._receive, watches))

    def remove(self, watch: Watch) -> None:
        """Give a watch no more messages."""
        if watch.is_closed:
            return
        watch.end()
        watches = self._by_pattern[watch.pattern]
        watches.remove(watch)
        if watches:
            return
        del self._by_pattern[watch.pattern]
        # The hub may have begun anew, if its loop has closed.
        if self._hub._watches is self:
            if self._broker is not None and self._hub.is_in_use:
                self._broker.unsubscribe_pattern(watch.pattern)
            if not self._by_pattern:
                self._hub._watches = None

    async def close(self, timeout: float) -> None:
        """Close all watches. Those whose functions have not ended after a timeout, in seconds, are cancelled."""
        everyone = [watch for watches in self._by_pattern.values() for watch in watches]
        for watch in everyone:
            self.remove(watch)
        closing = [asyncio.ensure_future(watch.wait_ended()) for watch in everyone]
        if closing:
            _, late = await asyncio.wait(closing, timeout=timeout)
            for each in late:
                each.cancel()
            await asyncio.wait(closing)

    def is_of(self, hub: object) -> bool:
        """Return whether these are the watches of a hub."""
        return self._hub is hub

    def interrupted(self, channels: Collection[str] | None) -> None:
        """Note that messages of these channels may have been lost; None stands for all."""
        for pattern, watches in self._by_pattern.items():
            if channels is None or pattern_channel(pattern) in channels:
                for watch in watches:
                    watch.interrupted()

    # Messages

    def of_room(self, room: str) -> list[Watch]:
        """Return the watches that messages to a room are for."""
        return [watch for watches in self._by_pattern.values() if watches[0].matches(room) for watch in watches]

    def sent(self, found: list[Watch], room: str, payload: bytes, is_binary: bool) -> None:
        """Give watches a message that this node sends, to a room without history."""
        message = RoomMessage(room, payload if is_binary else payload.decode(), time=time.time())
        for watch in found:
            watch.put(message, len(payload))

    def stored(self, envelope: bytes) -> None:
        """Give watches an envelope that was stored in the memory of this hub."""
        message, size = self._message_of(envelope)
        if message is not None:
            for watch in self.of_room(message.room):
                watch.put(message, size)

    def _receive(self, watches: list[Watch], envelope: bytes) -> None:
        """Take an envelope that the broker has for the pattern of these watches."""
        message, size = self._message_of(envelope)
        if message is not None and watches and watches[0].matches(message.room):
            for watch in watches:
                watch.put(message, size)

    def _message_of(self, envelope: bytes) -> tuple[RoomMessage | None, int]:
        """Return an envelope as the application sees it, and its size in bytes; None if watches do not get it."""
        position = None
        try:
            if envelope.startswith(STORED_VERSION):
                head, envelope = decode_stored(envelope)
                position = Position(head.offset, head.epoch)
            decoded = decode_envelope(envelope)
            if decoded.kind != "room":
                return None, 0
            data = decoded.payload if decoded.is_binary else decoded.payload.decode()
        except ValueError:
            # Members do not get it either, and the hub counts that for them.
            return None, 0
        if position is None and self._cluster is not None and decoded.node == self._cluster.own_number:
            # sent() has had it.
            return None, 0
        message = RoomMessage(decoded.name, data, decoded.publisher, position, decoded.sent_at / 1e6)
        return message, len(decoded.payload)


def pattern_broker_of(broker: object) -> PatternBroker:
    """Return a broker that delivers by patterns. Raises ``MisuseError`` for another one."""
    if isinstance(broker, PatternBroker):
        return broker
    raise MisuseError(
        f"watch() needs a broker that delivers by patterns, such as NATS or worker processes; {broker!r} does not. "
        "In Redis, each pattern would slow every message down. Use NatsBroker, or give the rooms a history and read it"
    )
