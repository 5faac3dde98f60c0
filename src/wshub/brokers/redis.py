"""Joins hubs through a Redis or Valkey engine."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Sequence

from wshub.brokers.interface import (
    BrokerEvents,
    HistoryConfig,
    NodeInfo,
    Position,
    Published,
    StoredHistory,
)
from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.redis_session import RedisSession, RedisSettings
from wshub.brokers.redis_url import parse_redis_url
from wshub.brokers.session_broker import SessionBroker
from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_integer, check_str

__all__ = ["RedisBroker"]


class RedisBroker(SessionBroker[RedisSession]):
    """Joins the hubs of many processes and machines through one Redis (7.0 or newer) or Valkey engine.

    It needs hiredis: ``pip install wshub[redis]``. The engine stores the messages of rooms with history; the others it
    only carries. A user of the engine needs the commands HELLO, PING, PUBLISH, SUBSCRIBE, UNSUBSCRIBE and PUBSUB, and
    the channels that begin with the prefix::

        ACL SETUSER hub on >PASSWORD resetchannels &wshub:* -@all +hello +ping +publish +subscribe +unsubscribe +pubsub

    For rooms with history or presence it needs more commands, and the keys that begin with the prefix::

        ACL SETUSER hub ~wshub:* +evalsha +script|load +time +hmget +hset +hincrby +xadd +xrange +xrevrange +xtrim +xlen
        ACL SETUSER hub +del +pexpire +get +set +hget +hdel +hlen +hexists +hscan +sadd +srem +spop +exists +zadd
        ACL SETUSER hub +zrem +zscore +zrangebyscore

    Keys must not be evicted: with ``maxmemory``, set ``maxmemory-policy noeviction``. Otherwise histories get lost,
    which clients are told.

    ``publish()`` returns the number of receivers, this node among them.

    Args:
        url: ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``, ``rediss://...`` for TLS, or
            ``unix:///PATH[?db=DATABASE]``. Databases do not separate messages, so the number becomes a part of the
            names of the channels.
        prefix: the beginning of the names of all channels. Hubs with different prefixes do not hear one another.
        ssl: the context for ``rediss://``. By default it trusts the certificate authorities of the system.
        max_pending: bytes that may wait to be sent to the engine. While as many do, further messages are dropped and
            counted as ``full``.

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
    ) -> None:
        super().__init__()
        address = parse_redis_url(check_str("url", url))
        if ssl is not None and not address.tls:
            raise ConfigurationError("ssl is for a URL that begins with rediss://")
        if not check_str("prefix", prefix):
            raise ConfigurationError("prefix must not be empty")
        if address.tls and ssl is None:
            ssl = ssl_module.create_default_context()
        self._settings = RedisSettings(address, prefix, ssl, check_integer("max_pending", max_pending, 1, 1 << 40))

    def __repr__(self) -> str:
        return f"RedisBroker({str(self._settings.address)!r}, prefix={self._settings.prefix!r})"

    def _create_session(self, node: NodeInfo, events: BrokerEvents, wanted: set[str]) -> RedisSession:
        return RedisSession(self._settings, node, events, wanted)

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
        """Return entries of this node. See ``PresenceSource.presence_own``."""
        return await self._started().presences.own()

    async def presence_read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel. See ``PresenceBroker.presence_read``."""
        return await self._started().presences.read(channel, cursor, limit)

    async def presence_counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users. See ``PresenceBroker.presence_counts``."""
        return await self._started().presences.counts(channel)
