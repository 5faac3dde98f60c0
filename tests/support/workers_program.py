"""A chat that several workers serve, and clients that know in which process each connection is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import websockets

CLIENTS = 16

PROGRAM = """
import os

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from wshub import BrokerUnavailable, Hub, HubConfig

hub = Hub(HubConfig(ping_interval_ms=500))
hub.configure_room("lobby", presence=True)


async def chat(connection):
    room = connection.path_params["room"]
    connection.join(room)
    connection.user = "user of " + room
    connection.send(str(os.getpid()))
    async for message in connection:
        if message.data == "nodes?":
            connection.send(str(len(await hub.nodes())))
        elif message.data == "present?":
            connection.send(str((await hub.presence_counts(room)).connections))
        elif message.data == "count?":
            try:
                connection.send(str(await hub.room_count(room)))
            except BrokerUnavailable:
                # A worker that was killed does not answer.
                connection.send("0")
        else:
            hub.broadcast(message, room=room)


app = Starlette(routes=[WebSocketRoute("/chat/{room}", hub.asgi(chat))])
"""


class Client:
    """A client that knows in which process its connection is."""

    def __init__(self, websocket: websockets.ClientConnection, process: str) -> None:
        self.websocket = websocket
        self.process = process

    async def ask(self, question: str) -> int:
        await self.websocket.send(question)
        return int(await self.websocket.recv())


@contextlib.asynccontextmanager
async def clients(address: str, workers: int, room: str = "lobby") -> AsyncIterator[list[Client]]:
    """Connect clients until each of the workers has some, and all of the workers know one another."""
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
        found: list[Client] = []
        while len(found) < CLIENTS or len({client.process for client in found}) < workers:
            url = f"ws://{address}/chat/{room}"
            websocket = await stack.enter_async_context(websockets.connect(url, proxy=None, ping_interval=None))
            found.append(Client(websocket, str(await websocket.recv())))
        for client in found:
            while await client.ask("nodes?") < workers:
                await asyncio.sleep(0.05)
        while await found[0].ask("count?") < len(found):
            await asyncio.sleep(0.05)
        yield found


async def received_by_all(members: list[Client], count: int) -> list[list[str]]:
    async with asyncio.timeout(30):
        return [[str(await client.websocket.recv()) for _ in range(count)] for client in members]
