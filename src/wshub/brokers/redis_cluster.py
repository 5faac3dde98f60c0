"""A node at a Redis or Valkey cluster, from start() to close()."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Iterable, Set
from dataclasses import fields, replace
from functools import cached_property

from wshub.brokers.interface import BrokerEvents, BrokerHealth, BrokerState, BrokerStats, NodeInfo
from wshub.brokers.reconnecting import OutageLog
from wshub.brokers.redis_asking import Asking
from wshub.brokers.redis_cluster_calls import ClusterCalls
from wshub.brokers.redis_cluster_losses import ClusterLosses
from wshub.brokers.redis_cluster_presences import ClusterPresences
from wshub.brokers.redis_cluster_publishing import ClusterPublishing
from wshub.brokers.redis_cluster_subscriptions import REST_SECONDS, ClusterSubscriptions
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_histories import RedisHistories
from wshub.brokers.redis_partitions import Partitions, ShardedNames
from wshub.brokers.redis_place import PROBE_CHANNELS, EnginePlace, RedisSettings, finder, own_channels
from wshub.brokers.redis_session import RedisSession
from wshub.brokers.redis_topology import ClusterView, Topology, redirection
from wshub.brokers.redis_url import ClusterAddress, RedisAddress
from wshub.brokers.sequence_numbers import InOrderReceiver
from wshub.brokers.session_life import SessionLife
from wshub.errors import ConfigurationError
from wshub.links.reactor_api import Reactor

__all__ = ["RedisClusterSession"]

# Seconds that start() gives to engines that have none of the node's own channels.
OTHER_ENGINES_SECONDS = 5.0

# How often a partition may move in as many seconds. Engines that do not agree pass it to and fro.
MOVES = 5
MOVES_SECONDS = 2.0

# Seconds for which another owner of a slot is known before the present one counts as cut off, if it does not say so
# itself.
DOUBT_SECONDS = 2.0


# Seconds for which connections to an engine stay after it was asked for a key of a slot that it does not own yet.
IMPORTING_SECONDS = 30.0


class ClusterEngine:
    """An engine of the cluster. It is the hooks, and the hub's side, of the session there."""

    def __init__(self, cluster: RedisClusterSession, address: RedisAddress, partition: int) -> None:
        self.address = address
        self.imports_until = 0.0
        """Until when it may have keys of a slot that moves to it."""
        self._cluster = cluster
        self.session = RedisSession(cluster.settings, cluster.node, self, set(), self._place(partition))

    def _place(self, partition: int) -> EnginePlace:
        cluster = self._cluster
        return EnginePlace(
            finder(self.address),
            "cluster primary",
            cluster.names,
            (),
            cluster.probe_channel(partition),
            cluster.receiver,
            cluster.log,
            gives_up=not cluster.is_started,
            hooks=self,
        )

    # BrokerEvents

    @property
    def reactor(self) -> Reactor:
        return self._cluster.events.reactor

    def now(self) -> float:
        return self._cluster.events.now()

    def receive(self, envelope: bytes) -> None:
        self._cluster.events.receive(envelope)

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        affected = self.session.subscriptions.wanted if channels is None else channels
        if affected:
            self._cluster.interruptions[reason] += 1
            self._cluster.events.interrupted(affected, reason)

    def restored(self, channels: Collection[str] | None) -> None:
        self._cluster.events.restored(channels)

    # ClusterHooks

    def redirected(self, text: str, *, by_subscriber: bool) -> None:
        self._cluster.engine_redirected(self, text, by_subscriber=by_subscriber)

    def publisher_opened(self) -> None:
        self._cluster.publisher_opened()

    def changed(self) -> None:
        self._cluster.changed()

    def subscriber_lost(self) -> None:
        self._cluster.subscriber_lost(self)


