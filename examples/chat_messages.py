"""The messages that clients of the chat send, checked before anything else sees them.

A client is not trusted: it may send anything. ``parse`` returns one of the classes below, or raises ``BadMessage``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast
from unicodedata import category

MAX_NAME = 32
MAX_NUMBER = 2**53
"""More messages than any room will ever have. JavaScript and SQLite represent it exactly."""

ROOM = re.compile(r"[\w-]{1,32}")
MESSAGE_ID = re.compile(r"[A-Za-z0-9-]{8,64}")


class BadMessage(ValueError):
    """A message that no page of the chat sends. Its text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Enter:
    """The client enters a room, under a name, and leaves the room that it was in."""

    room: str
    name: str

    after: int | None
    """The number of the newest message that the client has; None if it has none."""


@dataclass(frozen=True, slots=True)
class Say:
    """A message for a room. Sent again with the same id, it is stored once."""

    id: str
    room: str

    text: str
    """The text of the user without control characters. It may be empty or too long."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """The client misses the messages of a room after that number."""

    room: str
    after: int


@dataclass(frozen=True, slots=True)
class Typing:
    """The user is typing."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The client wants to know whether the connection works, and how long an answer takes."""


ClientMessage: TypeAlias = Enter | Say | Fetch | Typing | Ping


def parse(data: str | bytes) -> ClientMessage:
    """Return the message of a client. Raises ``BadMessage`` if it is not one."""
    fields = _fields(data)
    match fields.get("type"):
        case "enter":
            after = None if fields.get("after") is None else _number(fields, "after")
            return Enter(_matching(fields, "room", ROOM), _name(_text(fields, "name")), after)
        case "say":
            message_id, room = _matching(fields, "id", MESSAGE_ID), _matching(fields, "room", ROOM)
            return Say(message_id, room, _without_controls(_text(fields, "text")))
        case "fetch":
            return Fetch(_matching(fields, "room", ROOM), _number(fields, "after"))
        case "typing":
            return Typing()
        case "ping":
            return Ping()
        case _:
            raise BadMessage("unknown type")


def _fields(data: str | bytes) -> dict[str, Any]:
    if isinstance(data, bytes):
        raise BadMessage("a chat is text")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadMessage("not JSON") from None
    if not isinstance(value, dict):
        raise BadMessage("not a JSON object")
    return cast("dict[str, Any]", value)


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise BadMessage(f"{key} is not a string")
    return value


def _number(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise BadMessage(f"{key} is not a number of a message")
    return value


def _matching(fields: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = _text(fields, key)
    if not pattern.fullmatch(value):
        raise BadMessage(f"{key} is not allowed")
    return value


def _name(text: str) -> str:
    """Return a name of printable characters on one line: marks that change the direction of text are not among them."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_NAME].strip() or "Guest"


def _without_controls(text: str) -> str:
    """Return a text without control characters and lone surrogates, which have no place on a page or in UTF-8."""
    kept = "".join(character for character in text if character in "\n\t" or category(character) != "Cc")
    return kept.encode(errors="replace").decode().strip()
