"""The messages of ``graphql-transport-ws``, as a client sends them, and the codes that close its connections.

https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

__all__ = [
    "ClientMessage",
    "GraphQLCloseCode",
    "InvalidClientMessage",
    "SubscribePayload",
    "parse_message",
    "parse_subscribe",
]


class GraphQLCloseCode(IntEnum):
    """Why the server has closed a connection."""

    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    SUBPROTOCOL_NOT_ACCEPTABLE = 4406
    CONNECTION_INITIALISATION_TIMEOUT = 4408
    SUBSCRIBER_ALREADY_EXISTS = 4409
    TOO_MANY_INITIALISATION_REQUESTS = 4429
    INTERNAL_SERVER_ERROR = 4500


class InvalidClientMessage(ValueError):
    """What a client has sent is no message of the protocol."""


@dataclass(frozen=True, slots=True)
class SubscribePayload:
    """The operation that a client asks for."""

    query: str
    operation_name: str | None
    variables: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A message; ``id`` is that of an operation, and empty in messages that are of none."""

    type: str
    id: str
    payload: dict[str, Any] | None


def parse_message(text: str) -> ClientMessage:
    """Return the message that ``text`` is. Raises ``InvalidClientMessage`` if it is none that a client sends."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidClientMessage("the message is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidClientMessage("the message is not an object")
    kind = value.get("type")
    payload = value.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise InvalidClientMessage("the payload is not an object")
    if kind in ("connection_init", "ping", "pong"):
        return ClientMessage(kind, "", payload)
    if kind in ("subscribe", "complete"):
        operation = value.get("id")
        if not isinstance(operation, str) or not operation:
            raise InvalidClientMessage("the message has no id")
        return ClientMessage(kind, operation, payload)
    raise InvalidClientMessage("the type of the message is unknown")


def parse_subscribe(message: ClientMessage) -> SubscribePayload:
    """Return what a subscribe asks for. Raises ``InvalidClientMessage`` for one that does not say it as it must."""
    payload = message.payload or {}
    query = payload.get("query")
    name = payload.get("operationName")
    variables = payload.get("variables")
    if not isinstance(query, str):
        raise InvalidClientMessage("a subscribe has a query")
    if not isinstance(name, str | None) or not isinstance(variables, dict | None):
        raise InvalidClientMessage("the name or the variables of an operation are of another kind")
    return SubscribePayload(query, name, variables)
