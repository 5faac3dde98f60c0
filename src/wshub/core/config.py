"""The settings of a hub and of a room."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict, get_args

from wshub.brokers.interface import HistoryConfig
from wshub.brokers.presence_interface import PresenceConfig
from wshub.errors import ConfigurationError
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.validation import check_bool, check_choice, check_integer

__all__ = ["DeliveryOptions", "HubConfig", "HubSettings", "RateLimits", "RoomConfig", "SlowConsumer"]

SlowConsumer: TypeAlias = Literal["close", "drop_newest", "drop_oldest", "latest"]
"""A policy for a message to a connection whose queue is full: see ``HubConfig.slow_consumer``."""


class DeliveryOptions(TypedDict, total=False):
    """The keyword arguments of all methods that send a message: see ``Connection.send``."""

    compress: bool | None
    slow_consumer: SlowConsumer | None
    key: str | None


_ADDRESSES = ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Network | ipaddress.IPv6Network

_RANGES = {
    "max_connections": (1, 2**31),
    "max_message_size": (1, 2**40),
    "ping_interval_ms": (1, 2**31),
    "pong_timeout_ms": (1, 2**31),
    "close_timeout_ms": (1, 2**31),
    "handshake_timeout_ms": (1, 2**31),
    "shutdown_spread_ms": (0, 2**31),
    "max_send_buffer": (1, 2**40),
    "max_fragments": (1, 2**32 - 1),
    "send_timeout_ms": (0, 2**31),
    "idle_timeout_ms": (0, 2**31),
    "max_lifetime_ms": (0, 2**31),
    "max_connections_per_address": (0, 2**31),
    "max_connection_rate": (0, 2**31),
    "max_connection_rate_per_address": (0, 2**31),
    "max_pending_handshakes": (1, 2**31),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits on what each connection may do per second. 0 means no limit.

    Immutable. Raises ``ConfigurationError`` for an invalid value. Each limit is a token bucket that the hub's sweep
    refills: at least every tenth of a second if messages, bytes or handler time are limited.
    """

    messages: int = 0
    """Text and binary messages received per second.

    A limit keeps one client from flooding a room. Choose more than people and honest programs send.
    """

    bytes: int = 0
    """Bytes received per second, in frames of all kinds, including their headers.

    It bounds the traffic of one client, whatever the size of its messages.
    """

    control_frames: int = 100
    """Pings and pongs received per second.

    The hub answers each ping with a pong. Honest clients send few.
    """

    handler_ms: int = 0
    """Milliseconds per second that ``on_message`` may take of the event loop, up to its first ``await``.

    It keeps messages that are costly to handle from slowing down all other clients. It counts time by the hub's clock,
    so a busy machine counts too.
    """

    burst_ms: int = 2_000
    """Milliseconds of unused allowance that a connection can save up; at least the time between two sweeps.

    More lets clients send in bursts after a pause, and lets a flood through for longer before it is slowed down.
    """

    excess: Literal["delay", "close"] = "delay"
    """``"delay"`` stops reading from a connection that exceeds a limit until enough time has passed. ``"close"`` closes
    it with 1008.

    ``"delay"`` is gentle: the client notices nothing but slowness. ``"close"`` frees the connection, and an honest
    client reconnects.
    """

    def __post_init__(self) -> None:
        for name, largest in (("messages", 2**24), ("bytes", 2**40), ("control_frames", 2**24), ("handler_ms", 1000)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0, largest))
        object.__setattr__(self, "burst_ms", check_integer("burst_ms", self.burst_ms, 1, 3_600_000))
        object.__setattr__(self, "excess", check_choice("excess", self.excess, ("delay", "close")))

    @property
    def sweep_period(self) -> float:
        """Maximum seconds from one sweep to the next. It is short if a connection may have to wait for a sweep."""
        return 0.1 if self.messages or self.bytes or self.handler_ms else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """The settings of a hub. Immutable. Raises ``ConfigurationError`` for an invalid value."""

    max_connections: int = 10_000
    """Maximum number of connections at one time. Further handshakes get 503.

    Each connection uses a descriptor and memory, so allow the process as many descriptors. A lower limit keeps the
    server fast for those that are connected.
    """

    max_message_size: int = 64 * 1024
    """Maximum length of a received message, in bytes of payload. A longer one closes its connection with 1009, before
    its payload is read.

    A connection may take that much memory while a message arrives. Raise it for uploads, lower it for short
    messages.
    """

    ping_interval_ms: int = 30_000
    """Milliseconds between two pings to each connection. The first ping comes after half of that or later.

    A shorter interval notices dead clients earlier, and costs more traffic and more battery of phones. Choose less than
    the idle timeout of any proxy in between, commonly 60 s.
    """

    pong_timeout_ms: int = 10_000
    """Milliseconds after a ping in which the client must send something, a pong or anything else. Otherwise the
    connection is aborted, and ``on_close`` gets 1006.

    A shorter time notices dead clients earlier. It also ends clients whose network stalls for so long.
    """

    enable_compression: bool = False
    """Enable permessage-deflate (RFC 7692): short for ``compression=CompressionConfig()``.

    Compression saves traffic and costs CPU time, most of all for messages that go to one client only.
    """

    compression: CompressionConfig | None = None
    """How to compress messages, for clients that offer it. Setting it sets ``enable_compression`` to ``True``.

    Do not send a secret in one message with text that an attacker chooses: the compressed length reveals parts of the
    secret.
    """

    allowed_origins: Sequence[str] = ()
    """The origins whose pages may connect, such as ``https://example.com``. Any other origin gets 403, and so does
    ``null``. The host may be ``*.example.com``, for every host below that one. ``["*"]`` allows pages from any origin.
    The empty default does too, but logs a warning when a page of another origin sends a cookie.

    Set it if you authenticate with cookies: browsers send them for every page. If the list lacks one of your own pages,
    its users cannot connect.
    """

    allow_missing_origin: bool = False
    """Whether a request without an ``Origin`` may connect when ``allowed_origins`` is set. Otherwise it gets 403.
    Browsers always send the field.

    Set this if other programs connect too. It is off by default: a proxy that removes the field would disable the check
    for pages as well.
    """

    max_connections_per_address: int = 0
    """Maximum number of connections at one time from one IP address, or from one /64 network of IPv6. Further
    handshakes get 429. 0 means no limit. With TLS, the same number may wait for their requests in addition. If one
    more arrives, the oldest is dropped.

    It keeps one machine from taking all connections. Many users can share an address, such as those of a company or of
    a mobile network. Behind a proxy that is not trusted, all connections have the proxy's address.
    """

    max_connection_rate: int = 0
    """Maximum number of handshakes per second. Further ones get 503. 0 means no limit.

    It protects the server when all clients come back at once. A client that is refused must try again later.
    """

    max_connection_rate_per_address: int = 0
    """Maximum number of handshakes per second from one address. Further ones get 429. 0 means no limit. With TLS in the
    reactor, connections count as well, from accept(2) on, and further ones are closed at once. Under uvicorn these are
    also the connections that only ask for pages.

    It slows down a client that connects again and again. Many users can share an address, as for
    ``max_connections_per_address``.
    """

    max_pending_handshakes: int = 1024
    """Maximum number of accepted connections whose request has not fully arrived. If one more arrives, the oldest is
    dropped. The same limit applies separately to requests that wait for ``on_upgrade``. With TLS, a connection counts
    from accept(2) on, also during its TLS handshake.

    Each of them takes memory, most of all with TLS. If the limit is low, a burst of clients with slow networks drops
    some of them.
    """

    trusted_proxies: Sequence[str] = ()
    """Addresses and networks, such as ``10.0.0.0/8``, of the proxies whose ``X-Forwarded-For`` ``Hub.serve`` trusts. If
    there are any, a proxy on a Unix socket is trusted too. Under uvicorn, use ``--forwarded-allow-ips``.

    A trusted proxy can claim any address for a client. Trust only proxies that overwrite the field.
    """

    max_send_buffer: int = 256 * 1024
    """Maximum bytes queued for one connection; a message shorter than 64 bytes counts as 64. When the queue is full,
    ``slow_consumer`` decides what happens to the next message, and the hub stops reading from that connection. Once the
    policy has dropped a message for it, reading goes on until the client has caught up.

    It bounds what one slow client costs. A larger queue bridges longer stalls of a client, and takes more memory.
    """

    slow_consumer: SlowConsumer = "close"
    """The policy for a message to a connection whose queue is full. ``"close"`` closes the connection with 1013.
    ``"drop_newest"`` drops the message. ``"drop_oldest"`` drops the messages that have waited longest. ``"latest"``
    does the same, but first replaces the queued message with the same key, also before the queue is full. A room or a
    single message may have another policy. A message sent with ``"close"`` is never dropped for another one: if these
    alone fill the queue, ``"drop_oldest"`` and ``"latest"`` drop the new message.

    ``"close"`` loses nothing silently: the client reconnects, and can ask for what it missed. The other policies keep
    the connection, and messages get lost.
    """

    max_fragments: int = 65_536
    """Maximum number of fragments of one message, after its first. A message with more closes its connection with 1008.
    The default is the number of bytes in the longest message.

    It bounds the CPU time of messages that arrive in very many pieces. Honest clients send few.
    """

    send_timeout_ms: int = 10_000
    """Milliseconds in which the client must take some of the bytes that wait for it. Otherwise the connection is
    aborted, with 1006. 0 means no limit as long as the client answers pings.

    A shorter time frees the memory of stalled clients earlier. It also ends clients that are out of reach for a
    moment.
    """

    idle_timeout_ms: int = 0
    """Milliseconds without a message in either direction after which a connection is closed with 1001. Pings and pongs
    do not count as messages. 0 means never.

    It frees connections that nobody uses. A client that neither sends nor gets messages has to reconnect.
    """

    max_lifetime_ms: int = 0
    """Milliseconds after which a connection is closed with 1001. It happens up to a tenth earlier, so that clients that
    came together do not leave together. 0 means never.

    Clients have to authenticate again, and move to new servers. Each of them reconnects once in this time.
    """

    rates: RateLimits = field(default_factory=RateLimits)
    """The limits on what each connection may do per second.

    The defaults limit control frames only. Limit messages and bytes too if you do not know your clients.
    """

    close_timeout_ms: int = 10_000
    """Milliseconds that the client has to finish a closing handshake before the connection is aborted. That happens
    earlier if the client takes no bytes for ``send_timeout_ms``.

    It bounds how long a shutdown takes. A short time cuts off slow clients before they have read what was sent.
    """

    handshake_timeout_ms: int = 10_000
    """Milliseconds from the connection to the end of the opening handshake. If the request is not complete by then, it
    gets 408. If ``on_upgrade`` has not decided, it gets 503. The TLS handshake is part of this time.

    A shorter time frees what half-open connections hold. ``on_upgrade`` and clients with slow networks have to keep to
    it.
    """

    shutdown_spread_ms: int = 0
    """Milliseconds over which a closing hub spreads the closes of its connections, so that not all clients come back at
    once. Each connection works normally until it is closed. New handshakes get 503.

    A longer time is gentler to the servers that take the clients over, and the end takes longer. Give the service
    manager more time than that.
    """

    access_log: bool = False
    """Whether the logger ``wshub.access`` gets a line at INFO when a handshake is answered, and one when its connection
    ends.

    The lines have no query. Each connection keeps its address and its path as text until its end.
    """

    use_reactor: bool = True
    """Whether the native reactor carries the connections, on platforms with epoll. Otherwise each has a transport of
    the event loop. ``WSHUB_USE_REACTOR=0`` in the environment turns the reactor off for a whole process.

    Transports are slower and behave the same. Turn the reactor off to find out whether it causes a problem.
    """

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _RANGES.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), smallest, largest))
        check_bool("enable_compression", self.enable_compression)
        check_bool("use_reactor", self.use_reactor)
        check_bool("access_log", self.access_log)
        check_bool("allow_missing_origin", self.allow_missing_origin)
        policy = check_choice("slow_consumer", self.slow_consumer, get_args(SlowConsumer))
        object.__setattr__(self, "slow_consumer", policy)
        if not isinstance(self.rates, RateLimits):
            raise ConfigurationError(f"rates must be a RateLimits, not {self.rates!r}")
        if self.compression is None and self.enable_compression:
            object.__setattr__(self, "compression", CompressionConfig())
        elif self.compression is not None:
            if not isinstance(self.compression, CompressionConfig):
                raise ConfigurationError(f"compression must be a CompressionConfig or None, not {self.compression!r}")
            object.__setattr__(self, "enable_compression", True)
        object.__setattr__(self, "allowed_origins", tuple(map(_check_origin, self._each_of("allowed_origins"))))
        object.__setattr__(self, "trusted_proxies", tuple(map(_check_proxy, self._each_of("trusted_proxies"))))

    def _each_of(self, name: str) -> Iterable[object]:
        """Return the elements of a field. Raise ``ConfigurationError`` if it is a string or not iterable."""
        given = getattr(self, name)
        if isinstance(given, str | bytes):
            raise ConfigurationError(f"{name} must be a sequence, such as ({given!r},), not one string")
        if not isinstance(given, Iterable):
            raise ConfigurationError(f"{name} must be a sequence of strings, not {given!r}")
        return given


