"""The settings of a hub."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict, get_args

from wshub.core.rate_limits import RateLimits
from wshub.errors import ConfigurationError
from wshub.protocol.compression.config import CompressionConfig
from wshub.protocol.validation import check_bool, check_choice, check_integer

__all__ = ["DeliveryOptions", "HubConfig", "HubSettings", "RoomConfig", "SlowConsumer"]

SlowConsumer: TypeAlias = Literal["close", "drop_newest", "drop_oldest", "latest"]
"""What is done with a message for a connection on which ``max_send_buffer`` octets wait already."""


class DeliveryOptions(TypedDict, total=False):
    """What everything that sends a message takes by keyword: see ``Connection.send``."""

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
class HubConfig:
    """How a hub behaves. Immutable; raises ``ConfigurationError`` when made with a value that cannot be.

    Each field says its meaning, its default and what to weigh.
    """

    max_connections: int = 10_000
    """Connections at one time; a handshake beyond them is answered with 503. Each costs a descriptor."""

    max_message_size: int = 64 * 1024
    """The longest message taken, in octets of payload; a longer one closes its connection with 1009, before its
    payload is read."""

    ping_interval_ms: int = 30_000
    """Milliseconds between two pings to each connection; the first comes after half of that at the earliest. Shorter
    than the idle timeout of proxies on the way, commonly 60 s."""

    pong_timeout_ms: int = 10_000
    """Milliseconds after a ping within which something, a pong or anything else, must arrive; else the connection
    is ended and its ``on_close`` sees 1006."""

    enable_compression: bool = False
    """Whether permessage-deflate (RFC 7692) may be negotiated: short for ``compression=CompressionConfig()``."""

    compression: CompressionConfig | None = None
    """How messages are compressed, of clients that offer it; with one of these, ``enable_compression`` is ``True``.
    Do not send a secret in one message with what an attacker can choose: the length of its compressed form tells of
    both."""

    allowed_origins: tuple[str, ...] = ()
    """The origins whose pages may connect, such as ``https://example.com``; any other origin gets 403, as does
    ``null``. The host may be ``*.example.com``, for every host below that one. ``("*",)`` says that pages of anybody
    may. Empty does too, and says so in the log when a page of another origin comes with a cookie: set it wherever
    cookies authenticate."""

    allow_missing_origin: bool = False
    """Whether a request without an ``Origin`` is accepted although ``allowed_origins`` is set; otherwise it gets 403.
    Browsers always send one. Set it if programs connect too. It is off, since a proxy that removes the field would
    switch the check of origins off for pages as well."""

    max_connections_per_address: int = 0
    """Connections at one time from one IP address, or from 64 bits of an IPv6 address; one more is answered with 429.
    0: no bound. Behind a proxy that is not trusted, all come from the proxy's. With TLS of ``Hub.serve``, up to as many
    more may be without a complete request; one more ends the oldest of the address."""

    max_connection_rate: int = 0
    """Handshakes in a second; one more is answered with 503. 0: no bound."""

    max_connection_rate_per_address: int = 0
    """Handshakes in a second from one address; one more is answered with 429. 0: no bound. With TLS of ``Hub.serve``
    connections are counted, and one more is closed at once."""

    max_pending_handshakes: int = 1024
    """Accepted connections of which the request is not complete; for one more the oldest of them is ended. As many may
    wait for what ``on_upgrade`` says. With TLS a connection counts before its TLS handshake, too."""

    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks, such as ``10.0.0.0/8``, of proxies whose ``X-Forwarded-For`` is believed by
    ``Hub.serve``; with any of them, so is one over a Unix socket. Under uvicorn, ``--forwarded-allow-ips`` says it."""

    max_send_buffer: int = 256 * 1024
    """Octets that may wait to be sent on a connection, where a message of less than 64 counts as 64: one slow reader
    costs bounded memory. While that much waits, ``slow_consumer`` says what becomes of a further message to it. Nor is
    anything read from it meanwhile; once a message to it has been dropped it is read again, until it has caught up."""

    slow_consumer: SlowConsumer = "close"
    """What is done with a message for a connection on which ``max_send_buffer`` octets wait already: ``"close"``
    closes it with 1013; ``"drop_newest"`` drops the message; ``"drop_oldest"`` drops those that have waited longest;
    ``"latest"`` does the same, but as soon as anything waits a message takes the place of the one with the same key.
    A room or a single message may have another. A message that was sent with ``"close"`` is never dropped for another:
    where too many of these wait, ``"drop_oldest"`` and ``"latest"`` drop the new one."""

    max_fragments: int = 65_536
    """Fragments of one message, after its first; one with more closes its connection with 1008. By default as many as
    the longest message has octets."""

    send_timeout_ms: int = 10_000
    """Milliseconds that octets may wait without the peer taking any; then the connection is ended, with 1006. 0: as
    long as it answers pings."""

    idle_timeout_ms: int = 0
    """Milliseconds without a message in either direction after which a connection is closed with 1001. Pings and pongs
    are none. 0: never."""

    max_lifetime_ms: int = 0
    """Milliseconds after which a connection is closed with 1001, up to a tenth earlier, so that not all who came
    together leave together. 0: never."""

    rates: RateLimits = field(default_factory=RateLimits)
    """What a connection may do in a second."""

    close_timeout_ms: int = 10_000
    """Milliseconds that the peer has to finish a closing handshake, before the connection is ended all the same. It is
    ended earlier if it takes nothing of what waits for it for ``send_timeout_ms``."""

    handshake_timeout_ms: int = 10_000
    """Milliseconds from the connection on in which a client is to have sent its whole request and ``on_upgrade`` to
    have decided on it: 408 or 503 is the answer otherwise. The TLS handshake is part of this time."""

    shutdown_spread_ms: int = 0
    """Milliseconds over which the connections are closed when the hub is, so that not all clients come back at once.
    Until its turn has come a connection goes on as ever; handshakes get 503 meanwhile."""

    use_reactor: bool = True
    """Whether the native reactor has the connections without TLS, where the platform has epoll. Otherwise each has a
    transport of the event loop: slower, and the same in everything else. ``WSHUB_USE_REACTOR=0`` in the environment
    says no for a whole process."""

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _RANGES.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), smallest, largest))
        check_bool("enable_compression", self.enable_compression)
        check_bool("use_reactor", self.use_reactor)
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
        """Return the elements of a field. Raise ``ConfigurationError`` if it is one string, or no iterable."""
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
    allowed_origins: tuple[str, ...]
    allow_missing_origin: bool
    max_connections_per_address: int
    max_connection_rate: int
    max_connection_rate_per_address: int
    max_pending_handshakes: int
    trusted_proxies: tuple[str, ...]
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
    use_reactor: bool


