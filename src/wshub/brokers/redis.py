"""Joins hubs through Redis or Valkey: one engine, the primary of Sentinels, or a cluster."""

from __future__ import annotations

import ssl as ssl_module

from wshub.brokers.interface import BrokerEvents, HistoryConfig, NodeInfo
from wshub.brokers.redis_cluster import RedisClusterSession
from wshub.brokers.redis_place import RedisSettings
from wshub.brokers.redis_sentinel import AddressRemap
from wshub.brokers.redis_session import RedisSession
from wshub.brokers.redis_url import ClusterAddress, RedisAddress, parse_redis_url
from wshub.brokers.session_broker import SessionBroker
from wshub.brokers.stored_sender import StoredSender
from wshub.errors import ConfigurationError
from wshub.protocol.validation import check_integer, check_str

__all__ = ["RedisBroker"]


class RedisBroker(SessionBroker[RedisSession | RedisClusterSession]):
    """Joins the hubs of many processes and machines through Redis (7.0 or newer) or Valkey.

    It needs hiredis: ``pip install wshub[redis]``. The engine stores the messages of rooms with history; the others it
    only carries. A user of the engine needs the commands HELLO, PING, PUBLISH, SUBSCRIBE, UNSUBSCRIBE and PUBSUB, and
    the channels that begin with the prefix::

        ACL SETUSER hub on >PASSWORD resetchannels &wshub:* -@all +hello +ping +publish +subscribe +unsubscribe +pubsub

    For rooms with history or presence it needs more commands, and the keys that begin with the prefix::

        ACL SETUSER hub ~wshub:* +evalsha +script|load +time +hmget +hset +hincrby +xadd +xrange +xrevrange +xtrim +xlen
        ACL SETUSER hub +del +pexpire +get +set +hget +hdel +hlen +hexists +hscan +sadd +srem +scard +smembers
        ACL SETUSER hub +srandmember +exists +zadd +zrem +zscore +zrangebyscore

    Keys must not be evicted: with ``maxmemory``, set ``maxmemory-policy noeviction``. Otherwise histories get lost,
    which clients are told.

    In a cluster it needs SPUBLISH, SSUBSCRIBE, SUNSUBSCRIBE, CLUSTER SLOTS and CLUSTER NODES instead of PUBLISH,
    SUBSCRIBE and UNSUBSCRIBE; for rooms with history or presence, ASKING too. With SET and GETEX for the keys that
    begin with the prefix, it compares the number of partitions with that of other nodes.

    After a failover of a cluster, an engine may pass messages on again, or after newer ones. They are rejected, so each
    arrives once and in order. If one was lost that way, the hub is told: the reason is ``late``. The new engine may
    lack messages that the old one has taken. The sender counts as ``failover`` those that may be lost for this reason.
    While keys move between engines, an envelope with an idempotency key may be overtaken by later ones of its node.

    ``publish()`` returns the number of receivers, this node among them.

    Args:
        url: ``redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]``, ``rediss://...`` for TLS, or
            ``unix:///PATH[?db=DATABASE]``. Databases do not separate messages, so the number becomes a part of the
            names of the channels. ``redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST...]/MASTER_NAME[/DATABASE]``
            names Sentinels, and ``redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST...][?partitions=128]`` some nodes
            of a cluster; ``rediss+...`` has TLS.
        prefix: the beginning of the names of all channels. Hubs with different prefixes do not hear one another.
        ssl: the context for ``rediss://``. By default it trusts the certificate authorities of the system.
        max_pending: bytes that may wait to be sent to the engine. While as many do, further messages are dropped and
            counted as ``full``.
        address_remap: returns the host and the port under which this machine reaches an engine, given those that a
            Sentinel or a node of a cluster tells. Set it if they have other addresses inside a network of containers.

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
        address_remap: AddressRemap | None = None,
    ) -> None:
        super().__init__()
        address = parse_redis_url(check_str("url", url))
        if ssl is not None and not address.tls:
            raise ConfigurationError("ssl is for a URL that begins with rediss://")
        if not check_str("prefix", prefix):
            raise ConfigurationError("prefix must not be empty")
        if isinstance(address, ClusterAddress) and "{" in prefix:
            raise ConfigurationError("prefix must not have a '{' in a cluster: it begins a hash tag")
        if address.tls and ssl is None:
            ssl = ssl_module.create_default_context()
        if address_remap is not None and (isinstance(address, RedisAddress) or not callable(address_remap)):
            raise ConfigurationError("address_remap is a function, and for the URL of Sentinels or a cluster")
        check_integer("max_pending", max_pending, 1, 1 << 40)
        self._settings = RedisSettings(address, prefix, ssl, max_pending, address_remap)

    def __repr__(self) -> str:
        return f"RedisBroker({str(self._settings.address)!r}, prefix={self._settings.prefix!r})"

    def stored_sender(self, channel: str, config: HistoryConfig) -> StoredSender | None:
        """Return what sends envelopes as ``send_stored()`` does. See ``NativeHistorySource``."""
        session = self._running()
        return session.histories.stored_sender(channel, config) if session is not None else None

    def _create_session(
        self, node: NodeInfo, events: BrokerEvents, wanted: set[str]
    ) -> RedisSession | RedisClusterSession:
        is_cluster = isinstance(self._settings.address, ClusterAddress)
        session = RedisClusterSession if is_cluster else RedisSession
        return session(self._settings, node, events, wanted)
