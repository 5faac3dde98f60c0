"""The ways to serve a hub: by itself, by the acceptor, by the protocol class of uvicorn, and behind middleware."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.middleware import Middleware

from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, Hub, HubConfig
from wshub.app import App
from wshub.uvicorn.event_loop import accept_natively

WAYS = ["Hub.serve", "native route", "uvicorn", "middleware"]


class Passing:
    """Middleware that passes every request on. Behind it no route is native."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def live(connection: Connection) -> None:
    async for _ in connection:
        pass


@contextlib.asynccontextmanager
async def served(
    way: str, handler: Any = live, *, on_upgrade: Any = None, prepare: Any = None, **settings: Any
) -> AsyncIterator[tuple[Hub, int]]:
    """Serve a hub in one of the ways, at every path for an EventHandler. Yields the hub and its port.

    ``prepare`` is called with the hub before it serves.
    """
    if way == "Hub.serve":
        hub = Hub(HubConfig(**settings), on_upgrade=on_upgrade)
        if prepare is not None:
            prepare(hub)
        async with hub.serve("127.0.0.1", 0, handler) as server:
            yield hub, server.port
        return
    app = App(middleware=[Middleware(Passing)] if way == "middleware" else ())
    hub = app.enable_websocket(HubConfig(**settings), on_upgrade=on_upgrade)
    if prepare is not None:
        prepare(hub)
    if isinstance(handler, EventHandler):
        app.mount("", hub.asgi(handler))
    else:
        app.websocket("/")(handler)
    if way != "uvicorn":
        accept_natively(asyncio.get_running_loop())
    async with listening(app, log_config=None) as address:
        yield hub, int(address.rpartition(":")[2])


async def send(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def status_of(port: int, request: bytes) -> int:
    """Return the status of the response to a request."""
    reader, writer = await send(port, request)
    line = await reader.readline()
    writer.transport.abort()
    return int(line.split()[1])
