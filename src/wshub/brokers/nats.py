"""Joins hubs through NATS servers."""

from __future__ import annotations

import re
import ssl as ssl_module
from collections.abc import Sequence

from wshub.brokers.interface import BrokerEvents, HistoryConfig, NodeInfo, Position, Published, StoredHistory
from wshub.brokers.nats_session import NatsSession, NatsSettings
from wshub.brokers.nats_url import parse_nats_url
from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.session_broker import SessionBroker
from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_integer, check_str

__all__ = ["NatsBroker"]


class NatsBroker(SessionBroker[NatsSession]):
    """Joins the hubs of many processes and machines through NATS servers (2.9 or newer), one or a cluster of them.

    It needs nats-py: ``pip install wshub[nats]``. A user needs the permission to publish and to subscribe to the
    subjects that begin with the prefix, ``wshub.>``. The servers only carry messages.

    Rooms with history or presence need JetStream, which stores them, and the permission to publish to ``$JS.API.>``.
    Without, ``publish()`` to such a room raises ``BrokerUnavailable``, and plain rooms work.

    NATS does not tell the number of receivers, so ``publish()`` returns none. In a cluster, the other servers learn of
    a subscription a moment after ``subscribed()`` has returned.

    Args:
        url: ``nats://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]``, or ``tls://...``. A user without a password is a
            token. ``?credentials=PATH`` at the end names a file with a JWT and a seed.
        prefix: the first token of all subjects: letters, digits, ``_`` and ``-``. Hubs with different prefixes do not
            hear one another.
        ssl: the context for ``tls://``. By default it trusts the certificate authorities of the system.
        max_pending: bytes that may wait to be sent to the engine. While as many do, further messages are dropped and
            counted as ``full``.
        replicas: how many servers of a cluster keep the messages of rooms with history, and the members of rooms with
            presence: 1, 3 or 5. With 3, one of them may fail. All nodes must have the same.

    Raises:
        ConfigurationError: an argument is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "wshub",
        ssl: ssl_module.SSLContext | None = None,
        max_pending: int = 8 * 1024 * 1024,
        replicas: int = 1,
    ) -> None:
        super().__init__()
        address = parse_nats_url(check_str("url", url))
        if ssl is not None and not address.tls:
            raise ConfigurationError("ssl is for a URL that begins with tls://")
        if not re.fullmatch("[A-Za-z0-9_-]+", check_str("prefix", prefix)):
            raise ConfigurationError(f"prefix must be letters, digits, '_' and '-', not {prefix!r}")
        if address.tls and ssl is None:
            ssl = ssl_module.create_default_context()
        max_pending = check_integer("max_pending", max_pending, 1, 1 << 40)
        replicas = check_integer("replicas", replicas, 1, 5)
        self._settings = NatsSettings(address, prefix, ssl, max_pending, replicas)

    def __repr__(self) -> str:
        return f"NatsBroker({str(self._settings.address)!r}, prefix={self._settings.prefix!r})"

    def _create_session(self, node: NodeInfo, events: BrokerEvents, wanted: set[str]) -> NatsSession:
        return NatsSession(self._settings, node, events, wanted)

    def send_stored(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it to every node that has subscribed to the channel, and forget it.

        Returns False if the envelope was dropped, as for ``send()``.
        """
        session = self._session
        return session is not None and session.storing.send(channel, envelope, config)

    async def publish_stored(
        self, channel: str, envelope: bytes, config: HistoryConfig, *, idempotency_key: str = ""
    ) -> Published:
        """Store an envelope and send it, and return its position. See ``HistoryBroker.publish_stored``.

        Raises:
            BrokerUnavailable, BrokerUncertain, BrokerError: as ``publish()``.
        """
        return await self._started().storing.publish(channel, envelope, config, idempotency_key)

    async def history(
        self,
        channel: str,
        config: HistoryConfig,
        *,
        since: Position | None = None,
        limit: int = 100,
        max_bytes: int = 1024 * 1024,
        reverse: bool = False,
        is_own: bool = False,
        mark: bytes = b"",
    ) -> StoredHistory:
        """Return what is stored of a channel. See ``HistoryBroker.history``.

        Raises:
            BrokerUnavailable: there is no connection, it was lost, or the engine refuses.
        """
        return await self._started().histories.read(
            channel,
            config,
            since=since,
            limit=limit,
            max_bytes=max_bytes,
            reverse=reverse,
            is_own=is_own,
            mark=mark,
        )

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
