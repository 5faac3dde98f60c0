"""A client of ``graphql-transport-ws``: the state that its session and its operations share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from wshub.core.connection import Connection, ConnectionState
from wshub.errors import ConnectionClosed
from wshub.graphql.messages import encode_message
from wshub.graphql.options import Options
from wshub.graphql.pacer import Pacer

__all__ = ["Client"]


@dataclass(slots=True)
class Client:
    """A connection, and everything that serves its operations."""

    connection: Connection
    options: Options
    pacer: Pacer
    tasks: set[asyncio.Task[None]]
    """The running operations of all clients."""

    payload: dict[str, Any] | None = None
    """The payload of the client's ``connection_init``."""

    def send(self, kind: str, payload: Any = None, *, operation_id: str | None = None) -> None:
        """Send a message. Raises ``TypeError`` or ``ValueError`` for one that JSON or UTF-8 cannot express."""
        self.connection.send(encode_message(kind, payload, operation_id=operation_id))

    def has_ended(self, error: BaseException) -> bool:
        """Return True if the end of the connection explains the error."""
        ended = self.connection.state is not ConnectionState.OPEN
        return ended and isinstance(error, ConnectionClosed | asyncio.CancelledError)
