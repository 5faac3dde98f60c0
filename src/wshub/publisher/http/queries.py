"""The questions that the HTTP API answers: GET requests.

To add one, write a function here, and an entry in ``QUERIES``. The answer needs a schema in ``openapi.py``. A question
about one room, such as its presence or its history, takes the parameter ``room``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from starlette.datastructures import QueryParams

from wshub.hub import Hub
from wshub.publisher.http.answers import ApiError
from wshub.publisher.http.commands import Target
from wshub.publisher.http.schemas import Schema

__all__ = ["QUERIES", "Query", "health"]

MAX_ROOMS = 100
"""Rooms that one request can ask about."""


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

    run: Callable[[Hub, QueryParams], Awaitable[dict[str, Any]]]
    """Answers it. It needs a hub."""


async def room_counts(hub: Hub, parameters: QueryParams) -> dict[str, Any]:
    rooms = list(dict.fromkeys(parameters.getlist("room")))
    if not 1 <= len(rooms) <= MAX_ROOMS:
        raise ApiError("invalid_request", f"ask for 1 to {MAX_ROOMS} rooms: ?room=lobby&room=kitchen")
    counts = await asyncio.gather(*(hub.room_count(room) for room in rooms))
    return {"rooms": dict(zip(rooms, counts, strict=True))}


async def nodes(hub: Hub, parameters: QueryParams) -> dict[str, Any]:
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


QUERIES = {
    query.name: query
    for query in (
        Query(
            name="room_counts",
            summary="The number of members of each room, on all nodes together.",
            parameters=(
                {
                    "name": "room",
                    "in": "query",
                    "required": True,
                    "description": "The name of a room. Give it several times for several rooms.",
                    "schema": {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": 1,
                        "maxItems": MAX_ROOMS,
                    },
                },
            ),
            answer="RoomCounts",
            run=room_counts,
        ),
        Query(
            name="nodes",
            summary="The hubs that were heard within the last ten seconds, the one that answers first.",
            answer="Nodes",
            run=nodes,
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
