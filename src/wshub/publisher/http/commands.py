"""The commands of the HTTP API: what a POST request can ask for, alone or in a batch."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from wshub.brokers.idempotency_keys import MAX_KEY_LENGTH
from wshub.hub import Hub
from wshub.protocol.close_code import CloseCode
from wshub.publisher.http.answers import ApiError, api_error_of
from wshub.publisher.http.schemas import Schema, find_mistake
from wshub.publisher.publishers import AsyncPublisher

__all__ = ["COMMANDS", "Command", "Target", "carry_out_all", "count_messages", "has_history", "result_of"]

logger = logging.getLogger("wshub.server")

Target: TypeAlias = Hub | AsyncPublisher

Body: TypeAlias = dict[str, Any]

MESSAGE_FIELDS: Schema = {
    "text": {"type": "string", "description": "The message, which clients get as text."},
    "json": {"description": "Any value. Clients get it as JSON in a text message."},
    "base64": {
        "type": "string",
        "contentEncoding": "base64",
        "description": "The message in base64, which clients get as a binary one.",
    },
    "slow_consumer": {
        "type": "string",
        "enum": ["close", "drop_newest", "drop_oldest", "latest"],
        "description": "What happens at a client that reads too slowly, instead of what the room or the hub says.",
    },
    "key": {"type": "string", "description": "With the policy latest, a client keeps the last message of each key."},
    "compress": {"type": "boolean", "description": "Whether to compress the message, instead of what the hub says."},
}

HISTORY_FIELDS: Schema = {
    "idempotency_key": {
        "type": "string",
        "maxLength": MAX_KEY_LENGTH,
        "description": "Names the message, for a room with history. The room stores one message for a key within five "
        "minutes, so a request can be sent again.",
    },
    "publisher": {
        "type": "string",
        "description": "The name of the user who has written it. A room with history keeps it with the message.",
    },
}

OPTIONS = ("slow_consumer", "key", "compress", "idempotency_key", "publisher")
"""The fields that are keyword arguments of ``publish()``."""

ONE_MESSAGE: list[Schema] = [{"required": ["text"]}, {"required": ["json"]}, {"required": ["base64"]}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, its fields, and the function that carries it out."""

    name: str
    """The path, and the value of ``command`` in a batch."""

    summary: str
    """One line for the document."""

    fields: Schema
    """The schema of each field."""

    required: tuple[str, ...] = ()
    """The fields that must be there."""

    has_message: bool = True
    """Whether it has the fields of a message too."""

    answer: str = "Published"
    """The schema of the answer."""

    errors: tuple[str, ...] = ()
    """The codes of errors that only some commands have."""

    run: Callable[[Target, Body], Awaitable[Body]]
    """Carries it out. It takes a body that is as ``schema()`` says, and returns the answer."""

    def schema(self, max_commands: int) -> Schema:
        """Return the schema of the body. Arrays have at most so many elements."""
        fields = {
            name: {**field, "maxItems": max_commands} if field.get("type") == "array" else field
            for name, field in self.fields.items()
        }
        schema: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
        if self.required:
            schema["required"] = list(self.required)
        if self.has_message:
            schema["properties"] = {**fields, **MESSAGE_FIELDS}
            schema["oneOf"] = ONE_MESSAGE
        return schema


