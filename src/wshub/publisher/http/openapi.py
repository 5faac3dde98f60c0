"""The OpenAPI document of the HTTP API."""

from __future__ import annotations

from typing import Any

from wshub.publisher.http.answers import ERROR_STATUSES
from wshub.publisher.http.commands import COMMANDS, Command
from wshub.publisher.http.queries import QUERIES, Query
from wshub.publisher.http.schemas import Schema

__all__ = ["document"]

COUNT: Schema = {"type": "integer", "minimum": 0}
RECEIVERS: Schema = {
    "type": ["integer", "null"],
    "description": "The number of nodes that the broker has given the message to; null if the broker cannot tell.",
}
ERROR: Schema = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "enum": list(ERROR_STATUSES)},
        "message": {"type": "string", "description": "Says what to do."},
    },
    "required": ["code", "message"],
}


def _object(required: bool = True, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(properties)} if required else schema


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


POSITION = _object(
    offset={"type": "integer", "minimum": 0, "description": "The number of the newest message."},
    epoch={"type": "string", "description": "Offsets of another epoch say nothing."},
)
PUBLISHED: Schema = {
    "receivers": RECEIVERS,
    "position": {**_reference("Position"), "description": "Of the message. Only in a room with history."},
    "is_duplicate": {
        "type": "boolean",
        "description": "Whether a message with this idempotency key was stored before. Then the position is that "
        "message's, and nothing was sent.",
    },
}
PUBLICATION: Schema = {
    "type": "object",
    "properties": {
        "offset": COUNT,
        "text": {"type": "string", "description": "A message that is text."},
        "base64": {"type": "string", "contentEncoding": "base64", "description": "A binary message."},
        "publisher": {"type": ["string", "null"], "description": "The name of the user who has written it."},
        "time": {"type": "number", "description": "Seconds since 1970, by the clock of the publisher's machine."},
    },
    "required": ["offset", "publisher", "time"],
    "oneOf": [{"required": ["text"]}, {"required": ["base64"]}],
}

ANSWERS = {
    "Position": POSITION,
    "Published": {"type": "object", "properties": PUBLISHED, "required": ["receivers"]},
    "Done": _object(done={"type": "boolean"}),
    "RoomResults": _object(
        results={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"room": {"type": "string"}, **PUBLISHED, "error": _reference("Problem")},
                "required": ["room"],
            },
        }
    ),
    "BatchResults": _object(
        results={
            "type": "array",
            "description": "The answer of each command, in the order of the commands; or its error.",
            "items": {
                "anyOf": [
                    *(_reference(name) for name in sorted({command.answer for command in COMMANDS.values()})),
                    _reference("Error"),
                ]
            },
        }
    ),
    "RoomCounts": _object(rooms={"type": "object", "additionalProperties": COUNT}),
    "Nodes": _object(
        nodes={
            "type": "array",
            "items": _object(
                id={"type": "string"},
                hub={"type": "string"},
                host={"type": "string"},
                pid=COUNT,
                started_at={"type": "number", "description": "Seconds since 1970, by the clock of its machine."},
                connections=COUNT,
                heard_ms={"type": "integer", "description": "Milliseconds since it was heard."},
                hears_this_node={"type": "boolean"},
            ),
        }
    ),
    "History": _object(
        publications={"type": "array", "items": PUBLICATION},
        position={**_reference("Position"), "description": "Of the newest message of the room."},
        gap={
            "type": "string",
            "enum": ["", "epoch", "trimmed"],
            "description": "Why messages behind since are missing: another epoch has begun, or they are not kept any "
            "more. Empty if none is missing.",
        },
        next={
            "anyOf": [_reference("Position"), {"type": "null"}],
            "description": "The since and the epoch of the next page; null if there is none.",
        },
    ),
    "Presence": _object(
        members={
            "type": "array",
            "items": _object(
                node={"type": "string", "description": "The id of the node."},
                connection=COUNT,
                user={"type": ["string", "null"], "description": "null for a connection without a user."},
                info={"description": "What Connection.join was given."},
            ),
        },
        cursor={"type": "string", "description": "That of the next page; empty if there is none."},
    ),
    "PresenceCounts": _object(
        rooms={"type": "object", "additionalProperties": _object(connections=COUNT, users=COUNT)}
    ),
    "Health": _object(
        ok={"type": "boolean"},
        broker={
            "type": ["string", "null"],
            "enum": ["starting", "connected", "disconnected", "deaf", None],
            "description": "null without a broker.",
        },
    ),
    "Problem": ERROR,
    "Error": _object(error=_reference("Problem")),
}


