"""Nodes with a room whose messages are kept, and clients that come back to it at any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import websockets

from tests.support.broker_node import until
from wshub import BrokerError, Connection, Gap, HistoryConfig, Hub, HubConfig, Position, Publication
from wshub.brokers.interface import Broker

ROOM = "room"

# Seconds of real time for each second by which the clock of a node is set forward while it connects.
SKIP_SECONDS = 0.1


def as_json(publication: Publication) -> str:
    """Return what members receive: the offset, the epoch and the data."""
    return json.dumps([publication.offset, publication.epoch, publication.data])


def gap_as_json(gap: Gap) -> str:
    """Return what members receive when messages were lost."""
    return json.dumps(["gap", gap])


LARGE = HistoryConfig(size=100_000, max_bytes=1 << 30, encode=as_json, encode_gap=gap_as_json)


async def serve(connection: Connection) -> None:
    """Have the client come back with the position that it sends, and tell it the outcome."""
    async for asked in connection.iter_json():
        position = Position(*asked) if asked is not None else None
        recovery = await connection.recover(ROOM, position)
        connection.send_json(["back", recovery.sent, recovery.gap, *vars_of(recovery.position)])


def vars_of(position: Position) -> tuple[int, str]:
    return position.offset, position.epoch


class Client:
    """A client of the room that keeps its position, and all messages that it has got."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.offsets: list[tuple[str, int]] = []
        self.data: list[Any] = []
        self.gaps: list[str] = []
        self.holes: list[tuple[int, int]] = []
        """The offsets before and behind messages that are missing, although no gap was told between them."""
        self._expects_hole = True
        self.socket: websockets.ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self.is_back = False

    async def come_back(self, url: str) -> None:
        """Connect and recover from the position; again if the node cannot read the history in time."""
        self.is_back = False
        while not self.is_back:
            self.socket = await websockets.connect(url, compression=None, max_size=None, max_queue=None)
            place = None if self.position is None else vars_of(self.position)
            await self.socket.send(json.dumps(place))
            self._reader = reader = asyncio.create_task(self._read(self.socket))
            await until(lambda reader=reader: self.is_back or reader.done())

    async def _read(self, socket: websockets.ClientConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in socket:
                self._take(json.loads(text))

    def _take(self, message: list[Any]) -> None:
        if message[0] == "back":
            _, _, gap, offset, epoch = message
            if gap:
                self._note_gap(gap)
            if gap or self.position is None or not self.data:
                # Before the first message, any position does until then.
                self.position = Position(offset, epoch)
            assert self.position == Position(offset, epoch), "the outcome and the messages differ"
            self.is_back = True
        elif message[0] == "gap":
            self._note_gap(message[1])
        else:
            offset, epoch, data = message
            if not self._expects_hole and self.offsets and self.offsets[-1] != (epoch, offset - 1):
                self.holes.append((self.offsets[-1][1], offset))
            self._expects_hole = False
            self.position = Position(offset, epoch)
            self.offsets.append((epoch, offset))
            self.data.append(data)

    def _note_gap(self, gap: str) -> None:
        self.gaps.append(gap)
        self._expects_hole = True

    async def leave(self) -> None:
        """Be cut off, as by a network. What has arrived counts."""
        if self.socket is not None and self._reader is not None:
            self.socket.transport.abort()
            await self._reader
            self.socket = None


class RunningClock:
    """A clock that goes on with time, and that a test sets forward."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self._held: float | None = None

    def __call__(self) -> float:
        return (time.monotonic() if self._held is None else self._held) + self.skipped

    def hold(self) -> None:
        """Stand still, until ``go_on()``."""
        self._held = time.monotonic()

    def go_on(self) -> None:
        self._held = None


class HistoryNode:
    """A served hub with the room."""

    def __init__(self, hub: Hub, url: str, clock: RunningClock) -> None:
        self.hub = hub
        self.url = url
        self.clock = clock
        self._skipped_at = 0.0

    def skip(self) -> None:
        """Set the hub's clock a second forward if its broker is not connected, and the last time was a moment ago.

        An attempt to connect has time for its answers: on a busy machine each would be late by a faster clock.
        """
        if not self.hub.health().ok and time.monotonic() - self._skipped_at >= SKIP_SECONDS:
            self._skipped_at = time.monotonic()
            self.clock.skipped += 1
        self.hub._cluster.sweep(self.hub.now())  # type: ignore[union-attr]


class Crowd:
    """Clients that come and go at some nodes, at random."""

    def __init__(self, chance: random.Random, nodes: Sequence[HistoryNode], count: int) -> None:
        self.clients = [Client() for _ in range(count)]
        self._chance = chance
        self._nodes = nodes
        # A client that is on its way back has a task, which ends a moment after it is back.
        self._coming: dict[Client, asyncio.Task[None]] = {}

    async def come(self) -> None:
        """Have all clients come."""
        for client in self.clients:
            await client.come_back(self._chance.choice(self._nodes).url)

    async def cut_one_off(self) -> None:
        """Cut a client off, which comes back at some node. Do nothing if it is on its way."""
        client = self._chance.choice(self.clients)
        if client not in self._coming or self._coming[client].done():
            await client.leave()
            client.is_back = False
            url = self._chance.choice(self._nodes).url
            self._coming[client] = asyncio.create_task(client.come_back(url))

    async def until_all_have_all(self) -> Position:
        """Return the last position, when all clients are back and have received everything that the nodes were given.

        A node sends its messages in order, so the last one of each follows all others.
        """
        positions = [await publish_at_last(node, "last") for node in self._nodes]
        last = max(positions, key=lambda position: position.offset)

        def are_complete() -> bool:
            for node in self._nodes:
                node.skip()
            return all(client.is_back and client.position == last for client in self.clients)

        await until(are_complete)
        return last

    async def leave(self) -> None:
        """Have all clients leave."""
        for client in self.clients:
            await client.leave()
        await asyncio.gather(*self._coming.values())


async def publish_at_last(node: HistoryNode, text: str) -> Position:
    """Publish a message once, also if the engine has to come back first."""
    key = secrets.token_hex(4)
    while True:
        try:
            published = await node.hub.publish(text, room=ROOM, idempotency_key=key)
        except BrokerError:
            node.skip()
            await asyncio.sleep(0.01)
        else:
            assert published.position is not None
            return published.position


@contextlib.asynccontextmanager
async def history_node(
    broker: Broker, config: HistoryConfig | None = None, **settings: Any
) -> AsyncIterator[HistoryNode]:
    """Serve a hub whose broker keeps the messages of the room."""
    clock = RunningClock()
    hub = Hub(HubConfig(**settings), broker=broker, clock=clock)
    hub.configure_room(ROOM, history=config or HistoryConfig(encode=as_json, encode_gap=gap_as_json))
    async with hub.serve("127.0.0.1", 0, serve, close_hub=True) as server:
        await hub.broker_started()
        yield HistoryNode(hub, f"ws://127.0.0.1:{server.port}/", clock)


@contextlib.asynccontextmanager
async def client_of(node: HistoryNode, position: Position | None = None) -> AsyncIterator[Client]:
    """Have a client come back to a node, and go at the end."""
    client = Client()
    client.position = position
    await client.come_back(node.url)
    try:
        yield client
    finally:
        await client.leave()