class HubSettings(TypedDict, total=False):
    """The fields of a HubConfig as keyword arguments."""

    max_connections: int
    max_message_size: int
    ping_interval_ms: int
    pong_timeout_ms: int
    enable_compression: bool
    compression: CompressionConfig | None
    allowed_origins: Sequence[str]
    allow_missing_origin: bool
    max_connections_per_address: int
    max_connection_rate: int
    max_connection_rate_per_address: int
    max_pending_handshakes: int
    trusted_proxies: Sequence[str]
    max_send_buffer: int
    slow_consumer: SlowConsumer
    max_fragments: int
    send_timeout_ms: int
    idle_timeout_ms: int
    max_lifetime_ms: int
    rates: RateLimits
    close_timeout_ms: int
    handshake_timeout_ms: int
    shutdown_spread_ms: int
    access_log: bool
    use_reactor: bool


def _check_origin(origin: object) -> str:
    """Return an origin or a pattern. Raise ``ConfigurationError`` if no origin could match it."""
    if isinstance(origin, str):
        text = str.__str__(origin)
        scheme, separator, host = text.partition("://")
        if text == "*" or (scheme and separator and host and _is_host(host) and "*" not in scheme):
            return text
    raise ConfigurationError(
        f"allowed_origins: write {origin!r} as scheme://host or scheme://host:port, without a path or a slash at the "
        'end, such as "https://example.com". The host may begin with "*."; "*" alone is every origin.'
    )


