"""The questions that the HTTP API answers: GET requests.

To add one, write a function here, and an entry in ``QUERIES``. The answer needs a schema in ``openapi.py``.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from wshub.brokers.interface import History, Position, Publication
from wshub.errors import MisuseError
from wshub.hub import Hub
from wshub.publisher.http.answers import ApiError
from wshub.publisher.http.commands import Target, has_history
from wshub.publisher.http.parameters import boolean, integer, parameter, text
from wshub.publisher.http.schemas import Schema

__all__ = ["QUERIES", "Query", "health"]

MAX_ROOMS = 100
"""Rooms that one request can ask about."""

MAX_PAGE = 1000
"""Messages or members that one request can ask for. An answer has at most 1 MiB of messages."""

PAGE = 100
"""Messages or members of a page whose size is not given."""

MAX_OFFSET = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question, its parameters, and the function that answers it."""

    name: str
    """The path."""

    summary: str
    """One line for the document."""

    parameters: tuple[Schema, ...] = ()
    """The parameters of the query string, as in an OpenAPI document."""

    answer: str
    """The schema of the answer."""

    errors: tuple[str, ...] = ()
    """The codes of errors that only some questions have."""

    run: Callable[[Hub, dict[str, Any]], Awaitable[dict[str, Any]]]
    """Answers it. It needs a hub, and the values of the parameters."""


async def room_counts(hub: Hub, given: dict[str, Any]) -> dict[str, Any]:
    rooms = list(dict.fromkeys(given["room"]))
    counts = await asyncio.gather(*(hub.room_count(room) for room in rooms))
    return {"rooms": dict(zip(rooms, counts, strict=True))}


async def nodes(hub: Hub, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "nodes": [
            {
                **{name: value for name, value in asdict(node.info).items() if name != "receives"},
                "connections": node.connections,
                "heard_ms": node.heard_ms,
                "hears_this_node": node.hears_this_node,
            }
            for node in await hub.nodes()
        ]
    }


# Histories


async def history(hub: Hub, given: dict[str, Any]) -> dict[str, Any]:
    room, reverse = given["room"], given["reverse"]
    if ("since" in given) != ("epoch" in given):
        raise ApiError("invalid_request", "give since and epoch together: the offset and the epoch of a position")
    if not has_history(hub, room):
        raise ApiError("no_history", f"the room {room!r} has no history: configure it where the API runs")
    since = Position(given["since"], given["epoch"]) if "since" in given else None
    found = await hub.history(room, since=since, limit=given["limit"], reverse=reverse)
    return {
        "publications": [_publication(each) for each in found.publications],
        "position": asdict(found.position),
        "gap": found.gap,
        "next": _next_position(found, reverse=reverse),
    }


def _publication(found: Publication) -> dict[str, Any]:
    """Return a message as JSON has it, under the field that publishes one: ``text`` or ``base64``."""
    data = found.data
    content = {"text": data} if isinstance(data, str) else {"base64": base64.b64encode(data).decode()}
    return {"offset": found.offset, **content, "publisher": found.publisher, "time": found.time}


def _next_position(found: History, *, reverse: bool) -> dict[str, Any] | None:
    """Return the position that asks for the next page; None if there is none."""
    if not found.publications:
        return None
    last = found.publications[-1].offset
    has_more = last > 1 if reverse else last < found.position.offset
    return asdict(Position(last, found.position.epoch)) if has_more else None


# Presence


def _check_presence(hub: Hub, room: str) -> None:
    config = hub._room_config(room)
    if config is None or config.presence is None:
        raise ApiError("no_presence", f"the room {room!r} has no presence: configure it where the API runs")


async def presence(hub: Hub, given: dict[str, Any]) -> dict[str, Any]:
    _check_presence(hub, given["room"])
    try:
        page = await hub.presence(given["room"], limit=given["limit"], cursor=given["cursor"])
    except MisuseError as error:
        raise ApiError("invalid_request", str(error)) from None
    return {"members": [asdict(member) for member in page.members], "cursor": page.cursor}


async def presence_counts(hub: Hub, given: dict[str, Any]) -> dict[str, Any]:
    rooms = list(dict.fromkeys(given["room"]))
    for room in rooms:
        _check_presence(hub, room)
    counts = await asyncio.gather(*(hub.presence_counts(room) for room in rooms))
    return {"rooms": {room: asdict(count) for room, count in zip(rooms, counts, strict=True)}}


ROOM = parameter("room", "The name of the room.", {"type": "string"}, required=True)

ROOMS = parameter(
    "room",
    "The name of a room. Give it several times for several rooms.",
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_ROOMS},
    required=True,
)

QUERIES = {
    query.name: query
    for query in (
        Query(
            name="room_counts",
            summary="The number of members of each room, on all nodes together.",
            parameters=(ROOMS,),
            answer="RoomCounts",
            run=room_counts,
        ),
        Query(
            name="nodes",
            summary="The hubs that were heard within the last ten seconds, the one that answers first.",
            answer="Nodes",
            run=nodes,
        ),
        Query(
            name="history",
            summary="The messages of a room that are kept, the oldest first. A page has at most 1 MiB of them.",
            parameters=(
                ROOM,
                parameter(
                    "since",
                    "Only messages behind this offset; in reverse, those before it. Without it, the page begins with "
                    "the oldest message, or in reverse with the newest.",
                    integer(0, MAX_OFFSET),
                ),
                parameter("epoch", "The epoch of this offset.", {**text(100), "minLength": 1}),
                parameter(
                    "limit", "The most messages of a page. 0 asks for the position alone.", integer(0, MAX_PAGE, PAGE)
                ),
                parameter("reverse", "Whether the newest message comes first.", boolean(False)),
            ),
            answer="History",
            errors=("no_history", "broker_refused"),
            run=history,
        ),
        Query(
            name="presence",
            summary="Members of a room with presence, on all nodes together.",
            parameters=(
                ROOM,
                parameter("limit", "About how many members a page has.", integer(1, MAX_PAGE, PAGE)),
                parameter("cursor", "The cursor of the page before.", {**text(200), "default": ""}),
            ),
            answer="Presence",
            errors=("no_presence", "broker_refused", "broker_uncertain"),
            run=presence,
        ),
        Query(
            name="presence_counts",
            summary="The number of connections and of users in each room with presence, on all nodes together.",
            parameters=(ROOMS,),
            answer="PresenceCounts",
            errors=("no_presence", "broker_refused", "broker_uncertain"),
            run=presence_counts,
        ),
    )
}


def health(target: Target) -> tuple[bool, dict[str, Any]]:
    """Return whether the hub or the publisher works, and the answer. It tells nothing that a stranger may not know."""
    if isinstance(target, Hub):
        found = target.health()
        ok, broker = found.ok, found.broker
    else:
        broker = target.health()
        ok = broker.ok
    return ok, {"ok": ok, "broker": broker.state if broker is not None else None}
