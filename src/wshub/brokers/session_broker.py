"""A broker whose work is done by a session, from each start to the close after it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import BrokerEvents, BrokerHealth, BrokerStats, HistoryConfig, NodeInfo, Published
from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.errors import BrokerUnavailable, MisuseError

__all__ = ["SessionBroker"]


class SessionSubscriptions(Protocol):
    """The subscriptions of a session."""

    def want(self, channel: str) -> None: ...

    def unwant(self, channel: str) -> None: ...

    async def wait(self, channel: str) -> None: ...


class SessionPublishing(Protocol):
    """Sends the envelopes of a session."""

    def send(self, channel: str, envelope: bytes) -> bool: ...

    async def publish(self, channel: str, envelope: bytes) -> Published: ...


class SessionHistories(Protocol):
    """The histories of a session."""

    def send(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool: ...

    async def publish(
        self, channel: str, envelope: bytes, config: HistoryConfig, idempotency_key: str, /
    ) -> Published: ...

    async def read(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory: ...


class SessionPresences(Protocol):
    """The presence of a session."""

    async def enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]: ...

    async def leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]: ...

    async def beat(self, *, is_leaving: bool) -> Beat: ...

    async def take_over(self, node: str, /) -> list[tuple[str, PresenceEntry]]: ...

    async def own(self) -> list[tuple[str, PresenceEntry]]: ...

    async def read(self, channel: str, cursor: str, limit: int) -> StoredPresence: ...

    async def counts(self, channel: str) -> PresenceCounts: ...


class BrokerSession(Protocol):
    """A node at its engine, from start to close."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def subscriptions(self) -> SessionSubscriptions: ...

    @property
    def publishing(self) -> SessionPublishing: ...

    @property
    def histories(self) -> SessionHistories: ...

    @property
    def presences(self) -> SessionPresences: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def sweep(self, now: float) -> None: ...

    def health(self) -> BrokerHealth: ...

    def stats(self) -> BrokerStats: ...


Session = TypeVar("Session", bound=BrokerSession)


class SessionBroker(ABC, Generic[Session]):
    """The part of a broker that is the same for every engine."""

    def __init__(self) -> None:
        self._session: Session | None = None
        # Channels that were subscribed to before start().
        self._wanted: set[str] = set()

    @abstractmethod
    def _create_session(self, node: NodeInfo, events: BrokerEvents, wanted: set[str]) -> Session:
        """Return a session that has not started. ``wanted`` has the channels that are subscribed to already."""

    async def start(self, node: NodeInfo, events: BrokerEvents) -> None:
        """Join the other nodes, and return when envelopes on ``ALL_NODES`` and on the node's channel arrive.

        While the engine cannot be reached it logs that once, and tries again, ever more seldom. After ``close()``, or
        if the loop has closed without it, it can be started again.

        Raises:
            ConfigurationError: the engine does not accept the credentials, does not let the user subscribe, or is too
                old.
            BrokerUnavailable: the broker was closed meanwhile.
            MisuseError: it is started already.
        """
        if self._running() is not None:
            raise MisuseError("the broker is started already: a broker belongs to one hub")
        wanted, self._wanted = self._wanted, set()
        self._session = session = self._create_session(node, events, wanted)
        await session.start()

    async def close(self) -> None:
        """Send what waits, for a second at most, and leave the other nodes. A second call does nothing."""
        self._wanted.clear()
        session = self._running()
        if session is not None:
            await session.close()

    def subscribe(self, channel: str) -> None:
        """Have envelopes of the channel arrive. A second call for a channel does nothing."""
        session = self._running()
        if session is not None:
            session.subscriptions.want(channel)
        else:
            self._wanted.add(channel)

    def unsubscribe(self, channel: str) -> None:
        """Let no more envelopes of the channel arrive. Some that are under way still may."""
        session = self._running()
        if session is not None:
            session.subscriptions.unwant(channel)
        else:
            self._wanted.discard(channel)

    async def subscribed(self, channel: str) -> None:
        """Return when every envelope that any node sends on the channel from now on arrives.

        Raises:
            BrokerUnavailable: the broker has no connection, or has lost it; the node has left the channel; or the
                engine refuses the subscription. The broker goes on to try.
            MisuseError: the channel is not subscribed to.
        """
        await self._started().subscriptions.wait(channel)

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope to every node that has subscribed to the channel, and forget it.

        Returns False if the envelope was dropped: there is no connection, or too much waits already.
        """
        session = self._session
        return session is not None and session.publishing.send(channel, envelope)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has taken it.

        Raises:
            BrokerUnavailable: nothing was sent: there is no connection, too much waits already, or the envelope is too
                large.
            BrokerUncertain: the connection has ended before the answer, or the answer takes too long.
            BrokerError: the engine refuses the message.
        """
        return await self._started().publishing.publish(channel, envelope)

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it to every node that has subscribed to the channel, and forget it.

        Returns False if the envelope was dropped, as for ``send()``.
        """
        session = self._session
        return session is not None and session.histories.send(channel, envelope, config)

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and send it, and return its position. See ``HistoryBroker.publish_stored``.

        Raises:
            BrokerUnavailable, BrokerUncertain, BrokerError: as ``publish()``.
        """
        return await self._started().histories.publish(channel, envelope, config, idempotency_key)

    async def history(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. See ``HistoryBroker.history``.

        Raises:
            BrokerUnavailable: there is no connection, it was lost, or the engine refuses.
        """
        return await self._started().histories.read(channel, config, query)

    async def presence_enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node. See ``PresenceBroker.presence_enter``."""
        return await self._started().presences.enter(channel, entries)

    async def presence_leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node. See ``PresenceBroker.presence_leave``."""
        return await self._started().presences.leave(channel, entries)

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        """Say that this node lives. See ``PresenceBroker.presence_beat``."""
        return await self._started().presences.beat(is_leaving=is_leaving)

    async def presence_take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Take entries of a dead node over. See ``PresenceBroker.presence_take_over``."""
        return await self._started().presences.take_over(node)

    async def presence_own(self) -> list[tuple[str, PresenceEntry]]:
        """Return the entries of this node. See ``PresenceBroker.presence_own``."""
        return await self._started().presences.own()

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel. See ``PresenceBroker.presence_read``."""
        return await self._started().presences.read(channel, cursor, limit)

    async def presence_counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users. See ``PresenceBroker.presence_counts``."""
        return await self._started().presences.counts(channel)

    def sweep(self, now: float) -> None:
        """Send the probes that are due, and end what has taken too long. The hub calls it at least once a second."""
        session = self._running()
        if session is not None:
            session.sweep(now)

    def health(self) -> BrokerHealth:
        """Return how the broker is at present."""
        if self._session is None:
            return BrokerHealth(state="starting", reason="the broker is not started")
        return self._session.health()

    def stats(self) -> BrokerStats:
        """Return what was counted since ``start()``."""
        if self._session is not None:
            return self._session.stats()
        return BrokerStats(subscriptions=len(self._wanted))

    def _started(self) -> Session:
        """Return the session that has started. Raises ``BrokerUnavailable`` if there is none."""
        session = self._running()
        if session is None:
            raise BrokerUnavailable("the broker is not started")
        return session

    def _running(self) -> Session | None:
        session = self._session
        if session is None or session.is_closed or session.loop.is_closed():
            return None
        return session
