"""A node at NATS servers, from start() to close()."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl as ssl_module
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from wshub.brokers.interface import (
    ALL_NODES,
    PATTERN_CHANNELS,
    BrokerEvents,
    BrokerHealth,
    BrokerState,
    BrokerStats,
    NodeInfo,
    node_channel,
)
from wshub.brokers.nats_barriers import Barriers
from wshub.brokers.nats_connection import MessageSink, NatsConnection, NatsLogin
from wshub.brokers.nats_epochs import ChannelEpochs
from wshub.brokers.nats_history import NatsHistories
from wshub.brokers.nats_order import StoredOrder
from wshub.brokers.nats_patterns import STORED, Patterns
from wshub.brokers.nats_presence import NatsPresences
from wshub.brokers.nats_presence_stream import PresenceStream
from wshub.brokers.nats_publishing import Publishing
from wshub.brokers.nats_reading import StreamReader
from wshub.brokers.nats_reconnecting import CLOSED, KeptConnection
from wshub.brokers.nats_requests import Requests
from wshub.brokers.nats_storing import Storing
from wshub.brokers.nats_streams import Streams
from wshub.brokers.nats_subjects import SubjectNames
from wshub.brokers.nats_subscriptions import Subscriptions
from wshub.brokers.nats_trimming import Trimming
from wshub.brokers.nats_url import NatsAddress
from wshub.brokers.session_life import SessionLife
from wshub.errors import BrokerError, BrokerUncertain, ConfigurationError

__all__ = ["NatsSession", "NatsSettings"]

logger = logging.getLogger("wshub.broker")

# Seconds that close() gives to what waits to be sent.
CLOSING_SECONDS = 1.0

# Seconds between two sweeps above which the loop has stood still. Before anything counts as late, the bytes that have
# arrived meanwhile are read.
STALLED_SECONDS = 2.0

# Why a connection is replaced.
DEAF = "no probe has come back"

_REFUSAL = re.compile(r'permissions violation for (subscription|publish) to "([^"]*)"')


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """The arguments of a NatsBroker."""

    address: NatsAddress
    prefix: str
    ssl: ssl_module.SSLContext | None
    max_pending: int
    replicas: int


class NatsSession(SessionLife):
    """One connection, which subscribes and publishes.

    Args:
        settings: of the broker.
        node: that joins.
        events: the hub's side.
        wanted: channels that are to be subscribed to.
        receivers: the functions that take the envelopes of each pattern, by channel. The broker changes it.
    """

    def __init__(
        self,
        settings: NatsSettings,
        node: NodeInfo,
        events: BrokerEvents,
        wanted: set[str],
        receivers: dict[str, Callable[[bytes], None]],
    ) -> None:
        super().__init__()
        self._events = events
        self._names = SubjectNames(settings.prefix, node.hub)
        self._probe_subject = self._names.subject("probe:" + node.id)
        self._probe_sink = MessageSink(lambda message: self._barriers.heard(message.data))
        self._barriers = Barriers(events.now)
        service = (ALL_NODES, node_channel(node.id)) if node.receives else ()
        self.subscriptions = Subscriptions(
            self._names,
            service,
            wanted,
            self._take_message,
            self._take_matching,
            self._barriers,
            self._settle,
            events.now,
        )
        self.publishing = Publishing(self._names, settings.max_pending, self._barriers, events.now)
        self._requests = Requests(f"{settings.prefix}.=inbox.{node.id}", events.now)
        self._epochs = ChannelEpochs(self._names)
        self._order = StoredOrder(self._barriers, self._receive)
        self.patterns = Patterns(receivers, self._epochs, self._barriers)
        streams = Streams(self._requests, self._names, settings.replicas)
        reader = StreamReader(self._requests, settings.replicas)
        trimming = Trimming(self._requests, reader)
        self.storing = Storing(self._requests, streams, self._epochs, self.publishing, trimming)
        self.histories = NatsHistories(self._requests, streams, self._epochs, reader, self.storing)
        presence_stream = PresenceStream(self._requests, self._names, settings.replicas)
        self.presences = NatsPresences(presence_stream, self._epochs, node.id, events.now)
        self._received = 0
        self._is_deaf = False
        # Whether a barrier of the present connection has come back, and the node's own channels are subscribed to.
        self._is_heard = False
        self._is_serving = False
        self._probe_refusal = ""
        # The subscriptions by subject that are being tested: no message to them has come back yet.
        self._tested: dict[str, tuple[str, Subscription]] = {}
        # Whether the barrier behind the last tests is under way.
        self._is_testing = False
        self._interruptions: Counter[str] = Counter()
        self._swept_at = time.monotonic()
        self._kept = KeptConnection(
            NatsLogin(settings.address, settings.ssl, f"wshub:{node.id}"),
            opened=self._connection_opened,
            lost=self._connection_lost,
            refused=self._take_refusal,
            failed=self._fail,
            now=events.now,
        )

    # The beginning and the end

    async def _end(self) -> None:
        self.patterns.close()
        self.publishing.detach()
        try:
            if self._is_heard:
                await self._drain()
        finally:
            try:
                await self._kept.close()
            finally:
                self.storing.close()

    async def _drain(self) -> None:
        """Return when the engine has taken all that was sent, or after a second."""
        self.publishing.confirm()
        passed = asyncio.Event()
        self._barriers.after(lambda error: passed.set())
        try:
            async with asyncio.timeout(CLOSING_SECONDS):
                await passed.wait()
                await self.storing.drain()
        except TimeoutError:
            pass

    # The connection

    def _connection_opened(self, connection: NatsConnection) -> None:
        if self.is_closed:
            return
        connection.subscribe(self._probe_subject, self._probe_sink)
        self.subscriptions.connected(connection)
        self._barriers.after(self._first_barrier_passed)
        self._barriers.connected(lambda payload: connection.publish(self._probe_subject, payload))
        self._requests.attach(connection)
        self.histories.attached()
        self.storing.attached()
        self.presences.attached(connection.server_id)
        self.publishing.attach(connection)

    def _first_barrier_passed(self, error: BrokerUncertain | None) -> None:
        if error is None:
            self._is_heard = True
            self._probe_refusal = ""
            if self._is_deaf:
                self._is_deaf = False
                logger.info("the broker hears again")
            self._settle()

    def _connection_lost(self, reason: str) -> None:
        self._is_heard = self._is_serving = False
        self.publishing.detach()
        self._tested.clear()
        self._order.clear()
        self.patterns.clear()
        had_any = self.subscriptions.disconnected()
        error = BrokerUncertain(f"the connection to the engine has ended: {reason}")
        self._barriers.disconnected(error)
        self._requests.detach(error)
        self.storing.detached()
        self.publishing.count_unanswered()
        if had_any and reason != CLOSED and not self.is_closed:
            self._interrupt(None, "deaf" if reason == DEAF else "disconnected")

    def _interrupt(self, channels: Sequence[str] | None, reason: str) -> None:
        self._interruptions[reason] += 1
        self._events.interrupted(channels, reason)

    # What arrives

    def _take_message(self, message: Msg) -> None:
        if self.is_closed:
            return
        if message.reply:
            # A node tests its subscription. The reply says which one.
            if message.reply == self._probe_subject and not self._is_test_of_pattern(message.subject):
                self._tested.pop(message.subject, None)
            return
        if message.headers is not None and STORED in message.headers:
            place = self._epochs.place(message.subject, message.headers)
            if place is not None:
                self._order.take(message.subject, place, message.data)
            return
        self._receive(message.data)

    def _take_matching(self, channel: str, message: Msg) -> None:
        """Take a message that has arrived by a pattern."""
        if not message.reply:
            self.patterns.take(channel, message)
        elif message.reply == self._probe_subject and self._tested.get(message.subject, ("",))[0] == channel:
            del self._tested[message.subject]

    def _is_test_of_pattern(self, subject: str) -> bool:
        return subject in self._tested and self._tested[subject][0].startswith(PATTERN_CHANNELS)

    def _receive(self, envelope: bytes) -> None:
        if not self.is_closed:
            self._received += 1
            self._events.receive(envelope)

    def _settle(self) -> None:
        """Report what has changed since the last time."""
        if self.is_closed:
            return
        restored = self.subscriptions.take_restored()
        if restored:
            self._events.restored(restored)
        if not self._is_serving and self._is_heard and self.subscriptions.are_serving:
            self._is_serving = True
            if not self._started.done():
                self._started.set_result(None)

    def _take_refusal(self, text: str) -> None:
        found = _REFUSAL.search(text)
        if found is None or self.is_closed:
            return
        what, subject = found.groups()
        error = BrokerError(text)
        if subject == self._probe_subject.lower():
            self._probe_refusal = text
            self._fail(ConfigurationError(f"the engine does not let this user send and receive: {text}"))
        elif what == "subscription":
            channels = self.subscriptions.refused(subject, error)
            if channels:
                self._interrupt(channels, "refused")
            if self.subscriptions.service_error is not None:
                self._fail(ConfigurationError(f"the engine does not let this user subscribe: {text}"))
        else:
            # The test of a subscription and an envelope can be under way on one subject. Then both are refused.
            self.publishing.fail_waiting(subject, error)
            tested = [each for each in self._tested if each.lower() == subject]
            for each in tested:
                del self._tested[each]
            if not tested and not self._requests.refused(subject, error):
                self.publishing.refused(error)

    # Time

    def sweep(self, now: float) -> None:
        """Send probes, try again what was refused, and end what has taken too long."""
        swept_at, self._swept_at = self._swept_at, time.monotonic()
        self._kept.sweep(now)
        self.subscriptions.sweep(now)
        if self._swept_at - swept_at < STALLED_SECONDS and self._barriers.is_late(now):
            if not self._is_deaf:
                self._is_deaf = True
                logger.error("the broker is deaf: a probe has not come back")
            self._kept.replace(DEAF)
        if self._swept_at - swept_at < STALLED_SECONDS:
            self._requests.sweep(now)
        if self._barriers.is_due(now):
            self.publishing.confirm()
            self._barriers.sweep(now)
            self._test_some()

    def _test_some(self) -> None:
        """Send a message on some channels to itself, and to all others that have them."""
        connection = self._kept.connection
        if connection is None or self._is_testing or not self._is_serving:
            return
        self._tested = {self._names.test_subject(each[0]): each for each in self.subscriptions.next_to_test()}
        for subject in self._tested:
            connection.publish(subject, b"", self._probe_subject)
        if self._tested:
            self._is_testing = True
            self._barriers.after(self._tests_passed)

    def _tests_passed(self, error: BrokerUncertain | None) -> None:
        """Subscribe again to the tested channels whose messages have not come back before the barrier."""
        self._is_testing = False
        if error is not None or self.is_closed:
            return
        tested, self._tested = self._tested, {}
        lost = [channel for channel, each in tested.values() if self.subscriptions.resubscribe(channel, each)]
        if lost:
            self._interrupt(lost, "unsubscribed")

    # How it is

    def health(self) -> BrokerHealth:
        state, reason = self._state()
        connection, round_trip = self._kept.connection, self._barriers.round_trip
        return BrokerHealth(
            state=state,
            reason=reason,
            pending_bytes=(0 if connection is None else connection.pending_bytes) + self.storing.waiting_bytes,
            probe_ms=None if round_trip is None else round_trip * 1000,
        )

    def _state(self) -> tuple[BrokerState, str]:
        if self.is_closed:
            return "disconnected", "the broker is closed"
        failing: BrokerState = "disconnected" if self._started.done() else "starting"
        if self._is_deaf:
            return "deaf", DEAF
        if self._kept.connection is None:
            return failing, self._kept.reason
        if self._probe_refusal:
            return failing, f"the engine refuses messages: {self._probe_refusal}"
        if not self._is_serving:
            return failing, str(self.subscriptions.service_error or "the engine has not acknowledged the subscriptions")
        return "connected", ""

    def stats(self) -> BrokerStats:
        kept = self._kept
        return BrokerStats(
            sent=self.publishing.sent + self.storing.stored,
            received=self._received + self.patterns.received,
            bytes_sent=kept.bytes_sent,
            bytes_received=kept.bytes_received,
            dropped={reason: count + self.storing.dropped[reason] for reason, count in self.publishing.dropped.items()},
            interruptions=dict(self._interruptions),
            reconnects=max(kept.opened_count - 1, 0),
            subscriptions=self.subscriptions.wanted_count,
            peers=int(kept.connection is not None),
        )