def _is_host(host: str) -> bool:
    return not any(character in "/?#@*" or character <= " " for character in host.removeprefix("*."))


def _check_proxy(proxy: object) -> str:
    """Return an address or a network as a str. Raise ``ConfigurationError`` for anything else."""
    # ip_network() would take an int or bytes for an address.
    if not isinstance(proxy, str | _ADDRESSES):
        raise ConfigurationError(f"trusted_proxies: {proxy!r} is no address and no network: write a str")
    text = str.__str__(proxy) if isinstance(proxy, str) else str(proxy)
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f"trusted_proxies: {proxy!r} is no address and no network: {error}") from None
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomConfig:
    """The settings of a room. Immutable. Raises ``ConfigurationError`` for an invalid value."""

    compression: Literal["message", "shared"] = "message"
    """``"message"`` compresses each message by itself. ``"shared"`` gives the room one compressor for all members,
    whose output refers to earlier messages.

    ``"shared"`` makes short messages that resemble one another much smaller, at less cost. Each room needs about 70 KB
    for it.
    """

    restart_interval: int = 128
    """With ``"shared"``, the maximum number of messages until the compressor forgets the earlier ones.

    A new member gets each message compressed by itself until the next restart. A longer interval compresses better, and
    a shorter one serves rooms whose members change often.
    """

    slow_consumer: SlowConsumer | None = None
    """The policy for a message to a member whose queue is full. None uses the hub's policy.

    See ``HubConfig.slow_consumer``. One policy for all messages to a room is easier to reason about than one for each
    message.
    """

    history: HistoryConfig | None = None
    """How much of the room is kept. A client that comes back gets what it has missed. None keeps nothing.

    All members get the messages in one order. With a broker, they get a message once it has been stored there. That
    takes a round trip, and several times as much work of the engine as a message that is not kept.
    """

    presence: bool | PresenceConfig | None = None
    """Whether the hub knows who is in the room, on all nodes: True, or a PresenceConfig. Afterwards the attribute is a
    PresenceConfig or None.

    Each join and each leave costs a call of the engine; calls of one iteration of the event loop go together.
    """

    def __post_init__(self) -> None:
        presence = PresenceConfig() if self.presence is True else self.presence or None
        if presence is not None and not isinstance(presence, PresenceConfig):
            raise ConfigurationError(f"presence must be a bool or a PresenceConfig, not {self.presence!r}")
        object.__setattr__(self, "presence", presence)
        if self.history is not None and not isinstance(self.history, HistoryConfig):
            raise ConfigurationError(f"history must be a HistoryConfig or None, not {self.history!r}")
        if self.slow_consumer is not None:
            policy = check_choice("slow_consumer", self.slow_consumer, get_args(SlowConsumer))
            object.__setattr__(self, "slow_consumer", policy)
        compression = check_choice("compression", self.compression, ("message", "shared"))
        object.__setattr__(self, "compression", compression)
        interval = check_integer("restart_interval", self.restart_interval, 1, 2**31)
        object.__setattr__(self, "restart_interval", interval)
