"""The exceptions of wshub. Each message says what to change.

::

    WebSocketError
    ├── MisuseError              A call that is not possible in this place, at this time or with these arguments.
    ├── ConfigurationError       A setting with an invalid value.
    ├── InvalidMessageError      A message, code or reason that cannot be sent.
    ├── UnexpectedMessageError   A message of another kind than the application asked for, with a close code.
    ├── ProtocolError            Bytes that violate RFC 6455, with a close code.
    ├── HandshakeError           A request that does not become a WebSocket, with an HTTP status.
    ├── BrokerError              A broker has not done what was asked.
    │   ├── BrokerUnavailable    Nothing was sent.
    │   └── BrokerUncertain      The answer was lost, so the message may have been sent.
    └── ConnectionClosed         The connection is closing or closed, with a code and a reason.
        └── ConnectionLost       The same, without a closing handshake or after an error.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "BrokerUncertain",
    "ConfigurationError",
    "ConnectionClosed",
    "ConnectionLost",
    "HandshakeError",
    "InvalidMessageError",
    "MisuseError",
    "ProtocolError",
    "UnexpectedMessageError",
    "WebSocketError",
]


class WebSocketError(Exception):
    """The base class of the exceptions of wshub."""


class MisuseError(WebSocketError, RuntimeError):
    """A call that is not possible in this place, at this time or with these arguments."""


class ConfigurationError(WebSocketError, ValueError):
    """A setting with an invalid value. The message names the setting and the allowed values."""


class InvalidMessageError(WebSocketError, ValueError):
    """A message, close code, close reason or control payload that RFC 6455 does not allow."""


class ProtocolError(WebSocketError):
    """Bytes from the peer that violate RFC 6455.

    ``code`` is the close code for this violation (section 7.4.1), and ``reason`` describes it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (close code {code})")
        self.code = code
        self.reason = reason


class UnexpectedMessageError(WebSocketError, ValueError):
    """A message from the client that is not what the application asked for.

    ``receive_text`` raises it for a binary message, ``receive_bytes`` for a text message, and ``receive_json`` for
    anything that is no JSON. If a handler does not catch it, the hub closes the connection with ``code`` and
    ``reason``. The client is at fault, so the log has no traceback.

    ``code`` is 1003 for a message of the other type, and 1007 for text that is no JSON (RFC 6455 section 7.4.1).
    ``reason`` says what was expected. It never repeats the message.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (close code {code})")
        self.code = code
        self.reason = reason


class HandshakeError(WebSocketError):
    """A handshake request that is not answered with 101 (RFC 6455 section 4.2.2).

    ``status`` is the HTTP status of the response. ``reason`` is one plain sentence for its body. ``headers`` are the
    header fields that the status requires.
    """

    def __init__(self, status: int, reason: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        if isinstance(status, bool) or not hasattr(status, "__index__"):
            raise TypeError(f"the status of a HandshakeError must be an int, such as 403, not {status!r}")
        if isinstance(headers, Mapping):
            raise TypeError("the headers of a HandshakeError must be pairs of a name and a value: pass headers.items()")
        super().__init__(f"{status}: {reason}")
        self.status: int = operator.index(status)
        self.reason: str = str.__str__(reason) if isinstance(reason, str) else reason
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)


class ConnectionClosed(WebSocketError):
    """The connection is closing or closed. It can neither send nor receive.

    ``code`` and ``reason`` are the arguments of ``on_close``. The code is 1005 if the peer's close frame had none, and
    1006 if the connection ended without a close frame.

    A client may leave at any moment, so a handler need not catch this. If its own connection has ended, the handler
    ends quietly: ``on_error`` is not called, and nothing is logged. ``on_close`` is called as always. Catch it if the
    handler has to go on, for example to save what the client has sent.
    """

    def __init__(self, code: int, reason: str) -> None:
        # The peer may have chosen the reason: repr() keeps it on one line of a log.
        super().__init__(f"the connection is closed: {code}{f' {reason!r}' if reason else ''}")
        self.code = code
        self.reason = reason


class ConnectionLost(ConnectionClosed):
    """The connection ended without a closing handshake, or because of an error on one side."""


class BrokerError(WebSocketError):
    """A broker has not done what was asked."""


class BrokerUnavailable(BrokerError):
    """Nothing was sent: the broker has no connection, or too much waits for it. Try again later."""


class BrokerUncertain(BrokerError):
    """The answer of the broker was lost. The message may have been sent: if you send it again, it may arrive twice."""
