"""An application whose handlers need several loop iterations to clean up."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, WebSocket

from wshub import Connection, EventHandler, Hub, Message
from wshub.app import App

api = FastAPI()
hub = Hub()


async def clean_up(name: str) -> None:
    """Clean up slowly, and print a line at the end. A cancelled handler prints nothing."""
    await asyncio.sleep(0.02)
    print(f"{name} has cleaned up", flush=True)


async def whole_life(connection: Connection, name: str) -> None:
    try:
        async for _ in connection:
            pass
    finally:
        await clean_up(name)


@api.websocket("/accepted")
async def accepted(websocket: WebSocket) -> None:
    await whole_life(await hub.accept(websocket), "accept")


async def on_close(connection: Connection, code: int, reason: str) -> None:
    await clean_up("on_close")


async def leave(connection: Connection, message: Message) -> None:
    await asyncio.sleep(0)
    raise SystemExit(int(message.data))


api.mount("/events", hub.asgi(EventHandler(on_close=on_close, on_message=leave)))


async def routed(connection: Connection) -> None:
    await whole_life(connection, "asgi")


api.mount("/routed", hub.asgi(routed))

app = App()
app.enable_websocket()


@app.websocket("/coroutine")
async def coroutine(connection: Connection) -> None:
    await whole_life(connection, "App")


api.mount("/app", app)
