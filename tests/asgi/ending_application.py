"""The application for the tests of ends. It serves connections in every way, and can end them in every way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, WebSocket, WebSocketException
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute

from tests.support.middleware import RebuildsAccept
from wshub import Connection, ConnectionClosed, EventHandler, Hub, HubConfig, Message
from wshub.app import App

hub = Hub(HubConfig(allowed_origins=("http://ok.example",)))
told: dict[str, list[str]] = {}
logged: list[str] = []


class Lines(logging.Handler):
    """Keeps log records above INFO."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:
            logged.append(f"{record.name} {record.levelname} {record.getMessage().splitlines()[0][:60]}")


LINES = Lines()


def listen_to_loggers() -> None:
    """Add the handler to the loggers. Servers set up theirs before the first request."""
    for name in ("uvicorn.error", "hypercorn.error", "daphne.server", "_granian", "wshub", "asyncio", "litestar"):
        logger = logging.getLogger(name)
        if LINES not in logger.handlers:
            logger.addHandler(LINES)


def tell(connection_path: str, what: str) -> None:
    told.setdefault(connection_path, []).append(what)


async def fail_with_a_child() -> None:
    task = asyncio.ensure_future(asyncio.sleep(100))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def finish(end: str, connection: Connection, websocket: WebSocket | None = None) -> None:
    """End the connection's endpoint in the given way."""
    if end == "returns":
        connection.send("last words")
    elif end == "raises":
        connection.send("last words")
        raise RuntimeError("asked to fail")
    elif end == "is cancelled":
        await fail_with_a_child()
    elif end == "closes":
        connection.send("last words")
        connection.close(4001, "enough")
    elif end == "closes and waits":
        connection.send("last words")
        connection.close(4001, "enough")
        await connection.wait_closed()
    elif end == "raises WebSocketException":
        connection.send("last words")
        raise WebSocketException(4400, "why")
    elif end == "closes the websocket" and websocket is not None:
        connection.send("last words")
        await websocket.close(4401, "bye")
    elif end == "raises HTTPException":
        raise HTTPException(403, "no")
    elif end == "sends to a lost client":
        connection.send("ready")
        await connection.wait_closed()
        connection.send("too late")
    elif end == "fails in a group":
        connection.send("ready")
        async with asyncio.TaskGroup() as group:
            group.create_task(send_when_closed(connection))
            group.create_task(send_when_closed(connection))
    elif end == "receives":
        connection.send("ready")
        await receive_all(connection)
    elif end == "receives no JSON":
        connection.send("ready")
        await connection.receive_json()
    else:
        raise AssertionError(end)


async def send_when_closed(connection: Connection) -> None:
    await connection.wait_closed()
    connection.send("too late")


async def receive_all(connection: Connection) -> None:
    try:
        async for message in connection:
            connection.send(message)
    except ConnectionClosed as closed:
        tell(connection.path, f"{type(closed).__name__} {closed.code} {closed.reason}".strip())
        raise
    tell(connection.path, f"async for ends {connection.close_code} {connection.close_reason}".strip())


def end_of(path: str) -> str:
    return path.rsplit("/", 1)[1].replace("_", " ")


async def accepted(websocket: WebSocket) -> None:
    await finish(end_of(websocket.url.path), await hub.accept(websocket), websocket)


async def gathered(websocket: WebSocket) -> None:
    connection, _ = await asyncio.gather(hub.accept(websocket), asyncio.sleep(0))
    await finish(end_of(websocket.url.path), connection, websocket)


async def waited_for(websocket: WebSocket) -> None:
    connection = await asyncio.wait_for(hub.accept(websocket), 10)
    await finish(end_of(websocket.url.path), connection, websocket)


async def grouped(websocket: WebSocket) -> None:
    async def child() -> Connection:
        return await hub.accept(websocket)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(child())
    connection = task.result()
    await finish(end_of(websocket.url.path), connection, websocket)


