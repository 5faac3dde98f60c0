"""Refuses a handshake: the response, its count, and the texts.

A text is the arguments of a ``HandshakeError``: the status, the reason and, for some, header fields. It is no error
itself, since the traceback of an error that is raised again and again grows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from wshub.core.connection_log import HasPeer, log_refusal
from wshub.errors import HandshakeError
from wshub.protocol.handshake.server import Handshake

if TYPE_CHECKING:
    from wshub.core.config import HubConfig
    from wshub.protocol.http.request import RequestHead

__all__ = [
    "FAILED",
    "INCOMPLETE",
    "NOTHING_AT_PATH",
    "NOT_A_HANDSHAKE",
    "NOT_HANDED_OVER",
    "OUT_OF_RESOURCES",
    "REFUSED_BY_MIDDLEWARE",
    "SHUTTING_DOWN",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_FROM_ADDRESS",
    "TOO_MANY_NEW",
    "TOO_MANY_NEW_FROM_ADDRESS",
    "TOO_MUCH_EARLY_DATA",
    "UNDECIDED",
    "count_refusal",
    "refuse",
]

logger = logging.getLogger("wshub.server")

_RETRY_LATER = (("Retry-After", "5"),)

TOO_MUCH_EARLY_DATA = (400, "Too much was sent before the handshake was answered.")
REFUSED_BY_MIDDLEWARE = (403, "The application's middleware has refused the handshake.")
NOTHING_AT_PATH = (404, "There is nothing at this path.")
INCOMPLETE = (408, "The request was not complete in time.")
NOT_A_HANDSHAKE = (426, "Only WebSocket handshakes are answered here.", (("Upgrade", "websocket"),))
NOT_HANDED_OVER = (426, "This server does not hand WebSocket requests over.")
TOO_MANY_FROM_ADDRESS = (429, "There are too many connections from this address.", _RETRY_LATER)
TOO_MANY_NEW_FROM_ADDRESS = (429, "There are too many new connections from this address.", _RETRY_LATER)
FAILED = (500, "The handshake failed on the server's side.")
OUT_OF_RESOURCES = (503, "The server has no resources left.", _RETRY_LATER)
SHUTTING_DOWN = (503, "The server is shutting down.")
TOO_MANY_CONNECTIONS = (503, "There are too many connections.", _RETRY_LATER)
TOO_MANY_NEW = (503, "There are too many new connections.", _RETRY_LATER)
UNDECIDED = (503, "The server did not decide in time.")


class CountsRefusals(Protocol):
    """A hub, as far as refusals concern it."""

    @property
    def refused(self) -> dict[int, int]:
        """The number of refused handshakes by HTTP status."""

    @property
    def config(self) -> HubConfig:
        """The settings of the hub."""


class RefusedOpening(Protocol):
    """An ``Opening`` that is refused."""

    @property
    def request(self) -> RequestHead:
        """The request."""

    @property
    def source(self) -> HasPeer | None:
        """The source of the request; None if its address is known already, or not needed."""

    def refused(self, error: HandshakeError) -> None:
        """Note the refusal."""


def refuse(
    hub: CountsRefusals | None,
    error: HandshakeError,
    opening: RefusedOpening | None = None,
    *,
    request: RequestHead | None = None,
    source: HasPeer | None = None,
) -> bytes:
    """Count a refused handshake for the hub, if one is known, and return the response. Arguments: ``count_refusal``."""
    try:
        response = Handshake.create_error_response(error)
    except Exception:
        logger.exception("a handshake cannot be refused as on_upgrade says")
        error = HandshakeError(*FAILED)
        response = Handshake.create_error_response(error)
    count_refusal(hub, error, opening, request=request, source=source)
    return response


def count_refusal(
    hub: CountsRefusals | None,
    error: HandshakeError,
    opening: RefusedOpening | None = None,
    *,
    request: RequestHead | None = None,
    source: HasPeer | None = None,
) -> None:
    """Count and log a handshake that is answered with the status of the error.

    Args:
        hub: that the refusal counts for; None if it is not known.
        error: the refusal.
        opening: of the handshake; None if it has not come that far.
        request: if there is no opening, the request; None if it could not be read.
        source: the source of the request, if the opening does not know it.
    """
    if hub is not None:
        hub.refused[error.status] = hub.refused.get(error.status, 0) + 1
    if opening is not None:
        opening.refused(error)
        request, source = opening.request, opening.source or source
    log_refusal(error, request, source, has_access_log=hub is not None and hub.config.access_log)
