"""The application of the histories' soak test: ``wshub serve tests.soak.histories.application:app --workers 4``.

``/report`` has what all workers say of themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute

from tests.soak.histories.wire import HISTORIES, ROOMS, TOKEN, here_of, is_short, room_name
from tests.soak.server import resident
from wshub import BrokerError, Connection, ConnectionClosed, Gap, Hub, HubConfig, Position, Publication
from wshub.brokers.redis import RedisBroker
from wshub.publisher.http import HttpApi

SKIPS = "SOAK_SKIPS" in os.environ
"""Whether members do not get some messages, to see that it is found."""

PROXIES: dict[str, int] = json.loads(os.environ["SOAK_PROXIES"])
"""The port of the proxy to each engine, by the port that Sentinels tell."""

hub = Hub(
    HubConfig(ping_interval_ms=5_000, max_connections=2_000),
    broker=RedisBroker(os.environ["SOAK_BROKER"], address_remap=lambda host, port: (host, PROXIES[str(port)])),
)


def encode(room: int, publication: Publication) -> str:
    if SKIPS and publication.offset % 3 == 0:
        return json.dumps(["failed", "nothing that a client has published"])
    return json.dumps(["message", room, publication.offset, publication.epoch, publication.data])


def encode_gap(room: int, gap: Gap) -> str:
    return json.dumps(["gap", room, gap])


for number in range(ROOMS):
    # Members learn the room from the message, so each room has functions of its own.
    settings = HISTORIES["short-*" if is_short(number) else "long-*"]
    functions = {"encode": partial(encode, number), "encode_gap": partial(encode_gap, number)}
    hub.configure_room(room_name(number), history=replace(settings, **functions))
hub.configure_room("here-*", presence=True)


async def serve(connection: Connection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for asked in connection.iter_json():
            await answer(connection, *asked)


async def answer(connection: Connection, kind: str, *fields: Any) -> None:
    if kind == "enter":
        (user,) = fields
        connection.user = user
        connection.join(here_of(user), info=user)
    elif kind == "recover":
        room, *place = fields
        try:
            recovery = await connection.recover(room_name(room), Position(*place) if place else None)
        except BrokerError:
            connection.close(1013, "try again later")
            return
        found = recovery.position
        connection.send_json(["back", room, recovery.gap, found.offset, found.epoch])
    else:
        room, data = fields
        try:
            published = await hub.publish(data, room=room_name(room), idempotency_key=data)
        except BrokerError:
            connection.send_json(["failed", data])
            return
        assert published.position is not None
        connection.send_json(["stored", data, published.position.offset, published.position.epoch])


def describe(_: Any) -> dict[str, Any]:
    """Answer the survey of a report."""
    stats, health = hub.stats().asdict(), hub.health()
    return {
        "process": os.getpid(),
        "ok": health.ok,
        "state": "" if health.broker is None else f"{health.broker.state} {health.broker.reason}",
        "connections": stats["connections"],
        "resident": resident(),
        "history": stats["history"],
        "presence": stats["presence"],
        "ignored": stats["cluster"]["ignored"],
        "interruptions": stats["cluster"]["interruptions"],
    }


hub.answer_survey("report", describe)


async def report(_: Request) -> JSONResponse:
    try:
        found = await hub.survey("report", timeout_ms=2_000)
    except BrokerError as error:
        return JSONResponse({"error": str(error)}, 503)
    return JSONResponse({"workers": list(found.answers.values()), "missing": len(found.missing)})


app = Starlette(
    routes=[
        WebSocketRoute("/", hub.asgi(serve)),
        Route("/report", report),
        Mount("/api", HttpApi(hub, tokens=[TOKEN])),
    ]
)