async def handled(websocket: WebSocket) -> None:
    """An endpoint that passes its connection to a handler."""
    await hub.accept(websocket, handler)
    tell(websocket.url.path, "accept() returns")


async def plain(websocket: WebSocket) -> None:
    end = end_of(websocket.url.path)
    await websocket.accept()
    if end == "is cancelled":
        await fail_with_a_child()
    elif end == "closes":
        await websocket.close(4001, "enough")
    elif end == "raises WebSocketException":
        raise WebSocketException(4400, "why")
    elif end == "raises HTTPException":
        raise HTTPException(403, "no")
    elif end == "raises":
        await websocket.send_text("last words")
        raise RuntimeError("asked to fail")
    elif end == "returns":
        await websocket.send_text("last words")
    elif end == "receives":
        await websocket.send_text("ready")
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                tell(websocket.url.path, f"disconnect {message['code']} {message.get('reason') or ''}".strip())
                break
            await websocket.send(message)
    elif end == "sends to a lost client":
        await websocket.send_text("ready")
        await websocket.receive_text()


async def before(websocket: WebSocket) -> None:
    """An endpoint that ends before it answers the handshake."""
    end = end_of(websocket.url.path)
    if end == "raises HTTPException":
        raise HTTPException(401, "no", headers={"X-Why": "no"})
    if end == "raises WebSocketException":
        raise WebSocketException(1008, "no")
    if end == "raises":
        raise RuntimeError("asked to fail")
    if end == "is cancelled":
        await fail_with_a_child()
    if end == "is refused":
        await hub.accept(websocket)


async def on_message(connection: Connection, message: Message) -> None:
    await finish(str(message.data), connection)


handler = EventHandler(
    on_open=lambda connection: connection.send("ready"),
    on_message=on_message,
    on_close=lambda connection, code, reason: tell(connection.path, f"on_close {code} {reason}".strip()),
)


async def whole_life(connection: Connection) -> None:
    await finish(end_of(connection.path), connection)


async def teardown() -> Any:
    """A dependency with code that runs after the endpoint."""
    try:
        yield "value"
    finally:
        tell("/fastapi/dependency", "torn down")


async def depends(websocket: WebSocket, value: Annotated[str, Depends(teardown)], end: str) -> None:
    await finish(end.replace("_", " "), await hub.accept(websocket), websocket)


class Answers:
    """Middleware that answers in place of the application."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"error": "no token"}, 401)(scope, receive, send)


ENDPOINTS: dict[str, Callable[[WebSocket], Awaitable[None]]] = {
    "accept": accepted,
    "gather": gathered,
    "wait_for": waited_for,
    "group": grouped,
    "handled": handled,
    "plain": plain,
    "before": before,
}
ROUTES = [
    *(WebSocketRoute(f"/{name}/{{end}}", endpoint) for name, endpoint in ENDPOINTS.items()),
    WebSocketRoute("/asgi/{end}", hub.asgi(handler)),
    WebSocketRoute("/life/{end}", hub.asgi(whole_life)),
]

app = FastAPI()
for name, endpoint in ENDPOINTS.items():
    app.add_api_websocket_route(f"/fastapi/{name}/{{end}}", endpoint)
app.add_api_websocket_route("/fastapi/dependency/{end}", depends)
app.mount("/starlette", Starlette(routes=ROUTES))
app.mount("/rebuilt", Starlette(routes=ROUTES, middleware=[Middleware(RebuildsAccept)]))
app.mount("/guarded", Starlette(routes=ROUTES, middleware=[Middleware(Answers)]))

own = App()
own.enable_websocket()
own.websocket("/life/{end}")(whole_life)
app.mount("/own", own)


@app.get("/begin")
async def begin() -> None:
    """Begin a new case."""
    listen_to_loggers()
    logged.clear()
    told.clear()


@app.get("/state")
async def state() -> dict[str, Any]:
    connections = hub.connection_count + (own.ws_hub.connection_count if own.ws_hub else 0)
    return {"told": [each for path in told.values() for each in path], "logged": logged, "connections": connections}
