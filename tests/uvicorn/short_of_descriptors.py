"""Applications whose hub is bound by the first WebSocket, and one whose hub listens."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from wshub import Connection, EventHandler, Hub, Message

plain, accept, hub, native = FastAPI(), FastAPI(), FastAPI(), FastAPI()
accepting, guarded = Hub(), Hub()


def echo(connection: Connection, message: Message) -> None:
    connection.send(message)


@plain.websocket("/plain")
async def echo_plainly(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@accept.websocket("/accept")
async def echo_accepted(websocket: WebSocket) -> None:
    await accepting.accept(websocket, EventHandler(on_message=echo))


class Guard:
    """Middleware that passes every request on."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)


hub.add_middleware(Guard)
hub.mount("/hub", guarded.asgi(EventHandler(on_message=echo)))
native.mount("/hub", Hub().asgi(EventHandler(on_message=echo)))
