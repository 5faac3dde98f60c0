"""Joins the hubs of the processes of one machine: no server is needed."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable

from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import (
    ALL_NODES,
    BrokerEvents,
    BrokerHealth,
    BrokerStats,
    HistoryConfig,
    NodeInfo,
    Published,
    node_channel,
)
from wshub.brokers.pattern_channels import PatternChannels
from wshub.brokers.workers_directory import SocketDirectory
from wshub.brokers.workers_histories import Histories
from wshub.brokers.workers_patterns import Patterns
from wshub.brokers.workers_presence import WorkersPresence
from wshub.brokers.workers_session import WorkersSession
from wshub.errors import BrokerUnavailable, ConfigurationError, MisuseError
from wshub.protocol.validation import check_integer

__all__ = ["WorkersBroker"]

DEAF_SECONDS = 5.0
"""If every peer has been silent for so long, this node is the one that hears nothing."""


class WorkersBroker(PatternChannels, WorkersPresence):
    """Joins the hubs of the processes of one machine.

    Each process has a Unix socket in a directory, and a connection to each other process. An envelope goes only to
    processes that have subscribed to its channel. Processes may come and go at any time: one that was killed is missed
    at once, and one that hangs after ten seconds at most.

    One process keeps the history of a room, and decides the order of its messages. It hands its histories over when its
    broker is closed. If it is killed, each of them begins a new epoch in another process.

    One process knows who is in a room. If it ends, the others tell another one.

    Args:
        path: a directory for the sockets. It is made if it is missing, for the user of the process alone. Give all
            processes the same one, and nothing else.
        max_pending: bytes that may wait for each process. While so much waits, envelopes for it are dropped and counted
            as ``full``, and it is told so.
        several_in_process: whether hubs of the same name in one process are to be joined too, as in tests. By default
            the second one is refused: they are probably not meant to be the same hub.

    Raises:
        ConfigurationError: the path is too long for Unix sockets, or the platform has none.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_pending: int = 8 << 20, several_in_process: bool = False
    ) -> None:
        if not os.fspath(path):
            raise ConfigurationError("a WorkersBroker needs the path of a directory, not an empty one")
        self.path = os.path.abspath(os.fsdecode(path))
        self.max_pending = check_integer("max_pending", max_pending, 1, 1 << 40)
        self.several_in_process = several_in_process
        SocketDirectory.check(self.path)
        self._session: WorkersSession | None = None
        # Channels that were subscribed to before start().
        self._early: dict[str, None] = {}
        self._patterns = Patterns()
        self._dropped_early = 0

    @property
    def place(self) -> str | None:
        """The directory, as a hub compares it with those of other hubs; None if those may have the same name."""
        return None if self.several_in_process else f"workers:{os.path.realpath(self.path)}"

    def __repr__(self) -> str:
        return f"WorkersBroker({self.path!r})"

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        """Join the other processes. Return when each knows the channels of this node, or is gone, or after two seconds.

        Raises:
            ConfigurationError: the directory cannot be used.
            MisuseError: it is started already.
        """
        self._abandon_closed_loop()
        if self._session is not None and not self._session.is_closed:
            raise MisuseError("this broker is started already: give each hub a broker of its own")
        directory = SocketDirectory(self.path, node.hub, node.id)
        directory.prepare()
        session = WorkersSession(asyncio.get_running_loop(), node, events, directory, self._patterns, self.max_pending)
        own = (ALL_NODES, node_channel(node.id)) if node.receives else ()
        for channel in (*own, *self._early):
            session.mesh.subscribe(channel)
        self._early.clear()
        self._dropped_early = 0
        self._session = session
        try:
            await session.start()
        except BaseException:
            await session.close()
            raise

    async def joined(self) -> None:
        """Return when the other processes can hand over to this one, or after two seconds."""
        if self._session is not None:
            await self._session.joined()

    async def close(self) -> None:
        """Hand histories over, for a few seconds at most, send what waits, and say goodbye to the other processes."""
        self._abandon_closed_loop()
        self._early.clear()
        if self._session is not None:
            await self._session.close()
        self._patterns.clear()

    def subscribe(self, channel: str) -> None:
        """Have envelopes of the channel arrive."""
        self._abandon_closed_loop()
        if self._session is None or self._session.is_closed:
            self._early[channel] = None
        else:
            self._session.mesh.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        """Let no more envelopes of the channel arrive. Some that are under way still may."""
        self._early.pop(channel, None)
        if self._session is not None:
            self._session.mesh.unsubscribe(channel)

    async def subscribed(self, channel: str) -> None:
        """Return when every process knows that this node has subscribed to the channel.

        Raises:
            BrokerUnavailable: the broker is not started or was closed, or the node has left the channel.
        """
        session = self._session
        if session is None:
            raise BrokerUnavailable("the broker is not started")
        if session.mesh.has_subscribed(channel):
            await session.barriers.wait()
        if not session.mesh.has_subscribed(channel):
            raise BrokerUnavailable("the node has left the channel")

    def _add_receiver(self, channel: str, receive: Callable[[bytes], None]) -> None:
        self._abandon_closed_loop()
        self._patterns.add(channel, receive)

    def _remove_receiver(self, channel: str) -> None:
        self._patterns.remove(channel)

    def send(self, channel: str, envelope: bytes) -> bool:
        """Queue an envelope for each process that has subscribed to the channel. Return False if one dropped it."""
        if self._session is None:
            self._dropped_early += 1
            return False
        return self._session.mesh.send(channel, envelope)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope. Return when the kernel has taken it for each process that has subscribed to the channel.

        Raises:
            BrokerUnavailable: no process got it although some have subscribed: too much waits for each, or all are
                gone; or the broker is not started.
        """
        session = self._session
        if session is None or session.is_closed:
            raise BrokerUnavailable("the broker is not started")
        peers, interested = session.mesh.send_to_each(channel, envelope)
        receivers = sum(await asyncio.gather(*(peer.departure() for peer in peers)))
        if interested and not receivers:
            raise BrokerUnavailable("no process got the message: too much waits for each, or all are gone")
        return Published(receivers=receivers)

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Have the owner of the channel store an envelope and send it. Return False if it was dropped.

        See ``HistoryBroker.send_stored``.
        """
        if self._session is None:
            self._dropped_early += 1
            return False
        return self._session.histories.send(channel, envelope, config)

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and send it, and return its position. See ``HistoryBroker.publish_stored``.

        Raises:
            BrokerUnavailable: nothing was stored: the process that keeps the history cannot be reached.
            BrokerUncertain: it has not answered. Try again with the same key.
        """
        return await self._histories().publish(channel, envelope, config, idempotency_key)

    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. See ``HistoryBroker.history``.

        Raises:
            BrokerUnavailable: the process that keeps the history cannot be reached, or has not answered.
        """
        return await self._histories().read(channel, config, query)

    def _histories(self) -> Histories:
        if self._session is None:
            raise BrokerUnavailable("the broker is not started")
        return self._session.histories

    def sweep(self, now: float) -> None:
        """Probe the other processes, end connections that are silent, and look for new processes."""
        if self._session is not None:
            self._session.sweep(now)

    def health(self) -> BrokerHealth:
        """Return how the broker is at present. ``probe_ms`` is that of the slowest peer."""
        session = self._session
        if session is None:
            return BrokerHealth(state="starting", reason="start() was not called")
        if session.is_closed:
            return BrokerHealth(state="disconnected", reason="the broker is closed")
        peers = session.peers
        pending = sum(peer.pending_bytes for peer in peers)
        probe_ms = max((peer.probe_ms for peer in peers if peer.probe_ms >= 0), default=None)
        if not session.has_started:
            return BrokerHealth(state="starting", reason="start() has not returned", pending_bytes=pending)
        if peers and all(peer.silent >= DEAF_SECONDS for peer in peers):
            reason = f"nothing was heard of the other processes for {DEAF_SECONDS:.0f} s"
            return BrokerHealth(state="deaf", reason=reason, pending_bytes=pending, probe_ms=probe_ms)
        if not peers and session.losses.nodes:
            return BrokerHealth(state="disconnected", reason="the connections to all other processes were lost")
        return BrokerHealth(state="connected", pending_bytes=pending, probe_ms=probe_ms)

    def stats(self) -> BrokerStats:
        """Return what was counted since ``start()``."""
        session = self._session
        if session is None:
            dropped = {"disconnected": self._dropped_early} if self._dropped_early else {}
            return BrokerStats(dropped=dropped, subscriptions=len(self._early))
        mesh = session.mesh
        kept, kept_bytes = session.histories.keeper.kept
        return BrokerStats(
            sent=mesh.sent,
            received=mesh.received,
            bytes_sent=mesh.bytes_sent,
            bytes_received=mesh.bytes_received,
            dropped=dict(session.histories.dropped + Counter(mesh.dropped)),
            interruptions=dict(session.losses.interruptions),
            reconnects=session.losses.reconnects,
            subscriptions=mesh.subscription_count,
            peers=len(session.peers),
            kept=kept,
            kept_bytes=kept_bytes,
        )

    def _abandon_closed_loop(self) -> None:
        """Give up a session whose loop was closed without ``close()``."""
        session = self._session
        if session is not None and session.loop.is_closed():
            if not session.is_closed:
                session.abandon()
            self._session = None
            self._patterns.clear()
