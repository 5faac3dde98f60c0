"""The engine of a session, and the names of its channels there."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from wshub.brokers.interface import ALL_NODES, BrokerEvents, NodeInfo, node_channel
from wshub.brokers.reconnecting import OutageLog
from wshub.brokers.redis_asking import Asking
from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_connection import EngineKind
from wshub.brokers.redis_reconnecting import ConnectionTarget
from wshub.brokers.redis_sentinel import AddressRemap, Sentinels
from wshub.brokers.redis_url import ClusterAddress, EngineAddress, RedisAddress, SentinelAddress
from wshub.brokers.sequence_numbers import InOrderReceiver
from wshub.errors import MisuseError

__all__ = ["PROBE_CHANNELS", "ClusterHooks", "EnginePlace", "RedisSettings", "own_channels", "place_of"]

PROBE_CHANNELS = "probe:"
"""How the channels of probes begin."""


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """The arguments of a RedisBroker."""

    address: EngineAddress
    prefix: str
    ssl: ssl_module.SSLContext | None
    max_pending: int
    address_remap: AddressRemap | None = None


class ClusterHooks(Protocol):
    """The events of one session of a cluster. Each method is called on the loop."""

    def redirected(self, text: str, *, by_subscriber: bool) -> None:
        """Note that the engine does not own a slot: the text begins with ``MOVED``."""

    def publisher_opened(self) -> None:
        """Note that the connection that publishes was opened. It takes other commands as well."""

    def changed(self) -> None:
        """Note that subscriptions were acknowledged."""

    def subscriber_lost(self) -> None:
        """Note that the connection that subscribes has ended, and with it all subscriptions."""


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """An engine, and how a session uses it."""

    find: Callable[[], Awaitable[RedisAddress]]
    """As for ``ConnectionTarget``."""
    kind: EngineKind
    names: ChannelNames
    service: tuple[str, ...]
    """The channels of the node itself that lie on this engine."""
    probe_channel: str
    receiver: BrokerEvents | InOrderReceiver
    """What takes envelopes."""
    log: OutageLog
    gives_up: bool = True
    """Whether a ConfigurationError ends the first attempts for good."""
    follows: bool = False
    """Whether the address changes, so that the connections must follow."""
    hooks: ClusterHooks | None = None

    def target(self, settings: RedisSettings, client_name: str, events: BrokerEvents) -> ConnectionTarget:
        """Return what a connection leads to."""
        return ConnectionTarget(
            events.reactor, self.find, self.kind, settings.ssl, client_name, events.now, self.log, self.gives_up
        )


def own_channels(node: NodeInfo) -> tuple[str, ...]:
    """Return the channels that a node has subscribed to from the beginning to the end."""
    return (ALL_NODES, node_channel(node.id)) if node.receives else ()


def place_of(settings: RedisSettings, node: NodeInfo, events: BrokerEvents) -> EnginePlace:
    """Return the place of the one engine that a URL names, or of the primary that Sentinels name."""
    address = settings.address
    if isinstance(address, ClusterAddress):
        raise MisuseError("a cluster has several engines")
    find: Callable[[], Awaitable[RedisAddress]]
    if isinstance(address, SentinelAddress):
        asking = Asking(events.reactor, settings.ssl, f"wshub:{node.id}:sentinel")
        find = Sentinels(address, asking, settings.address_remap).find_primary
    else:
        find = finder(address)
    return EnginePlace(
        find,
        "primary",
        ChannelNames(settings.prefix, address.database, node.hub),
        own_channels(node),
        PROBE_CHANNELS + node.id,
        events,
        OutageLog(address),
        follows=isinstance(address, SentinelAddress),
    )


def finder(address: RedisAddress) -> Callable[[], Awaitable[RedisAddress]]:
    """Return what finds an engine whose address stays."""

    async def find() -> RedisAddress:
        return address

    return find
