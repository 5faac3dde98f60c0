"""The lines of the log about clients: connections that opened and closed, and handshakes that were refused.

A line is on the logger ``wshub.client`` at DEBUG. If ``HubConfig.access_log`` is set, another one is on
``wshub.access`` at INFO. Each record has its values as attributes too, for formatters that write JSON. No line has a
query, a header field or a payload. A path and the reason of a close are the client's words. They are escaped, so that
they cannot begin a line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from wshub.core.access_log import log_answer, log_end

if TYPE_CHECKING:
    from wshub.errors import HandshakeError
    from wshub.protocol.http.request import RequestHead

__all__ = ["ConnectionLog", "HasPeer", "address_text", "log_refusal", "logger"]

logger = logging.getLogger("wshub.client")

MOST_OF_A_PATH = 200
"""Characters of a path in the log. A client may send some thousand."""


class HasPeer(Protocol):
    """The source of a request."""

    @property
    def peer(self) -> tuple[Any, ...] | None:
        """The address of the peer; None if it has none."""


class LoggedConnection(Protocol):
    """A connection, as far as the log shows it."""

    @property
    def id(self) -> int: ...
    @property
    def remote_address(self) -> tuple[str, int] | None: ...
    @property
    def path(self) -> str: ...


class ConnectionLog:
    """The lines about one connection: creating it logs that the connection has opened.

    Args:
        connection: that has opened.
        has_access_log: whether its hub has an access log.
        opened_at: the time by the hub's clock.
        sent_before: the bytes that its link has sent or queued until now.
    """

    __slots__ = ("_fields", "_has_access_log", "_opened_at", "_sent_before")

    def __init__(self, connection: LoggedConnection, has_access_log: bool, opened_at: float, sent_before: int) -> None:
        self._has_access_log = has_access_log
        self._opened_at = opened_at
        self._sent_before = sent_before
        self._fields = {
            "connection_id": connection.id,
            "remote_address": address_text(connection.remote_address),
            "path": path_text(connection.path),
        }
        fields = {"event": "opened", "status": 101, **self._fields}
        logger.debug("connection %(connection_id)d from %(remote_address)s opened: %(path)s", fields, extra=fields)
        if has_access_log:
            log_answer(fields)

    def closed(self, code: int, reason: str, now: float, received: int, sent: int) -> None:
        """Log that the connection has ended."""
        fields = {
            "event": "closed",
            **self._fields,
            "close_code": code,
            "close_reason": escaped(reason),
            "duration_ms": round((now - self._opened_at) * 1000, 3),
            "bytes_received": received,
            "bytes_sent": max(sent - self._sent_before, 0),
        }
        logger.debug(
            "connection %(connection_id)d from %(remote_address)s closed: %(close_code)d %(close_reason)s, "
            "%(duration_ms)d ms, %(bytes_received)d bytes received, %(bytes_sent)d sent",
            fields,
            extra=fields,
        )
        if self._has_access_log:
            log_end(fields)


def log_refusal(
    error: HandshakeError, request: RequestHead | None, source: HasPeer | None, *, has_access_log: bool
) -> None:
    """Log that a handshake was refused.

    Args:
        error: the refusal.
        request: None if it could not be read.
        source: the connection, for its address; None if only the request may know that.
        has_access_log: whether the hub has an access log.
    """
    if not (has_access_log or logger.isEnabledFor(logging.DEBUG)):
        return
    address = request.remote_address if request is not None else None
    if address is None and source is not None:
        address = source.peer
    fields = {
        "event": "refused",
        "remote_address": address_text(address),
        "path": path_text(request.path) if request is not None else "-",
        "status": error.status,
        "reason": escaped(error.reason),
    }
    logger.debug(
        "handshake from %(remote_address)s refused with %(status)d: %(reason)s, %(path)s", fields, extra=fields
    )
    if has_access_log:
        log_answer(fields)


def address_text(address: Any) -> str:
    """Return an address as a URL has it; ``-`` if there is none. A proxy does not tell the port, which is 0 then."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "-"
    host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
    return f"{host}:{address[1]}" if address[1] else str(host)


def path_text(path: str) -> str:
    """Return a path, percent-encoded as in a request."""
    encoded = quote(path, errors="replace")
    return encoded if len(encoded) <= MOST_OF_A_PATH else encoded[:MOST_OF_A_PATH] + "..."


def escaped(text: str) -> str:
    """Return a text in which nothing begins a line or steers a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]
