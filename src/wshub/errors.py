"""The exceptions of wshub: one small tree, whose messages say what to do.

::

    WebSocketError
    ├── MisuseError              the application asked for something that cannot be done here
    ├── ConfigurationError       a setting has a value that it cannot have
    ├── InvalidMessageError      a message, code or reason that cannot be sent
    ├── ProtocolError            bytes that break RFC 6455 (and the close code it names)
    ├── HandshakeError           a request that does not become a WebSocket (and its HTTP status)
    └── ConnectionClosed         the connection is closing or closed (and the code and reason)
        └── ConnectionLost       ... without the closing handshake, or after an error
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

__all__ = [
    "ConfigurationError",
    "ConnectionClosed",
    "ConnectionLost",
    "HandshakeError",
    "InvalidMessageError",
    "MisuseError",
    "ProtocolError",
    "WebSocketError",
]


class WebSocketError(Exception):
    """The root of every exception that wshub raises on purpose."""


class MisuseError(WebSocketError, RuntimeError):
    """The application called something where, when or how it cannot be called."""


class ConfigurationError(WebSocketError, ValueError):
    """A setting has a value that it cannot have; the message names the setting and the values allowed."""


class InvalidMessageError(WebSocketError, ValueError):
    """A message, close code, close reason or control payload that RFC 6455 does not let anyone send."""


class ProtocolError(WebSocketError):
    """Bytes from the network that break RFC 6455.

    ``code`` is the close code with which RFC 6455 wants the connection to be closed (section 7.4.1).
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (close code {code})")
        self.code = code
        self.reason = reason


class HandshakeError(WebSocketError):
    """A request that is not answered with 101 (RFC 6455 section 4.2.2).

    ``status`` is the HTTP status to answer with, ``headers`` are the header fields which that status asks for,
    ``reason`` is one plain sentence for the body.
    """

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        if isinstance(status, bool) or not hasattr(status, "__index__"):
            raise TypeError(f"the status of a HandshakeError must be an int, such as 403, not {status!r}")
        if isinstance(headers, Mapping):
            raise TypeError("the headers of a HandshakeError must be pairs of a name and a value: pass headers.items()")
        super().__init__(f"{status}: {reason}")
        self.status = operator.index(status)
        self.reason = str.__str__(reason) if isinstance(reason, str) else reason
        self.headers = tuple(headers)


class ConnectionClosed(WebSocketError):
    """The connection is closing or closed, so there is nothing more to send or to receive.

    ``code`` and ``reason`` are those that ``on_close`` sees: 1005 where the peer's close frame had none, 1006
    where the connection was lost without one.
    """

    def __init__(self, code: int, reason: str) -> None:
        # The reason may be the peer's words, and this a line of a log.
        super().__init__(f"the connection is closed: {code}{f' {reason!r}' if reason else ''}")
        self.code = code
        self.reason = reason


class ConnectionLost(ConnectionClosed):
    """The connection ended without a closing handshake, or because of an error on either side."""
