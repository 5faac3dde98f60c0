"""One node of a cluster whose members of a room get each message of the room: a hub, or python-socketio with Redis."""

from __future__ import annotations

import argparse
import asyncio

import uvloop


async def serve_hub(port: int, broker: str) -> None:
    from wshub import EventHandler, Hub, HubConfig

    hub = Hub(HubConfig(max_connections=20_000), broker=broker)
    handler = EventHandler(
        on_open=lambda connection: connection.join("room"),
        on_message=lambda connection, message: hub.broadcast(message, room="room"),
    )
    async with hub.serve("127.0.0.1", port, handler, close_hub=True) as server:
        await hub.broker_started()
        await server.serve_forever()


def serve_socketio(port: int, broker: str) -> None:
    import socketio
    import uvicorn

    server = socketio.AsyncServer(
        async_mode="asgi", client_manager=socketio.AsyncRedisManager(broker), ping_interval=3600, logger=False
    )

    @server.event
    async def connect(sid: str, environ: object) -> None:
        await server.enter_room(sid, "room")

    @server.event
    async def say(sid: str, data: str) -> None:
        await server.emit("say", data, room="room")

    uvicorn.run(socketio.ASGIApp(server), port=port, log_level="warning", loop="uvloop", ws_ping_interval=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--kind", choices=["wshub", "socketio"], default="wshub")
    arguments = parser.parse_args()
    if arguments.kind == "wshub":
        uvloop.install()
        asyncio.run(serve_hub(arguments.port, arguments.broker))
    else:
        serve_socketio(arguments.port, arguments.broker)
