"""A node at a Redis or Valkey engine, from start() to close()."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from wshub.brokers.interface import (
    BrokerEvents,
    BrokerHealth,
    BrokerState,
    BrokerStats,
    NodeInfo,
)
from wshub.brokers.reconnecting import CLOSED
from wshub.brokers.redis_calls import ScriptCalls
from wshub.brokers.redis_commands import pack_command, publish_command
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_failover import FAILOVER, PrimaryFollower
from wshub.brokers.redis_histories import RedisHistories
from wshub.brokers.redis_place import EnginePlace, RedisSettings, place_of
from wshub.brokers.redis_presence_scripts import BEAT, ENTER, LEAVE, OWN, TAKE_OVER
from wshub.brokers.redis_presences import RedisPresences
from wshub.brokers.redis_probes import TIMEOUT, Probes
from wshub.brokers.redis_publishing import Publishing
from wshub.brokers.redis_reader import RedisReader
from wshub.brokers.redis_reconnecting import KeptConnection
from wshub.brokers.redis_scripts import READ, publish_script
from wshub.brokers.redis_subscriptions import REDIRECTION, Subscriptions
from wshub.brokers.session_life import SessionLife
from wshub.errors import BrokerError, BrokerUncertain, ConfigurationError

__all__ = ["MOVED_AWAY", "RedisSession"]

logger = logging.getLogger("wshub.broker")

# Seconds that close() gives to what waits to be sent.
CLOSING_SECONDS = 1.0

# Seconds between two sweeps above which the loop has stood still. Before anything counts as late, the bytes that have
# arrived meanwhile are read.
STALLED_SECONDS = 2.0

# Maximum number of channels of which each interval asks the engine whether it has the subscription.
SAMPLE = 16

# With the two that publish, all scripts that an engine is sent.
SCRIPTS = (READ, ENTER, LEAVE, BEAT, TAKE_OVER, OWN)

# Why a connection is replaced.
DEAF = "no probe has come back"
UNANSWERED = "the engine does not answer"
MOVED_AWAY = "the engine does not own its slots any more"

# The reasons that the hub is told by a word of their own.
INTERRUPTIONS = {DEAF: "deaf", FAILOVER: "failover", MOVED_AWAY: "failover"}


class RedisSession(SessionLife):
    """Two connections and what they carry: one subscribes, the other one publishes.

    Subscriptions bring all that is published. On the same connection, the answer to a command would wait behind it.

    Args:
        settings: of the broker.
        node: that joins.
        events: the hub's side.
        wanted: channels that are to be subscribed to.
        place: the engine; by default the one that the settings name.
    """

    def __init__(
        self,
        settings: RedisSettings,
        node: NodeInfo,
        events: BrokerEvents,
        wanted: set[str],
        place: EnginePlace | None = None,
    ) -> None:
        place = place_of(settings, node, events) if place is None else place
        super().__init__()
        self._node = node
        self._events = events
        self._receiver = place.receiver
        self._hooks = place.hooks
        self._log = place.log
        self.names = place.names
        self._probe_channel = self._last_probed = place.probe_channel
        self.subscriptions = Subscriptions(self.names, (*place.service, self._probe_channel), wanted, events.now)
        self.publishing = Publishing(self.names, settings.max_pending, events.now)
        publish_scripts = [publish_script(self.names.publish_word, answers=answers) for answers in (True, False)]
        self.calls = ScriptCalls(self.publishing, (*SCRIPTS, *publish_scripts))
        self._probes = Probes()
        self._is_deaf = False
        # Whether the present connection has subscribed to the node's own channels.
        self._is_serving = False
        self._probe_refusal = ""
        # Channels that the engine did not know when it was asked last, and whether it lets this node ask.
        self._suspects: set[str] = set()
        # Channels that the engine has lost, and that are still to be reported.
        self._unsubscribed: list[str] = []
        self._may_ask = True
        self._interruptions: Counter[str] = Counter()
        self._swept_at = time.monotonic()
        self._subscriber = KeptConnection(
            place.target(settings, f"wshub:{node.id}:subscriber", events),
            self._create_subscribing_reader,
            opened=self._subscriber_opened,
            lost=self._subscriber_lost,
            failed=self._fail,
        )
        self._publisher = KeptConnection(
            place.target(settings, f"wshub:{node.id}:publisher", events),
            self._create_publishing_reader,
            opened=self._publisher_opened,
            lost=self._publisher_lost,
            failed=self._fail,
        )
        self._follower: PrimaryFollower | None = None
        if place.follows:
            self._follower = PrimaryFollower(place.find, self._subscriber, self._publisher, self._taken)

    @cached_property
    def histories(self) -> RedisHistories:
        """The histories in the engine."""
        return RedisHistories(self.names, self.calls)

    @cached_property
    def presences(self) -> RedisPresences:
        """The presence in the engine."""
        return RedisPresences(self.names, self.calls, self._node.id)

    def _create_subscribing_reader(self) -> RedisReader:
        name = self.names.encode(self._probe_channel)
        return RedisReader(self._receiver, name, self._take_push, self._settle, self._subscription_refused)

    def _create_publishing_reader(self) -> RedisReader:
        name = self.names.encode(self._probe_channel)
        return RedisReader(
            self._receiver, name, lambda items: None, lambda: None, self.publishing.refused, self.calls.refused
        )

    # The beginning and the end

    async def _end(self) -> None:
        self.publishing.disconnected()
        try:
            if self._follower is not None:
                await self._follower.close()
            await self._subscriber.close()
            if self._publisher.connection is not None:
                await self._publisher.connection.drain(CLOSING_SECONDS)
        finally:
            await self._publisher.close()

    def _check_started(self) -> None:
        if self._is_serving and self._publisher.connection is not None and not self._started.done():
            self._started.set_result(None)

    # The connection that publishes

    def _publisher_opened(self, connection: RedisConnection) -> None:
        if self.is_closed:
            return
        self.publishing.connected(connection)
        self._send_probe()
        self._check_started()
        if self._follower is not None:
            self._follower.publisher_opened()
        if self._hooks is not None:
            self._hooks.publisher_opened()

    def _publisher_lost(self, reason: str) -> None:
        self.publishing.disconnected()
        self._probes.forget_answers()

    # The connection that subscribes

    def _subscriber_opened(self, connection: RedisConnection) -> None:
        self.subscriptions.connected(connection.write)
        if self._follower is not None:
            self._follower.subscriber_opened()

    def _subscriber_lost(self, reason: str) -> None:
        self._is_serving = False
        self._suspects.clear()
        self._unsubscribed.clear()
        self._probes.forget_all()
        if self.subscriptions.disconnected() and reason != CLOSED and not self.is_closed:
            self._interrupt(None, INTERRUPTIONS.get(reason, "disconnected"))
        if self._hooks is not None and reason != CLOSED and not self.is_closed:
            self._hooks.subscriber_lost()

    def _interrupt(self, channels: Sequence[str] | None, reason: str) -> None:
        self._interruptions[reason] += 1
        self._events.interrupted(channels, reason)

    def _take_push(self, items: list[Any]) -> None:
        kind = items[0] if len(items) == 3 else None
        if not isinstance(kind, bytes) or not isinstance(items[1], bytes):
            return
        if kind in (b"subscribe", b"ssubscribe"):
            self._note_lost(self.subscriptions.acknowledged(items[1], items[2]))
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            self._note_lost(self.subscriptions.unsubscribed(items[1], items[2]))
        elif kind in (b"message", b"smessage"):
            self._hear_probe(items[2])

    def _note_lost(self, channel: str | None) -> None:
        """Note a channel whose subscription the engine had lost, if there is one. ``_settle()`` reports it."""
        if channel is not None:
            self._unsubscribed.append(channel)

    def _settle(self) -> None:
        """Report what the pushes since the last envelope have changed."""
        self._report_unsubscribed()
        restored = [channel for channel in self.subscriptions.take_restored() if channel != self._probe_channel]
        if restored:
            self._events.restored(restored)
        if not self._is_serving and self.subscriptions.are_serving:
            self._is_serving = True
            # It ends the state "deaf", and begins to measure.
            self._send_probe()
            self._check_started()
        if self._hooks is not None:
            self._hooks.changed()

    def _subscription_refused(self, error: BrokerError) -> None:
        self.subscriptions.refused(error)
        if self._hooks is not None and str(error).startswith(REDIRECTION):
            self._hooks.redirected(str(error), by_subscriber=True)
        self._report(self.subscriptions.take_refused(), "refused")
        refusal = self.subscriptions.service_error
        if refusal is not None and str(refusal).startswith("NOPERM"):
            self._fail(ConfigurationError(f"the engine does not let this user subscribe: {refusal}"))

    def _report_unsubscribed(self) -> None:
        """Report the channels that the engine has lost, and that are subscribed to again."""
        channels, self._unsubscribed = self._unsubscribed, []
        self._report(channels, "unsubscribed")

    def _report(self, channels: list[str], reason: str) -> None:
        """Tell the hub that channels were interrupted, unless the hub has not subscribed to any of them."""
        known = [channel for channel in channels if channel != self._probe_channel]
        if known:
            self._interrupt(known, reason)

    # Time

    def sweep(self, now: float) -> None:
        """Send probes, try again what was refused, and end what has taken too long."""
        swept_at, self._swept_at = self._swept_at, time.monotonic()
        for kept in (self._subscriber, self._publisher):
            kept.sweep(now)
        if self._follower is not None and not self.is_closed:
            self._follower.sweep(now)
        self.subscriptions.sweep(now)
        if self._swept_at - swept_at < STALLED_SECONDS:
            self.publishing.sweep(now)
            self._judge(now)
        if self._probes.is_due(now):
            self._send_probe()
            self._ask_for_sample()
            self.subscriptions.probe()

    def _judge(self, now: float) -> None:
        verdict = self._probes.verdict(now)
        if verdict == "unanswered":
            self._publisher.replace(UNANSWERED)
        elif verdict == "deaf":
            if not self._is_deaf:
                self._is_deaf = True
                logger.error("the broker is deaf: the engine has taken a probe that has not come back")
            self._subscriber.replace(DEAF)
        elif self.subscriptions.waiting_time(now) >= TIMEOUT:
            self._subscriber.replace(UNANSWERED)

    def _send_probe(self) -> None:
        connection = self._publisher.connection
        if connection is not None:
            audible = self._is_serving and self.subscriptions.are_serving
            number = self._probes.send(self._events.now(), audible=audible)
            self._last_probed = self._probe_channel
            command = publish_command(self.names.publish_head(self._probe_channel), b"%d" % number)
            connection.request(command, partial(self._take_probe_answer, number))

    def _take_probe_answer(self, number: int, reply: Any) -> None:
        if isinstance(reply, BrokerUncertain):
            return
        if isinstance(reply, BrokerError):
            # It tells nothing about what is received.
            self._probes.refused(number)
            if self._hooks is not None and str(reply).startswith(REDIRECTION):
                self._hooks.redirected(str(reply), by_subscriber=False)
            else:
                self._probe_refusal = str(reply)
        else:
            self._probe_refusal = ""
            self._probes.answered(number, self._events.now())

    def _hear_probe(self, payload: Any) -> None:
        if not isinstance(payload, bytes) or len(payload) > 20 or not payload.isdigit():
            return
        if self._probes.heard(int(payload), self._events.now()) and self._is_deaf:
            self._is_deaf = False
            logger.info("the broker hears again")

    def _ask_for_sample(self) -> None:
        """Ask the engine for the subscriptions of some channels, and of those that it did not know last time."""
        connection = self._publisher.connection
        if connection is None or not self._is_serving or not self._may_ask:
            return
        if connection.is_cluster and self._hooks is None:
            # A subscription may be at any node, and only that node counts it.
            return
        channels = {*self.subscriptions.sample(SAMPLE), *filter(self.subscriptions.is_subscribed, self._suspects)}
        command = pack_command(*self.names.count_words, *map(self.names.encode, channels))
        connection.request(command, partial(self._take_sample, channels, self._subscriber.opened_count))

    def _take_sample(self, channels: set[str], generation: int, reply: Any) -> None:
        if generation != self._subscriber.opened_count or isinstance(reply, BrokerUncertain):
            return
        counts = parse_numsub(reply)
        if counts is None:
            self._may_ask = False
            logger.info("the engine does not tell its subscriptions, so single ones are not checked: %s", reply)
            return
        missing = {
            channel
            for channel in channels
            if counts.get(self.names.encode(channel)) == 0 and self.subscriptions.is_subscribed(channel)
        }
        # A single answer may have crossed a change.
        lost = [channel for channel in missing & self._suspects if self.subscriptions.resubscribe(channel)]
        self._suspects = missing.difference(lost)
        self._unsubscribed += lost
        self._report_unsubscribed()

    # A cluster

    @property
    def is_connected(self) -> bool:
        """Whether the engine takes messages."""
        return self._publisher.connection is not None

    @property
    def is_serving(self) -> bool:
        """Whether the engine takes messages, and brings them."""
        return self.is_connected and self._is_serving

    @property
    def started(self) -> asyncio.Future[None]:
        """Done when both connections work; it has the ConfigurationError that keeps them from opening."""
        return self._started

    @property
    def connection(self) -> RedisConnection | None:
        """The connection for commands; None if there is none."""
        return self._publisher.connection

    @property
    def probe_channel(self) -> str:
        """The channel of the probes."""
        return self._probe_channel

    def move_probes(self, channel: str) -> None:
        """Send probes through another channel from now on."""
        self._probe_channel = channel
        self._probes.forget_all()
        self.subscriptions.replace_service(channel)
        if self._subscriber.connection is not None:
            # A probe may be on its way.
            reader = self._subscriber.connection.reader
            reader.earlier_probe_channel = self.names.encode(self._last_probed)
            reader.probe_channel = self.names.encode(channel)

    def forget_outage(self) -> None:
        """Have a log wait no more for the connections. Call it after ``close()``."""
        for kept in (self._subscriber, self._publisher):
            self._log.up(kept)

    def leave_subscriptions(self) -> None:
        """Replace the connection that subscribes: the engine may bring messages of slots that it does not own."""
        self._subscriber.replace(MOVED_AWAY)

    # How it is

    def health(self) -> BrokerHealth:
        state, reason = self._state()
        pending = sum(
            kept.connection.pending_bytes for kept in (self._subscriber, self._publisher) if kept.connection is not None
        )
        round_trip = self._probes.round_trip
        return BrokerHealth(
            state=state,
            reason=reason,
            pending_bytes=pending,
            probe_ms=None if round_trip is None else round_trip * 1000,
        )

    def _state(self) -> tuple[BrokerState, str]:
        if self.is_closed:
            return "disconnected", "the broker is closed"
        failing: BrokerState = "disconnected" if self._started.done() else "starting"
        if self._is_deaf:
            return "deaf", DEAF
        for kept in (self._subscriber, self._publisher):
            if kept.connection is None:
                return failing, kept.reason
        if not self._is_serving:
            return failing, str(self.subscriptions.service_error or "the engine has not acknowledged the subscriptions")
        if self._probe_refusal:
            return "disconnected", f"the engine refuses messages: {self._probe_refusal}"
        return "connected", ""

    @property
    def _unanswered(self) -> int:
        return self.publishing.dropped["unanswered"] + self._publisher.envelopes_unanswered

    def _taken(self) -> int:
        """Return the number of envelopes that engines have taken, or are about to take."""
        publishing = self.publishing
        sent = self._publisher.envelopes_sent + publishing.published
        return sent - publishing.dropped["refused"] - self._unanswered

    def stats(self) -> BrokerStats:
        publishing, subscriber, publisher = self.publishing, self._subscriber, self._publisher
        failover = self._follower.lost if self._follower is not None else 0
        return BrokerStats(
            sent=self._taken() - failover,
            received=subscriber.envelopes_received,
            bytes_sent=subscriber.bytes_sent + publisher.bytes_sent,
            bytes_received=subscriber.bytes_received + publisher.bytes_received,
            dropped={
                "disconnected": publishing.dropped["disconnected"],
                "full": publishing.dropped["full"],
                "refused": publishing.dropped["refused"],
                "unanswered": self._unanswered,
                "failover": failover,
                "too_large": publishing.dropped["too_large"],
            },
            interruptions=dict(self._interruptions),
            reconnects=sum(max(kept.opened_count - 1, 0) for kept in (subscriber, publisher)),
            # One channel is that of the probes.
            subscriptions=self.subscriptions.wanted_count - 1,
            peers=sum(kept.connection is not None for kept in (subscriber, publisher)),
        )


def parse_numsub(reply: Any) -> dict[bytes, int] | None:
    """Return the number of subscribers of each channel, or None if the engine has not said it."""
    if isinstance(reply, dict):
        return reply
    if not isinstance(reply, list) or len(reply) % 2:
        return None
    return dict(zip(reply[::2], reply[1::2], strict=True))