def message_of(body: Body) -> str | bytes:
    """Return the message of a body."""
    if "text" in body:
        text: str = body["text"]
        return text
    if "json" in body:
        try:
            return json.dumps(body["json"], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            # A number such as 1e999 is read as infinity.
            raise ApiError("invalid_request", "the field 'json' has a number that is too large") from None
    try:
        return base64.b64decode(body["base64"], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError("invalid_request", "the field 'base64' is no base64") from None


def has_history(target: Target, room: str) -> bool:
    """Whether the target stores the messages to a room."""
    if isinstance(target, AsyncPublisher):
        return target._histories.find(room) is not None
    config = target._room_config(room)
    return config is not None and config.history is not None


async def _publish(target: Target, body: Body, message: str | bytes, **receivers: Any) -> Body:
    options: dict[str, Any] = {name: body[name] for name in OPTIONS if name in body}
    published = await target.publish(message, **receivers, **options)
    if published.position is None:
        return {"receivers": published.receivers}
    return {
        "receivers": published.receivers,
        "position": asdict(published.position),
        "is_duplicate": published.is_duplicate,
    }


async def _publish_to_room(target: Target, body: Body, message: str | bytes, room: str) -> Body:
    if body.get("idempotency_key") and not has_history(target, room):
        raise ApiError(
            "no_history",
            f"the room {room!r} has no history, which an idempotency key needs: leave the key out, or configure the "
            "history where the API runs",
        )
    return await _publish(target, body, message, room=room)


async def publish(target: Target, body: Body) -> Body:
    return await _publish_to_room(target, body, message_of(body), body["room"])


async def publish_to_rooms(target: Target, body: Body) -> Body:
    # A room that is named twice gets the message once.
    rooms = list(dict.fromkeys(body["rooms"]))
    message = message_of(body)
    results = await asyncio.gather(*(result_of(_publish_to_room(target, body, message, room)) for room in rooms))
    return {"results": [{"room": room, **result} for room, result in zip(rooms, results, strict=True)]}


async def publish_to_all(target: Target, body: Body) -> Body:
    return await _publish(target, body, message_of(body))


async def send_to_user(target: Target, body: Body) -> Body:
    return await _publish(target, body, message_of(body), user=body["user"])


async def disconnect_user(target: Target, body: Body) -> Body:
    await target.disconnect_user(body["user"], body.get("code", CloseCode.POLICY_VIOLATION), body.get("reason", ""))
    return {"done": True}


ROOM: Schema = {"type": "string", "description": "The name of the room."}
USER: Schema = {"type": "string", "minLength": 1, "description": "The name of the user."}

COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="publish",
            summary="Send a message to the members of a room, on every node.",
            fields={"room": ROOM, **HISTORY_FIELDS},
            required=("room",),
            errors=("no_history",),
            run=publish,
        ),
        Command(
            name="publish_to_rooms",
            summary="Send a message to the members of several rooms. A member of two of them gets it twice.",
            fields={"rooms": {"type": "array", "items": ROOM, "minItems": 1}, **HISTORY_FIELDS},
            required=("rooms",),
            answer="RoomResults",
            run=publish_to_rooms,
        ),
        Command(
            name="publish_to_all",
            summary="Send a message to all connections, on every node.",
            fields={},
            run=publish_to_all,
        ),
        Command(
            name="send_to_user",
            summary="Send a message to all connections of a user, on every node.",
            fields={"user": USER},
            required=("user",),
            run=send_to_user,
        ),
        Command(
            name="disconnect_user",
            summary="Close all connections of a user, on every node.",
            fields={
                "user": USER,
                "code": {
                    "type": "integer",
                    "minimum": 1000,
                    "maximum": 4999,
                    "default": int(CloseCode.POLICY_VIOLATION),
                    "description": "A close code that an application may send.",
                },
                "reason": {"type": "string", "maxLength": 123, "description": "At most 123 bytes of UTF-8."},
            },
            required=("user",),
            has_message=False,
            answer="Done",
            run=disconnect_user,
        ),
    )
}


async def result_of(call: Awaitable[Body]) -> Body:
    """Return the answer of a command, or its error as an answer. An error of the program is logged."""
    try:
        return await call
    except Exception as error:
        known = api_error_of(error)
        if known is None:
            logger.exception("a command of the HTTP API has failed")
            known = ApiError("internal", "the server has failed, and has logged why")
        return {"error": known.asdict()}


async def carry_out_all(target: Target, commands: list[Any], schemas: dict[str, Schema]) -> list[Body]:
    """Carry out the commands of a batch, and return the result of each.

    They begin in their order, and none waits for the one before: a slow broker delays the batch once.

    Args:
        target: a hub or a publisher.
        commands: from JSON.
        schemas: of the bodies of all commands, by name.
    """
    return await asyncio.gather(
        *(
            result_of(_carry_out(target, command, f"commands[{index}]", schemas))
            for index, command in enumerate(commands)
        )
    )


def count_messages(commands: list[Any]) -> int:
    """Return the number of commands, in which each room of a command counts as one."""
    rooms = (command.get("rooms") if isinstance(command, dict) else None for command in commands)
    return sum(max(len(names), 1) if isinstance(names, list) else 1 for names in rooms)


async def _carry_out(target: Target, item: Any, place: str, schemas: dict[str, Schema]) -> Body:
    if not isinstance(item, dict):
        raise ApiError("invalid_request", f"{place} must be of the type object")
    body = dict(item)
    name = body.pop("command", None)
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None:
        raise ApiError("invalid_request", f"{place}.command must be one of {', '.join(COMMANDS)}")
    mistake = find_mistake(schemas[command.name], body, place)
    if mistake is not None:
        raise ApiError("invalid_request", mistake)
    return await command.run(target, body)