def _content(schema: Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _errors(*codes: str) -> dict[str, Any]:
    return {str(ERROR_STATUSES[code]): {"$ref": f"#/components/responses/{code}"} for code in codes}


POST_ERRORS = _errors(
    "invalid_request",
    "unauthorized",
    "too_large",
    "internal",
    "broker_refused",
    "broker_unavailable",
    "broker_uncertain",
)
GET_ERRORS = _errors("invalid_request", "unauthorized", "internal", "needs_hub", "broker_unavailable")

ERROR_TEXTS = {
    "invalid_request": "The request is not as this document says.",
    "unauthorized": "There is no token, or another one.",
    "not_found": "There is no such path.",
    "no_history": "The room has no history.",
    "no_presence": "The room has no presence.",
    "method_not_allowed": "The path takes another method.",
    "too_large": "The body has too many bytes.",
    "internal": "The server has failed, and has logged why.",
    "needs_hub": "A publisher cannot answer this: ask an API that has a hub.",
    "broker_refused": "The broker has refused it, such as for want of memory.",
    "broker_unavailable": "The broker has no connection: no other node was reached.",
    "broker_uncertain": "The answer of the broker was lost: other nodes may have been reached.",
}


def document(version: str, root: str, max_body: int, max_commands: int) -> dict[str, Any]:
    """Return the document.

    Args:
        version: of wshub.
        root: the path at which the API is mounted.
        max_body: bytes that a body may have.
        max_commands: elements that an array in a body may have.
    """
    paths = {f"/{command.name}": {"post": _command_operation(command, max_commands)} for command in COMMANDS.values()}
    paths["/batch"] = {"post": _batch_operation(max_commands)}
    paths |= {f"/{query.name}": {"get": _query_operation(query)} for query in QUERIES.values()}
    paths["/health"] = {"get": _health_operation()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wshub",
            "version": version,
            "description": f"Sends messages to WebSocket clients. A body has at most {max_body} bytes.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": ANSWERS,
            "responses": {
                code: {"description": text, **_content(_reference("Error"))} for code, text in ERROR_TEXTS.items()
            },
        },
    }


def _command_operation(command: Command, max_commands: int) -> dict[str, Any]:
    several = {"207": {"description": "Some rooms have an error.", **_content(_reference(command.answer))}}
    return {
        "operationId": command.name,
        "summary": command.summary,
        "requestBody": {"required": True, **_content(command.schema(max_commands))},
        "responses": {
            "200": {"description": "The broker has it.", **_content(_reference(command.answer))},
            **(several if command.answer == "RoomResults" else {}),
            **POST_ERRORS,
            **_errors(*command.errors),
        },
    }


def _batch_operation(max_commands: int) -> dict[str, Any]:
    items = []
    for command in COMMANDS.values():
        schema = command.schema(max_commands)
        properties = {"command": {"const": command.name}, **schema["properties"]}
        items.append({**schema, "properties": properties, "required": ["command", *schema.get("required", ())]})
    text = f"At most {max_commands} commands, in which each room of publish_to_rooms counts as one."
    commands = {"type": "array", "description": text, "maxItems": max_commands, "items": {"oneOf": items}}
    body = {**_object(commands=commands), "additionalProperties": False}
    results = _content(_reference("BatchResults"))
    return {
        "operationId": "batch",
        "summary": "Carry out several commands. They begin in their order, and each succeeds or fails by itself.",
        "requestBody": {"required": True, **_content(body)},
        "responses": {
            "200": {"description": "All commands have succeeded.", **results},
            "207": {"description": "Some commands have an error.", **results},
            **_errors("invalid_request", "unauthorized", "too_large", "internal"),
        },
    }


def _query_operation(query: Query) -> dict[str, Any]:
    return {
        "operationId": query.name,
        "summary": query.summary,
        "parameters": list(query.parameters),
        "responses": {
            "200": {"description": query.summary, **_content(_reference(query.answer))},
            **GET_ERRORS,
            **_errors(*query.errors),
        },
    }


def _health_operation() -> dict[str, Any]:
    content = _content(_reference("Health"))
    return {
        "operationId": "health",
        "summary": "Whether messages reach the clients. It needs no token.",
        "security": [],
        "responses": {
            "200": {"description": "They do.", **content},
            "503": {"description": "The hub is closing, or the broker has no connection.", **content},
        },
    }
