"""The application that tests serve on each ASGI server: one hub under Starlette, under FastAPI, and on its own path."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from wshub import Connection, EventHandler, Hub, HubConfig, Message
from wshub.app import App

hub = Hub(HubConfig(allowed_origins=("http://ok.example",), max_message_size=100_000))
told: list[str] = []

api = FastAPI()


def greet(connection: Connection) -> None:
    connection.join("lobby")
    connection.send(f"{connection.path} {connection.headers.get('x-name', '-')}")


def relay(connection: Connection, message: Message) -> None:
    if message.data == "fail":
        raise RuntimeError("asked to fail")
    if message.data == "bye":
        connection.close(4001, "as you wish")
    else:
        hub.broadcast(message, room="lobby")


def note(connection: Connection, code: int, reason: str) -> None:
    told.append(f"{code} {reason}".strip())


lobby = EventHandler(on_open=greet, on_message=relay, on_close=note)
api.mount("/ws", hub.asgi(lobby, subprotocols=["b"]))


@api.websocket("/accepted/{name}")
async def accepted(websocket: WebSocket, name: str) -> None:
    connection = await hub.accept(websocket, subprotocols=["b"], headers=[("X-Extra", "yes")])
    connection.send(f"{connection.path_params['name']} {name}")
    async for message in connection:
        if message.data == "return":
            return
        if message.data == "raise":
            raise RuntimeError("asked to fail")
        connection.send(message)


@api.websocket("/handled")
async def handled(websocket: WebSocket) -> None:
    connection = await hub.accept(websocket, lobby)
    told.append(f"after {connection.close_code}")


@api.websocket("/feed")
async def feed(websocket: WebSocket) -> None:
    """An application that only sends."""
    connection = await hub.accept(websocket)
    connection.send("tick")
    await connection.wait_closed()
    told.append("the feed has ended")


own = App()
own.enable_websocket()
api.mount("/own", own)


@own.websocket("/echo/{name}")
async def echo(connection: Connection) -> None:
    connection.send(connection.path_params["name"])
    async for message in connection:
        connection.send(message)


@api.get("/told")
def what_was_told() -> list[str]:
    return told


@api.get("/count")
def count() -> dict[str, int]:
    stats = hub.stats()
    accounted = stats.messages_delivered + stats.dropped.total + stats.messages_pending
    return {"connections": hub.connection_count, "unaccounted": stats.messages_accepted - accounted}
