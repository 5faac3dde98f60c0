"""The settings of a hub."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict, get_args

from wshub.errors import ConfigurationError
from wshub.hub.rates import RateLimits
from wshub.protocol.compression import CompressionConfig
from wshub.protocol.validation import check_bool, check_integer

__all__ = ["DeliveryOptions", "HubConfig", "RoomConfig", "SlowConsumer"]

SlowConsumer: TypeAlias = Literal["close", "drop_newest", "drop_oldest", "latest"]
"""What is done with a message for a connection on which ``max_send_buffer`` octets wait already."""


class DeliveryOptions(TypedDict, total=False):
    """What everything that sends a message takes by keyword: see ``Connection.send``."""

    compress: bool | None
    slow_consumer: SlowConsumer | None
    key: str | None


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
    """The origins whose pages may connect, such as ``https://example.com``; any other request gets 403. The host may
    be ``*.example.com``, for every host below that one. ``("*",)`` says that pages of anybody may. Empty does too, and
    says so in the log when a page of another origin comes with a cookie: set it wherever cookies authenticate."""

    max_connections_per_address: int = 0
    """Connections at one time from one IP address, or from 64 bits of an IPv6 address; one more is answered with 429.
    0: no bound. Behind a proxy that is not trusted, all come from the proxy's."""

    max_connection_rate: int = 0
    """Handshakes in a second; one more is answered with 503. 0: no bound."""

    max_connection_rate_per_address: int = 0
    """Handshakes in a second from one address; one more is answered with 429. 0: no bound."""

    max_pending_handshakes: int = 1024
    """Accepted connections of which the request is not complete; for one more the oldest of them is ended. As many may
    wait for what ``on_upgrade`` says. With TLS they count once that is agreed on, for which they have
    ``handshake_timeout_ms`` as well."""

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
    have decided on it: 408 or 503 is the answer otherwise."""

    shutdown_spread_ms: int = 0
    """Milliseconds over which the connections are closed when the hub is, so that not all clients come back at once.
    Until its turn has come a connection goes on as ever; handshakes get 503 meanwhile."""

    use_reactor: bool = True
    """Whether the native reactor has the connections without TLS, where the platform has epoll. Otherwise each has a
    transport of the event loop: slower, and the same in everything else. ``WSHUB_USE_REACTOR=0`` in the environment
    says no for a whole process."""

    def __post_init__(self) -> None:
        for name, (smallest, largest) in _RANGES.items():
            check_integer(name, getattr(self, name), smallest, largest)
        check_bool("enable_compression", self.enable_compression)
        check_bool("use_reactor", self.use_reactor)
        _check_slow_consumer(self.slow_consumer)
        if not isinstance(self.rates, RateLimits):
            raise ConfigurationError(f"rates must be a RateLimits, not {self.rates!r}")
        if self.compression is None and self.enable_compression:
            object.__setattr__(self, "compression", CompressionConfig())
        elif self.compression is not None:
            if not isinstance(self.compression, CompressionConfig):
                raise ConfigurationError(f"compression must be a CompressionConfig or None, not {self.compression!r}")
            object.__setattr__(self, "enable_compression", True)
        self._keep_tuple("allowed_origins", "origins")
        for origin in self.allowed_origins:
            if origin != "*" and not _is_origin(origin):
                raise ConfigurationError(
                    f"allowed_origins: write {origin!r} as scheme://host or scheme://host:port, where the host may "
                    'begin with "*.", or as "*" alone'
                )
        self._keep_tuple("trusted_proxies", "addresses and networks")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ConfigurationError(f"trusted_proxies: {proxy!r} is no address and no network") from None

    def _keep_tuple(self, name: str, of_what: str) -> None:
        """Turn a field that may have been given as any sequence into a tuple."""
        given = getattr(self, name)
        if isinstance(given, str | bytes):
            raise ConfigurationError(f"{name} must be a sequence of {of_what}, not one string")
        object.__setattr__(self, name, tuple(given))


def _check_slow_consumer(value: object) -> None:
    allowed = get_args(SlowConsumer)
    if value not in allowed:
        raise ConfigurationError(f"slow_consumer must be one of {allowed}, not {value!r}")


def _is_origin(origin: object) -> bool:
    """Whether it is an origin, or a pattern of one, that any origin can match."""
    if not isinstance(origin, str):
        return False
    scheme, separator, host = origin.partition("://")
    return bool(scheme and separator and host) and "/" not in host and "*" not in scheme + host.removeprefix("*.")


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
            _check_slow_consumer(self.slow_consumer)
        if self.compression not in ("message", "shared"):
            raise ConfigurationError(f'compression must be "message" or "shared", not {self.compression!r}')
        check_integer("restart_interval", self.restart_interval, 1, 2**31)
