"""The messages of ``graphql-transport-ws`` as text, and its close codes. Nothing here knows a connection.

https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

__all__ = [
    "SUBPROTOCOL",
    "ClientMessage",
    "GraphQLCloseCode",
    "InvalidClientMessage",
    "SubscribePayload",
    "encode_message",
    "parse_message",
    "parse_subscribe",
]

SUBPROTOCOL = "graphql-transport-ws"
"""The subprotocol that a hub must choose for a GraphQLHandler."""


class GraphQLCloseCode(IntEnum):
    """The codes with which the server closes a connection.

    The npm package ``graphql-ws`` connects again after ``FORBIDDEN``, ``CONNECTION_INITIALISATION_TIMEOUT`` and
    ``TERMINATED``, and never after any other of these.
    """

    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    SUBPROTOCOL_NOT_ACCEPTABLE = 4406
    CONNECTION_INITIALISATION_TIMEOUT = 4408
    SUBSCRIBER_ALREADY_EXISTS = 4409
    TOO_MANY_INITIALISATION_REQUESTS = 4429
    TERMINATED = 4499
    INTERNAL_SERVER_ERROR = 4500


class InvalidClientMessage(ValueError):
    """The text of a client is not a message of the protocol."""


@dataclass(frozen=True, slots=True)
class SubscribePayload:
    """The operation that a client requests."""

    query: str
    operation_name: str | None
    variables: dict[str, Any] | None
    extensions: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A message of a client.

    ``id`` is the id of an operation, and empty in messages about the connection. ``size`` counts the bytes of a
    ``subscribe`` message, and is 0 for other messages.
    """

    type: str
    id: str
    payload: dict[str, Any] | None
    size: int = 0


def parse_message(text: str) -> ClientMessage:
    """Return the message in ``text``. Raises ``InvalidClientMessage`` if no client may send it."""
    value = _parse_json(text)
    if not isinstance(value, dict):
        raise InvalidClientMessage("the message is not an object")
    kind = value.get("type")
    if kind in ("connection_init", "ping", "pong"):
        return ClientMessage(kind, "", _payload_of(value))
    if kind in ("subscribe", "complete"):
        operation = value.get("id")
        if not isinstance(operation, str) or not operation:
            raise InvalidClientMessage("the message has no id")
        if kind == "complete":
            return ClientMessage(kind, operation, None)
        return ClientMessage(kind, operation, _payload_of(value), len(text.encode()))
    raise InvalidClientMessage("the type of the message is unknown")


def parse_subscribe(message: ClientMessage) -> SubscribePayload:
    """Return the operation of a ``subscribe`` message. Raises ``InvalidClientMessage`` if a field has a wrong type."""
    payload = message.payload or {}
    query = payload.get("query")
    name = payload.get("operationName")
    variables = payload.get("variables")
    extensions = payload.get("extensions")
    if not isinstance(query, str):
        raise InvalidClientMessage("a subscribe has a query")
    if not isinstance(name, str | None):
        raise InvalidClientMessage("the name of an operation is a string")
    if not isinstance(variables, dict | None) or not isinstance(extensions, dict | None):
        raise InvalidClientMessage("the variables and the extensions of an operation are objects")
    return SubscribePayload(query, name, variables, extensions)


def encode_message(kind: str, payload: Any = None, *, operation_id: str | None = None) -> str:
    """Return a message of the server as text. A ``payload`` of ``None`` is left out.

    Raises ``TypeError`` or ``ValueError`` for a payload that JSON cannot express.
    """
    message = {"type": kind} if operation_id is None else {"id": operation_id, "type": kind}
    if payload is not None:
        message["payload"] = payload
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _parse_json(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # Only an escape can make a lone surrogate. A text with one cannot be sent.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidClientMessage("a string has a lone surrogate") from None
    except (ValueError, RecursionError):
        raise InvalidClientMessage("the message is not JSON") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _payload_of(value: dict[str, Any]) -> dict[str, Any] | None:
    payload = value.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise InvalidClientMessage("the payload is not an object")
    return payload
