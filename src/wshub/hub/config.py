"""The settings of a hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from wshub.errors import ConfigurationError
from wshub.hub.rates import RateLimits
from wshub.protocol.compression import CompressionConfig
from wshub.protocol.validation import check_bool, check_integer

__all__ = ["HubConfig", "RoomConfig", "SlowConsumer"]

SlowConsumer: TypeAlias = Literal["close", "drop_newest", "drop_oldest", "latest"]
"""What is done with a message for a connection on which ``max_send_buffer`` octets wait already."""

_SLOW_CONSUMER = ("close", "drop_newest", "drop_oldest", "latest")

_LARGEST = {
    "max_connections": 2**31,
    "max_message_size": 2**40,
    "ping_interval_ms": 2**31,
    "pong_timeout_ms": 2**31,
    "close_timeout_ms": 2**31,
    "handshake_timeout_ms": 2**31,
    "shutdown_spread_ms": 2**31,
    "max_send_buffer": 2**40,
    "max_fragments": 2**32 - 1,
    "send_timeout_ms": 2**31,
    "idle_timeout_ms": 2**31,
    "max_lifetime_ms": 2**31,
}

_MAY_BE_NONE = frozenset(("shutdown_spread_ms", "send_timeout_ms", "idle_timeout_ms", "max_lifetime_ms"))


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
    """Milliseconds between two pings to each connection. Shorter than the idle timeout of proxies on the way,
    commonly 60 s."""

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
    """The origins whose pages may connect, compared exactly; any other request gets 403. Empty allows all: set it
    wherever cookies authenticate."""

    max_send_buffer: int = 256 * 1024
    """Octets that may wait to be sent on a connection. While that much waits, its own messages are not read, and
    ``slow_consumer`` says what becomes of a further message to it: one slow reader costs bounded memory."""

    slow_consumer: SlowConsumer = "close"
    """What is done with a message for a connection on which ``max_send_buffer`` octets wait already: ``"close"``
    closes it with 1013; ``"drop_newest"`` drops the message; ``"drop_oldest"`` drops those that have waited longest;
    ``"latest"`` does the same, but as soon as anything waits a message takes the place of the one with the same key.
    A room or a single message may have another."""

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
    """Milliseconds that the peer has to finish a closing handshake, before the connection is ended all the same."""

    handshake_timeout_ms: int = 10_000
    """Milliseconds that a client has to send its whole request."""

    shutdown_spread_ms: int = 0
    """Milliseconds over which the connections are closed when the hub is, so that not all clients come back at once.
    Until its turn has come a connection goes on as ever; handshakes get 503 meanwhile."""

    use_reactor: bool = True
    """Whether the native reactor has the connections without TLS, where the platform has epoll. Otherwise each has a
    transport of the event loop: slower, and the same in everything else. ``WSHUB_USE_REACTOR=0`` in the environment
    says no for a whole process."""

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            check_integer(name, getattr(self, name), 0 if name in _MAY_BE_NONE else 1, largest)
        check_bool("enable_compression", self.enable_compression)
        check_bool("use_reactor", self.use_reactor)
        if self.slow_consumer not in _SLOW_CONSUMER:
            raise ConfigurationError(f"slow_consumer must be one of {_SLOW_CONSUMER}, not {self.slow_consumer!r}")
        if not isinstance(self.rates, RateLimits):
            raise ConfigurationError(f"rates must be a RateLimits, not {self.rates!r}")
        if self.compression is None and self.enable_compression:
            object.__setattr__(self, "compression", CompressionConfig())
        elif self.compression is not None:
            if not isinstance(self.compression, CompressionConfig):
                raise ConfigurationError(f"compression must be a CompressionConfig or None, not {self.compression!r}")
            object.__setattr__(self, "enable_compression", True)
        given: object = self.allowed_origins
        if isinstance(given, str | bytes):
            raise ConfigurationError("allowed_origins must be a sequence of origins, not one string")
        origins = tuple(self.allowed_origins)
        for origin in origins:
            if not isinstance(origin, str) or "://" not in origin or origin.endswith("/"):
                raise ConfigurationError(f"allowed_origins: write {origin!r} as scheme://host or scheme://host:port")
        object.__setattr__(self, "allowed_origins", origins)


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
        if self.slow_consumer is not None and self.slow_consumer not in _SLOW_CONSUMER:
            raise ConfigurationError(f"slow_consumer must be one of {_SLOW_CONSUMER}, not {self.slow_consumer!r}")
        if self.compression not in ("message", "shared"):
            raise ConfigurationError(f'compression must be "message" or "shared", not {self.compression!r}')
        check_integer("restart_interval", self.restart_interval, 1, 2**31)