def _check_origin(origin: object) -> str:
    """Return an origin, or a pattern of one, that some origin can match. Raise ``ConfigurationError`` for others."""
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
    """Return an address or a network as it is written. Raise ``ConfigurationError`` for anything else."""
    # An int and bytes would be addresses for ip_network().
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
    """How a room behaves. Immutable; raises ``ConfigurationError`` when made with a value that cannot be."""

    compression: Literal["message", "shared"] = "message"
    """``"message"``: each message is compressed by itself. ``"shared"``: the room has one compressor whose messages
    refer to earlier ones, for all members at once: much smaller where messages are short and resemble one another, and
    cheaper. It costs about 70 KB a room."""

    restart_interval: int = 128
    """With ``"shared"``, after how many messages at the latest the compressor forgets the earlier ones. Until it does,
    a new member gets each message compressed by itself."""

    slow_consumer: SlowConsumer | None = None
    """What is done with a message to the room for a connection on which too much waits; None is as the hub does."""

    def __post_init__(self) -> None:
        if self.slow_consumer is not None:
            policy = check_choice("slow_consumer", self.slow_consumer, get_args(SlowConsumer))
            object.__setattr__(self, "slow_consumer", policy)
        compression = check_choice("compression", self.compression, ("message", "shared"))
        object.__setattr__(self, "compression", compression)
        interval = check_integer("restart_interval", self.restart_interval, 1, 2**31)
        object.__setattr__(self, "restart_interval", interval)
