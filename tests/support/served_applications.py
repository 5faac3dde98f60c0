"""Applications for the tests of ``wshub serve``, each served in its own process."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, WebSocket
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from wshub import Connection, EventHandler, Hub, HubConfig, Message
from wshub.app import App, Context

app = App()
hub = app.enable_websocket(allowed_origins=("http://ok.example",), max_connections=50)


@app.get("/")
def home(ctx: Context) -> None:
    ctx.response.send("hello")


@app.post("/items")
async def items(ctx: Context) -> None:
    ctx.response.send_json({"bytes": len(await ctx.request.body()), "process": os.getpid()})


@app.websocket("/echo/{name}")
async def echo(connection: Connection) -> None:
    address = connection.remote_address
    connection.send(f"{connection.path_params['name']} {address[0] if address else '-'} {os.getpid()}")
    async for message in connection:
        connection.send(message)


def relay(connection: Connection, message: Message) -> None:
    hub.broadcast(message)


@app.get("/handled")
def handled(ctx: Context) -> None:
    """A route that is not native: its handler is called first."""
    if ctx.request.get_header("X-Token") != "secret":
        ctx.response.set_status(401)
        ctx.response.send("who are you?")
        return
    hub.register(EventHandler(on_message=relay))


class Guard:
    """Middleware that refuses requests without a token."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "lifespan" and HTTPConnection(scope).query_params.get("token") != "secret":
            await JSONResponse({"error": "no token"}, 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


guarded = App(middleware=[Middleware(Guard)])
guarded.enable_websocket()
guarded.websocket("/echo/{name}")(echo)

bounded = App()
bounded_and_guarded = App(middleware=[Middleware(Guard)])
for few in (bounded, bounded_and_guarded):
    few.enable_websocket(max_connections_per_address=2)
    few.websocket("/echo/{name}")(echo)

api = FastAPI()
mounted = Hub(HubConfig())
api.mount("/ws", mounted.asgi(EventHandler(on_message=lambda connection, message: connection.send(message))))


@api.get("/")
def index() -> dict[str, int]:
    return {"connections": mounted.connection_count}


@api.post("/items")
async def receive(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@api.websocket("/own")
async def own(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_bytes():
        await websocket.send_bytes(message)


large_api = FastAPI()
large = Hub(HubConfig(max_message_size=1 << 20, max_send_buffer=1 << 21))
large_api.mount("/ws", large.asgi(EventHandler(on_message=lambda connection, message: connection.send(message))))


@large_api.get("/")
def large_index() -> dict[str, int]:
    return {"connections": large.connection_count}


alone = Hub(HubConfig()).asgi(echo, subprotocols=["b"])