class RedisClusterSession(SessionLife):
    """A session at each engine that owns a partition, and the way of each channel to its engine.

    Args:
        settings: of the broker.
        node: that joins.
        events: the hub's side.
        wanted: channels that are to be subscribed to.
    """

    def __init__(self, settings: RedisSettings, node: NodeInfo, events: BrokerEvents, wanted: set[str]) -> None:
        address = settings.address
        assert isinstance(address, ClusterAddress)
        super().__init__()
        self.settings = settings
        self.node = node
        self.events = events
        self.log = OutageLog(address)
        self.partitions = Partitions(address.partitions)
        self.names = ShardedNames(settings.prefix, node.hub, self.partitions)
        self._template = address.seeds[0]
        self._starts_anyway_at: float | None = None
        self._engines: dict[RedisAddress, ClusterEngine] = {}
        self._of_session: dict[RedisSession, ClusterEngine] = {}
        self._owners: list[RedisSession | None] = [None] * address.partitions
        # The highest epoch in which each partition was seen; another owner that one view has named, and when.
        self._epochs = [0] * address.partitions
        self._doubts: dict[int, tuple[RedisAddress, float]] = {}
        self._recent_moves: Counter[int] = Counter()
        self._moves_since = events.now()
        self.interruptions: Counter[str] = Counter()
        """Interruptions that the hub was told, by reason."""
        self._own = own_channels(node)
        self.subscriptions = ClusterSubscriptions(
            self.names, self._owners, wanted.union(self._own), events.now, self._are_mates
        )
        self.publishing = ClusterPublishing(self.names, self, settings.max_pending, events.now)
        self.calls = ClusterCalls(self.publishing)
        self.receiver = InOrderReceiver(events, self._note_late)
        """Takes the envelopes of all engines."""
        # Partitions of which envelopes came late.
        self._late: set[int] = set()
        self._losses = ClusterLosses(self.publishing.sent)
        # Engines that own nothing any more, until their sessions are closed, and what those have counted.
        self._closing: set[asyncio.Task[None]] = set()
        self._past = BrokerStats()
        # The engines of a shard, by each of them: the primary, and its replicas.
        self._shards: dict[RedisAddress, frozenset[RedisAddress]] = {}
        self._topology = Topology(
            address,
            Asking(events.reactor, settings.ssl, f"wshub:{node.id}:topology"),
            self.names,
            self._connections_to_ask,
            self._take_view,
            self._fail,
            settings.address_remap,
            events.now,
        )

    @cached_property
    def histories(self) -> RedisHistories:
        """The histories in the engines."""
        return RedisHistories(self.names, self.calls)

    @cached_property
    def presences(self) -> ClusterPresences:
        """The presence in the engines."""
        return ClusterPresences(self.names, self.calls, self.node.id)

    @property
    def is_started(self) -> bool:
        """Whether ``start()`` has returned."""
        return self._started.done()

    def probe_channel(self, partition: int) -> str:
        """Return the channel of the probes at the engine that owns a partition."""
        return self.partitions.name_in(partition, f"{PROBE_CHANNELS}{self.node.id}:")

    # The beginning and the end

    async def _end(self) -> None:
        self.publishing.detach()
        await self._topology.close()
        for engine in self._engines.values():
            self._closing.add(self.loop.create_task(engine.session.close()))
        if self._closing:
            await asyncio.wait(self._closing)

    def _check_started(self) -> None:
        if self._started.done() or None in self._owners:
            return
        if not all(map(self.subscriptions.is_subscribed, self._own)):
            return
        sessions = self._owning()
        if all(session.is_serving for session in sessions):
            self._started.set_result(None)
        elif self._starts_anyway_at is None:
            self._starts_anyway_at = self.events.now() + OTHER_ENGINES_SECONDS
        elif self.events.now() >= self._starts_anyway_at and any(session.is_serving for session in sessions):
            self._started.set_result(None)

    def _owning(self) -> set[RedisSession]:
        """Return the sessions at engines that own a partition."""
        return {session for session in self._owners if session is not None}

    def _session_started(self, started: asyncio.Future[None]) -> None:
        error = started.exception() if not started.cancelled() else None
        if isinstance(error, ConfigurationError):
            self._fail(error)

    # The owners of the partitions

    def _connections_to_ask(self) -> list[tuple[RedisAddress, RedisConnection]]:
        """Note that the engines are asked for their slots. Return the connections for the question."""
        self._losses.ask()
        return [
            (engine.address, connection)
            for engine in self._engines.values()
            if (connection := engine.session.connection) is not None
        ]

    def _take_view(self, view: ClusterView, asked: RedisAddress) -> None:
        """Compare a view with the owners that are known.

        A view that differs may be older, or the cluster may be about to change. So it takes two that agree, unless the
        present owner cannot be reached: an owner that has lost a slot says so itself.
        """
        if self.is_closed:
            return
        now = self.events.now()
        changes: dict[int, RedisAddress] = {}
        losing: set[int] = set()
        for partition, slot in enumerate(self.partitions.slots):
            claim = view.claim(slot)
            if claim is None or claim.epoch < self._epochs[partition]:
                continue
            self._epochs[partition] = claim.epoch
            address = self._template.at(claim.host, claim.port)
            owner = self._owners[partition]
            if owner is None:
                changes[partition] = address
            elif self._of_session[owner].address == address:
                self._doubts.pop(partition, None)
                if address != asked or len(self._engines) == 1:
                    # An engine that is cut off still names itself.
                    self._losses.confirm(partition)
            elif not owner.is_connected or self._doubts.get(partition, (None, now))[0] == address:
                changes[partition] = address
                if owner.is_connected or partition in self._doubts:
                    losing.add(partition)
            else:
                self._doubts[partition] = address, now
        for claim in view.claims:
            places = ((claim.host, claim.port), *claim.replicas)
            shard = frozenset(self._template.at(*place) for place in places)
            self._shards.update(dict.fromkeys(shard, shard))
        if self._doubts:
            self._topology.ask_soon()
        if changes:
            self._change_owners(changes, losing)
        self._check_started()

    def engine_redirected(self, engine: ClusterEngine, text: str, *, by_subscriber: bool) -> None:
        """Take the answer of an engine that it does not own a slot."""
        found = redirection(text, engine.address, self.settings.address_remap)
        partition = self.partitions.of_slot(found[0]) if found is not None else None
        self._topology.ask_soon()
        if found is None or partition is None or self.is_closed:
            return
        address = self._template.at(found[1], found[2])
        if self._owners[partition] is engine.session and address != engine.address and self._may_move(partition):
            since = self._doubts.get(partition, (None, math.inf))[1]
            is_late = self.events.now() - since >= DOUBT_SECONDS
            self._change_owners({partition: address}, {partition} if is_late else frozenset())
        if by_subscriber:
            # The engine has ended the subscriptions of the slot before it said this.
            self.subscriptions.follow({partition}, silent={partition})
            self._close_idle_engines()

    # ClusterRoutes

    def owner(self, partition: int) -> RedisSession | None:
        return self._owners[partition]

    def redirected(self, text: str, partition: int) -> None:
        owner = self._owners[partition]
        if owner is not None:
            self.engine_redirected(self._of_session[owner], text, by_subscriber=False)

    def importer(self, text: str, partition: int) -> RedisSession | None:
        owner = self._owners[partition]
        if owner is None or self.is_closed:
            return None
        found = redirection(text, self._of_session[owner].address, self.settings.address_remap)
        if found is None:
            return None
        engine = self._engine(self._template.at(found[1], found[2]), partition)
        engine.imports_until = self.events.now() + IMPORTING_SECONDS
        return engine.session

    # Envelopes that came late

    def _note_late(self, partition: int) -> None:
        if not self._late:
            self.loop.call_soon(self._report_late)
        self._late.add(partition)

    def _report_late(self) -> None:
        """Tell the hub that envelopes were lost: later ones had arrived before, so they were rejected."""
        late, self._late = self._late, set()
        channels = self.subscriptions.wanted_in(late)
        if channels and not self.is_closed:
            self.interruptions["late"] += 1
            self.events.interrupted(channels, "late")
            self.events.restored(channels)

    def _may_move(self, partition: int) -> bool:
        now = self.events.now()
        if now - self._moves_since >= MOVES_SECONDS:
            self._moves_since = now
            self._recent_moves.clear()
        self._recent_moves[partition] += 1
        return self._recent_moves[partition] <= MOVES

    def _change_owners(self, changes: dict[int, RedisAddress], losing: Set[int]) -> None:
        """Have other engines own some partitions. The old owners may have kept messages of those in ``losing``."""
        left: set[ClusterEngine] = set()
        for partition, address in changes.items():
            old = self._owners[partition]
            new = self._owners[partition] = self._engine(address, partition).session
            # While the partition moved there, it has refused the channel of the probes.
            new.subscriptions.retry_soon()
            self._doubts.pop(partition, None)
            self._losses.owner_changed(partition, lost=partition in losing)
            if old is not None:
                left.add(self._of_session[old])
                self.publishing.begin_move(partition, old, REST_SECONDS if self._are_mates(old, new) else 0.0)
        self.subscriptions.follow(changes.keys())
        for engine in left:
            self._move_probes(engine)
        self._close_idle_engines()
        self.publishing.finish_moves()

    def _are_mates(self, session: RedisSession, other: RedisSession | None) -> bool:
        """Return whether one of the engines has been a replica of the other one."""
        if other is None:
            return False
        place, mate = self._of_session[session].address, self._of_session[other].address
        return mate in self._shards.get(place, ()) or place in self._shards.get(mate, ())

    def _engine(self, address: RedisAddress, partition: int) -> ClusterEngine:
        engine = self._engines.get(address)
        if engine is None:
            engine = self._engines[address] = ClusterEngine(self, address, partition)
            self._of_session[engine.session] = engine
            engine.session.started.add_done_callback(self._session_started)
        return engine

    def _move_probes(self, engine: ClusterEngine) -> None:
        """Have the probes of an engine go through a partition that it owns."""
        session = engine.session
        if self._owners[self.names.group(session.probe_channel)] is session:
            return
        if session in self._owners:
            session.move_probes(self.probe_channel(self._owners.index(session)))

    def _close_idle_engines(self) -> None:
        for engine in list(self._engines.values()):
            session = engine.session
            is_importing = self.events.now() < engine.imports_until
            if session not in self._owners and not self.subscriptions.holds(session) and not is_importing:
                del self._engines[engine.address]
                task = self.loop.create_task(self._close_engine(engine))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def _close_engine(self, engine: ClusterEngine) -> None:
        await engine.session.close()
        engine.session.forget_outage()
        self._past = added([self._past, engine.session.stats()])
        self._of_session.pop(engine.session, None)

    # What the sessions tell

    def publisher_opened(self) -> None:
        """Note that a connection that takes commands was opened."""
        self._topology.connection_opened()
        self.changed()

    def changed(self) -> None:
        """Note that such a connection was opened, or that subscriptions were acknowledged."""
        self.publishing.finish_moves()
        self._check_started()

    def subscriber_lost(self, engine: ClusterEngine) -> None:
        """Note that an engine brings no more messages."""
        self._topology.ask_soon()
        self.subscriptions.follow_all(engine.session)
        self._close_idle_engines()

    # Time

    def sweep(self, now: float) -> None:
        """Send probes, try again what was refused, and end what has taken too long."""
        if self.is_closed:
            return
        if any(not session.is_serving for session in self._owning()):
            self._topology.ask_soon()
        self._topology.sweep(now)
        for engine in list(self._engines.values()):
            engine.session.sweep(now)
        self.publishing.sweep(now)
        self.subscriptions.sweep(now)
        self._close_idle_engines()
        self._check_started()

    # How it is

    def health(self) -> BrokerHealth:
        state, reason = self._state()
        found = [engine.session.health() for engine in self._engines.values()]
        times = [health.probe_ms for health in found if health.probe_ms is not None]
        return BrokerHealth(
            state=state,
            reason=reason,
            pending_bytes=sum(health.pending_bytes for health in found) + self.publishing.pending_bytes,
            probe_ms=max(times, default=None),
        )

    def _state(self) -> tuple[BrokerState, str]:
        if self.is_closed:
            return "disconnected", "the broker is closed"
        failing: BrokerState = "disconnected" if self._started.done() else "starting"
        if None in self._owners:
            return failing, self._topology.reason if not self._engines else "some slots have no owner"
        if self._topology.mismatch:
            return failing, self._topology.mismatch
        for engine in self._engines.values():
            health = engine.session.health()
            if not health.ok and engine.session in self._owners:
                state = failing if health.state == "starting" else health.state
                return state, f"{engine.address}: {health.reason}"
        return "connected" if self._started.done() else "starting", ""

    def stats(self) -> BrokerStats:
        publishing = self.publishing
        total = added([self._past, *(session.stats() for session in self._of_session)])
        dropped = Counter(total.dropped)
        dropped.update(publishing.dropped)
        dropped["failover"] += self._losses.total
        sent = total.sent + publishing.published - publishing.redirected - self._losses.total
        return replace(
            total,
            sent=sent,
            received=total.received - self.receiver.rejected,
            dropped=dict(dropped),
            interruptions=dict(self.interruptions),
            subscriptions=total.subscriptions + self.subscriptions.unplaced_count,
        )


def added(all_stats: Iterable[BrokerStats]) -> BrokerStats:
    """Return the sums of counts."""
    sums: dict[str, object] = {}
    every = list(all_stats)
    for each in fields(BrokerStats):
        values = [getattr(stats, each.name) for stats in every]
        if each.name in ("dropped", "interruptions"):
            counts: Counter[str] = Counter()
            for value in values:
                counts.update(value)
            sums[each.name] = dict(counts)
        elif None not in values:
            # Otherwise it is a count that no session has.
            sums[each.name] = sum(values)
    return BrokerStats(**sums)  # type: ignore[arg-type]
