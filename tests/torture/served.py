"""The applications of rounds with ``wshub serve``: ``fastapi`` and ``app``. WSHUB_TORTURE has the plan."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from tests.torture.application import Application
from tests.torture.findings import Findings
from tests.torture.reports import Reporter
from wshub import Connection, HandshakeError
from wshub.app import App, Context

PATHS = {
    "fastapi": [["/accept", "full"], ["/handler", "full"], ["/mount/", "full"], ["/plain", "echo"]],
    "app": [["/endpoint", "full"], ["/register", "full"]],
}

plan: dict[str, Any] = json.loads(os.environ["WSHUB_TORTURE"])
findings = Findings()
if plan["server"] == "app" and plan["hubs"][0]["on_upgrade"] == "coroutine":
    # register() cannot wait for a coroutine.
    plan["hubs"][0]["on_upgrade"] = "function"
tortured = Application(
    plan["hubs"][0], plan["seed"], plan["threads"], findings, os.environ.get("WSHUB_TORTURE_FAULT") or None
)
events = tortured.events() if plan["hubs"][0]["handler"] == "events" else tortured.coroutine_events()


@contextlib.asynccontextmanager
async def lifespan(application: Any) -> AsyncIterator[None]:
    findings.watch_logs()
    reporter = Reporter(findings, lambda: [tortured])
    tortured.start()
    reporter.say({"paths": PATHS[plan["server"]]})
    yield
    await tortured.end()
    reporter.report()


fastapi = FastAPI(lifespan=lifespan)


@fastapi.websocket("/accept")
async def accept(websocket: WebSocket) -> None:
    with contextlib.suppress(HandshakeError):
        connection = await tortured.hub.accept(websocket)
        await tortured.receiver(connection)


@fastapi.websocket("/handler")
async def handler(websocket: WebSocket) -> None:
    with contextlib.suppress(HandshakeError):
        await tortured.hub.accept(websocket, events)


fastapi.mount("/mount", tortured.hub.asgi(events))


@fastapi.websocket("/plain")
async def plain(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            if text is not None:
                await websocket.send_text(text)
            else:
                await websocket.send_bytes(event["bytes"])


app = App(lifespan=lifespan)
app.ws_hub = tortured.hub


@app.websocket("/endpoint")
async def endpoint(connection: Connection) -> None:
    await tortured.endpoint(connection)


@app.get("/register")
def register(ctx: Context) -> None:
    tortured.hub.register(events)
