"""The settings of a hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wshub.errors import ConfigurationError
from wshub.protocol.compression import CompressionConfig
from wshub.protocol.validation import check_bool, check_integer

__all__ = ["HubConfig", "RoomConfig"]

_LARGEST = {
    "max_connections": 2**31,
    "max_message_size": 2**40,
    "ping_interval_ms": 2**31,
    "pong_timeout_ms": 2**31,
    "close_timeout_ms": 2**31,
    "handshake_timeout_ms": 2**31,
    "shutdown_spread_ms": 2**31,
    "max_send_buffer": 2**40,
}

_MAY_BE_NONE = frozenset(("shutdown_spread_ms",))


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
    """Octets that may wait to be sent on a connection. While that much waits, its own messages are not read; a
    further message to it closes it with 1013, so that one slow reader costs bounded memory."""

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

    def __post_init__(self) -> None:
        if self.compression not in ("message", "shared"):
            raise ConfigurationError(f'compression must be "message" or "shared", not {self.compression!r}')
        check_integer("restart_interval", self.restart_interval, 1, 2**31)
