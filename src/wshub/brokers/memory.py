"""A broker in memory: it joins the hubs of one process, for tests of applications.

::

    engine = MemoryEngine()
    first = Hub(broker=MemoryBroker(engine))
    second = Hub(broker=MemoryBroker(engine))

It does all that ``wshub.brokers.interface`` asks for, and in a simple way. Read it before you write another broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any

from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import (
    ALL_NODES,
    BrokerEvents,
    BrokerHealth,
    BrokerState,
    BrokerStats,
    HistoryConfig,
    NodeInfo,
    Published,
    node_channel,
)
from wshub.brokers.memory_engine import (
    Answer,
    Answered,
    Arrived,
    Ask,
    Command,
    EngineConnection,
    MemoryEngine,
    Probe,
    ProbeAnswer,
    Read,
    Refused,
    Send,
    Store,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from wshub.brokers.memory_presence import MemoryPresence
from wshub.brokers.memory_state import Counts, Request, Subscription, fail, fail_all
from wshub.brokers.pattern_channels import PatternChannels
from wshub.errors import BrokerUnavailable, BrokerUncertain, MisuseError

__all__ = ["MemoryBroker", "MemoryEngine"]

logger = logging.getLogger("wshub.broker")

# Bytes that an envelope counts for besides its own.
ENVELOPE_CHARGE = 64
# Seconds between two attempts to connect: they double up to this.
LONGEST_PAUSE = 30.0


class MemoryBroker(PatternChannels, MemoryPresence):
    """Joins a hub to the others of this process that use the same engine.

    Args:
        engine: what carries the envelopes. Its methods cause faults.
        max_pending_bytes: bytes that may wait until the engine takes them. ``send()`` drops what is too much.
        probe_interval: seconds between two probes, by the hub's clock.
        probe_timeout: seconds after which an unanswered probe, or a call of ``publish()``, has failed.
    """

    def __init__(
        self,
        engine: MemoryEngine,
        *,
        max_pending_bytes: int = 8 * 1024 * 1024,
        probe_interval: float = 5.0,
        probe_timeout: float = 10.0,
    ) -> None:
        self._engine = engine
        self._max_pending_bytes = max_pending_bytes
        self._probe_interval = probe_interval
        self._probe_timeout = probe_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counts = Counts()
        self._reason = "not started"
        self._reset()

    def __repr__(self) -> str:
        return f"<MemoryBroker {self._state}, {len(self._subscriptions)} channels>"

    def _reset(self) -> None:
        """Be as a broker that was not started yet, but for the counts."""
        self._events: BrokerEvents | None = None
        self._state: BrokerState = "starting"
        self._is_closing = False
        self._own: tuple[str, ...] = ()
        self._opened: asyncio.Future[None] | None = None
        self._subscriptions: dict[str, Subscription] = {}
        # The functions that take the envelopes of each pattern, by channel.
        self._patterns: dict[str, Callable[[bytes], None]] = {}
        # Channels whose subscription has changed in this iteration of the loop.
        self._changed: dict[str, None] = {}
        # The channels that the engine was asked for. It may have some of them only later.
        self._requested: set[str] = set()
        self._pending: dict[int, Request] = {}
        self._requests = count(1)
        self._outgoing: deque[Command] = deque()
        self._outgoing_changes = 0
        self._pending_bytes = 0
        self._flush_handle: asyncio.Handle | None = None
        self._flushed: asyncio.Event | None = None
        self._connection: EngineConnection | None = None
        self._next_number = 0
        self._was_connected = False
        self._is_outage_logged = False
        self._pause = 1.0
        self._retry_at = 0.0
        self._probe: Probe | None = None
        self._probed_at = 0.0
        self._probe_ms: float | None = None

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        """Connect to the engine. See ``Broker.start``.

        Raises:
            BrokerUnavailable: ``close()`` was called meanwhile.
            MisuseError: it has started already.
        """
        if self._loop is not None:
            if not self._loop.is_closed():
                raise MisuseError("the broker has started already: a broker belongs to one hub")
            self._end_connection()
            self._reset()
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._node = node
        self._counts = Counts()
        self._reason = "the connection is not made yet"
        self._own = (ALL_NODES, node_channel(node.id)) if node.receives else ()
        for channel in self._own:
            self.subscribe(channel)
        self._opened = self._loop.create_future()
        self._connect()
        await self._opened

    async def close(self) -> None:
        """Send what waits, for a second at most, and leave the other nodes. A second call does nothing."""
        if self._loop is None or self._is_closing:
            return
        self._is_closing = True
        if self._flush_handle is not None and not self._loop.is_closed():
            self._flush_handle.cancel()
        self._flushed = asyncio.Event()
        self._flush()
        if self._connection is not None and not self._loop.is_closed() and (self._outgoing or self._pending):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._flushed.wait()
        self._end_connection()
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(BrokerUnavailable("the broker was closed before it had connected"))
        self._loop = None
        self._reset()
        self._state = "disconnected"
        self._reason = "closed"

    def subscribe(self, channel: str) -> None:
        """Have envelopes of the channel arrive. A second call for a channel does nothing."""
        if channel not in self._subscriptions:
            self._subscriptions[channel] = Subscription()
            self._changed[channel] = None
            self._flush_soon()

    def unsubscribe(self, channel: str) -> None:
        """Let no more envelopes of the channel arrive. Some that are under way still may."""
        if channel in self._own:
            return
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            fail_all(subscription.waiting, BrokerUnavailable("the node has left the channel"))
            self._changed[channel] = None
            self._flush_soon()

    def _add_receiver(self, channel: str, receive: Callable[[bytes], None]) -> None:
        self._patterns[channel] = receive

    def _remove_receiver(self, channel: str) -> None:
        self._patterns.pop(channel, None)

    async def subscribed(self, channel: str) -> None:
        """Return when every envelope that any node sends on the channel from now on arrives.

        Raises:
            BrokerUnavailable: there is no connection, it was lost, the engine has refused the subscription, or the node
                has left the channel.
        """
        if self._state != "connected" or self._loop is None:
            raise BrokerUnavailable(f"there is no connection: {self._reason}")
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            raise BrokerUnavailable("the node has not subscribed to the channel")
        if not subscription.is_confirmed:
            confirmed = self._loop.create_future()
            subscription.waiting.append(confirmed)
            try:
                await confirmed
            finally:
                # As in publish().
                del confirmed

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope to every other node that has subscribed to the channel. Return False if it was dropped."""
        return self._enqueue(Send(channel, envelope)) is None

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return the number of other nodes that the engine gives it to.

        Raises:
            BrokerUnavailable: nothing was sent: there is no connection, or too much waits.
            BrokerUncertain: the connection was lost before the answer came, or no answer came in time.
        """
        published: Published = await self._request(Send(channel, envelope, next(self._requests)))
        return published

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope, and send it to every node that has subscribed. Return False if it was dropped."""
        return self._enqueue(Store(channel, envelope, config)) is None

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and send it, and return its position. See ``HistoryBroker.publish_stored``."""
        command = Store(channel, envelope, config, idempotency_key, next(self._requests))
        published: Published = await self._request(command)
        return published

    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. See ``HistoryBroker.history``."""
        command = Read(channel, config, query, next(self._requests))
        try:
            found: StoredHistory = await self._request(command)
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None
        return found

    async def _request(self, command: Send | Store | Read | Ask) -> Any:
        """Send a command, and return the result of its answer. Raise as ``publish()`` does."""
        dropped = self._enqueue(command)
        if dropped is not None or self._loop is None or self._events is None or command.request is None:
            raise BrokerUnavailable(f"nothing was sent: {dropped}")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._pending[command.request] = Request(answer, self._events.now() + self._probe_timeout)
        try:
            return await answer
        finally:
            self._pending.pop(command.request, None)
            self._note_flushed()
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

    def sweep(self, now: float) -> None:
        """Send the probe that is due, connect again, and fail what was not answered in time."""
        if self._loop is None or self._is_closing:
            return
        for request in list(self._pending.values()):
            if now >= request.expires_at:
                fail(request.answer, BrokerUncertain("the engine has not answered in time"))
        if self._connection is None:
            if now >= self._retry_at:
                self._connect()
        elif self._probe is not None:
            if now - self._probed_at >= self._probe_timeout:
                self._connection_failed("deaf", "a probe was not answered")
        elif now - self._probed_at >= self._probe_interval:
            for channel, subscription in self._subscriptions.items():
                if subscription.request is None:
                    self._changed[channel] = None
            self._send_probe()

    def health(self) -> BrokerHealth:
        """Return how the broker is at present."""
        return BrokerHealth(
            state=self._state, reason=self._reason, pending_bytes=self._pending_bytes, probe_ms=self._probe_ms
        )

    def stats(self) -> BrokerStats:
        """Return what was counted since ``start()``."""
        return BrokerStats(
            **dataclasses.asdict(self._counts),
            subscriptions=len(self._subscriptions),
            peers=0 if self._connection is None else 1,
        )

    # What leaves.

    def _enqueue(self, command: Send | Store | Read | Ask) -> str | None:
        """Have a command leave at the end of this iteration of the loop. Return why it was dropped, or None."""
        charge = charge_of_command(command)
        if self._state != "connected" or self._is_closing:
            self._count_dropped("disconnected")
            return "there is no connection" if self._state != "connected" else "the broker is being closed"
        if self._pending_bytes + charge > self._max_pending_bytes:
            self._count_dropped("full")
            return "too much waits to be sent"
        self._outgoing.append(command)
        self._pending_bytes += charge
        self._flush_soon()
        return None

    def _count_dropped(self, reason: str) -> None:
        self._counts.dropped[reason] = self._counts.dropped.get(reason, 0) + 1

    def _flush_soon(self) -> None:
        if self._flush_handle is None and self._connection is not None and self._loop is not None:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Give the engine the changes of this iteration, then the envelopes."""
        self._flush_handle = None
        if self._connection is None:
            return
        self._enqueue_changes()
        taken = self._connection.take(self._outgoing)
        for _ in range(taken):
            self._count_sent(self._outgoing.popleft())
        if taken and (self._outgoing or self._changed):
            # The engine takes more in the next iteration. If it has taken nothing, it calls can_send() later.
            self._flush_soon()
        self._note_flushed()

    def _count_sent(self, command: Command) -> None:
        if not isinstance(command, Send | Store | Read | Ask):
            self._outgoing_changes -= not isinstance(command, Probe)
            return
        self._pending_bytes -= charge_of_command(command)
        if isinstance(command, Send | Store):
            self._counts.sent += 1
            self._counts.bytes_sent += len(command.envelope)
        if command.request is not None and command.request in self._pending:
            self._pending[command.request].is_sent = True

    def _note_flushed(self) -> None:
        """Have ``close()`` go on once nothing waits."""
        if self._flushed is not None and not self._outgoing and not self._pending:
            self._flushed.set()

    def _enqueue_changes(self) -> None:
        """Ask the engine for the channels that it lacks, and give up those that the node has left.

        While earlier changes wait, later ones stay in ``_changed``: only the last change of a channel counts.
        """
        if self._outgoing_changes:
            return
        before = len(self._outgoing)
        for channel in self._changed:
            subscription = self._subscriptions.get(channel)
            if subscription is None:
                if channel in self._requested:
                    self._requested.discard(channel)
                    self._outgoing.append(Unsubscribe(channel))
            elif subscription.request is None:
                subscription.request = next(self._requests)
                self._requested.add(channel)
                self._outgoing.append(Subscribe(channel, subscription.request))
        self._changed.clear()
        self._outgoing_changes = len(self._outgoing) - before

    def _send_probe(self) -> None:
        if self._events is not None:
            self._enqueue_changes()
            self._probe = Probe(next(self._requests), frozenset(self._requested))
            self._probed_at = self._events.now()
            self._outgoing.append(self._probe)
            self._flush_soon()

    # What arrives. The engine calls these three methods.

    def can_send(self, connection: EngineConnection) -> None:
        """Note that the engine takes commands again."""
        if connection is self._connection:
            self._flush_soon()

    def connection_lost(self, connection: EngineConnection, reason: str) -> None:
        """Note that the engine has ended the connection."""
        if connection is self._connection and not self._is_closing:
            self._connection_failed("disconnected", f"the engine has ended the connection: {reason}")
        elif connection is self._connection:
            self._end_connection()

    def answers_arrived(self, connection: EngineConnection, answers: Sequence[tuple[int, Answer]]) -> None:
        """Take answers, and envelopes."""
        for number, answer in answers:
            # The hub may close the broker while it takes an envelope.
            if connection is not self._connection:
                return
            if number != self._next_number:
                self._note_gap()
            self._next_number = number + 1
            if isinstance(answer, Arrived):
                self._receive(answer)
            elif isinstance(answer, Subscribed):
                self._confirm(answer)
            elif isinstance(answer, Refused):
                self._note_refused(answer)
            elif isinstance(answer, Answered):
                self._note_answered(answer)
            else:
                self._note_probe(answer)

    def _receive(self, arrived: Arrived) -> None:
        if arrived.channel in self._subscriptions and self._events is not None:
            self._counts.received += 1
            self._counts.bytes_received += len(arrived.envelope)
            self._patterns.get(arrived.channel, self._events.receive)(arrived.envelope)

    def _confirm(self, answer: Subscribed) -> None:
        subscription = self._subscriptions.get(answer.channel)
        # An older request says nothing: the node may have left the channel after it.
        if subscription is None or subscription.request != answer.request:
            return
        subscription.is_confirmed = True
        if subscription.interrupted:
            subscription.interrupted = False
            self._restore([answer.channel])
        for waiting in subscription.waiting:
            if not waiting.done():
                waiting.set_result(None)
        subscription.waiting.clear()

    def _note_refused(self, answer: Refused) -> None:
        subscription = self._subscriptions.get(answer.channel)
        if subscription is None or subscription.request != answer.request:
            return
        # The next sweep with a probe asks again.
        subscription.request = None
        fail_all(subscription.waiting, BrokerUnavailable("the engine has refused the subscription"))
        self._note_suspect([answer.channel], "refused")

    def _note_suspect(self, channels: Collection[str], reason: str) -> None:
        """Tell the hub about channels whose envelopes do not arrive."""
        news = [channel for channel in channels if not self._subscriptions[channel].interrupted]
        for channel in news:
            self._subscriptions[channel].interrupted = True
        if news:
            self._interrupt(news, reason)

    def _note_answered(self, answer: Answered) -> None:
        request = self._pending.get(answer.request)
        if request is not None and not request.answer.done():
            request.answer.set_result(answer.result)

    def _note_probe(self, answer: ProbeAnswer) -> None:
        if self._probe is None or answer.request != self._probe.request or self._events is None:
            return
        self._probe = None
        self._probe_ms = (self._events.now() - self._probed_at) * 1000
        lost = []
        for channel in answer.missing & self._requested:
            subscription = self._subscriptions.get(channel)
            if subscription is not None and subscription.request is not None:
                if subscription.is_confirmed:
                    lost.append(channel)
                subscription.is_confirmed = False
                subscription.request = None
                self._changed[channel] = None
        self._note_suspect(lost, "subscription lost")
        self._flush_soon()
        if self._state != "connected":
            self._note_connected()

    def _note_gap(self) -> None:
        """Tell the hub that something was lost on the way, and ask again for confirmations that may be among it."""
        for channel, subscription in self._subscriptions.items():
            if not subscription.is_confirmed:
                subscription.request = None
                self._changed[channel] = None
        self._flush_soon()
        if self._state == "connected":
            self._interrupt(None, "lost")
            self._restore(None)

    # The connection.

    def _connect(self) -> None:
        """Connect, and subscribe to everything. An answer to the probe behind it shows that both directions work."""
        if self._events is None or self._loop is None:
            return
        try:
            self._connection = self._engine.connect(self, self._node.hub, self._loop)
        except ConnectionRefusedError as error:
            self._reason = str(error)
            self._log_outage(str(error))
            self._retry_at = self._events.now() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        self._next_number = 0
        self._changed = dict.fromkeys(self._subscriptions)
        self._send_probe()

    def _note_connected(self) -> None:
        self._state = "connected"
        self._reason = ""
        self._pause = 1.0
        if self._is_outage_logged:
            self._is_outage_logged = False
            logger.info("the broker is connected again")
        if self._was_connected:
            self._counts.reconnects += 1
            self._restore(None)
        self._was_connected = True
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _connection_failed(self, state: BrokerState, reason: str) -> None:
        """Make another connection, once the hub knows that envelopes may have been lost."""
        was_connected = self._state == "connected"
        if self._was_connected:
            self._state = state
        self._reason = reason
        self._log_outage(reason)
        self._end_connection()
        if was_connected:
            self._interrupt(None, state)
        # The hub may have closed the broker.
        if not self._is_closing:
            self._connect()

    def _end_connection(self) -> None:
        """Give up the connection. Envelopes that wait were not sent; those without an answer are uncertain."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        for command in self._outgoing:
            if isinstance(command, Send):
                self._count_dropped("disconnected")
        self._outgoing.clear()
        self._outgoing_changes = 0
        self._pending_bytes = 0
        self._probe = None
        self._requested.clear()
        for subscription in self._subscriptions.values():
            subscription.request = None
            subscription.is_confirmed = False
            subscription.interrupted = False
            fail_all(subscription.waiting, BrokerUnavailable("the connection was lost"))
        for request in self._pending.values():
            if request.is_sent:
                fail(request.answer, BrokerUncertain("the connection was lost before the answer came"))
            else:
                fail(request.answer, BrokerUnavailable("nothing was sent: the connection was lost"))
        if self._flushed is not None:
            self._flushed.set()

    def _log_outage(self, reason: str) -> None:
        """Log the first failure of several."""
        if not self._is_outage_logged:
            self._is_outage_logged = True
            logger.warning("the broker has no connection, and tries again: %s", reason)

    def _interrupt(self, channels: Collection[str] | None, reason: str) -> None:
        self._counts.interruptions[reason] = self._counts.interruptions.get(reason, 0) + 1
        if self._events is not None:
            self._events.interrupted(channels, reason)

    def _restore(self, channels: Collection[str] | None) -> None:
        if self._events is not None:
            self._events.restored(channels)


def charge_of_command(command: Send | Store | Read | Ask) -> int:
    """Return the bytes that a command counts for while it waits."""
    return ENVELOPE_CHARGE + (len(command.envelope) if isinstance(command, Send | Store) else 0)
