"""Nodes with a room whose members are known on all nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.support.history_nodes import RunningClock
from wshub import Connection, Hub, HubConfig, Member, PresenceConfig
from wshub.brokers.interface import Broker

ROOM = "room"


class Events:
    """The calls of the nodes of a test, by user."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str | None]] = []

    def config(self, grace_ms: int = 5_000) -> PresenceConfig:
        async def on_leave(room: str, member: Member) -> None:
            self.log.append(("leave", member.user))

        def on_join(room: str, member: Member) -> None:
            self.log.append(("join", member.user))

        return PresenceConfig(on_join=on_join, on_leave=on_leave, grace_ms=grace_ms)

    def counts(self) -> Counter[tuple[str, str | None]]:
        return Counter(self.log)


class Node:
    """A served hub. The path of a client names its user."""

    def __init__(self, hub: Hub, url: str, clock: Any) -> None:
        self.hub = hub
        self.url = url
        self.clock = clock

    def skip(self, seconds: float) -> None:
        """Let time pass by the hub's clock."""
        self.clock.skipped += seconds
        self.hub._presences.sweep(self.hub.now())  # type: ignore[union-attr]
        if self.hub._cluster is not None:
            self.hub._cluster.sweep(self.hub.now())

    async def users(self) -> list[str | None]:
        """Return the users of all members, sorted."""
        members: list[Member] = []
        cursor = ""
        while True:
            page = await self.hub.presence(ROOM, cursor=cursor, limit=10)
            members += page.members
            cursor = page.cursor
            if not cursor:
                return sorted((member.user for member in members), key=str)


@contextlib.asynccontextmanager
async def node(
    events: Events, broker: Broker | None = None, grace_ms: int = 5_000, ahead: float = 0.0, **settings: Any
) -> AsyncIterator[Node]:
    """Serve a hub whose clock is so many seconds ahead."""

    async def serve(connection: Connection) -> None:
        name = connection.path.removeprefix("/")
        connection.user = name or None
        connection.join(ROOM, info={"name": name} if name else None)
        async for message in connection:
            connection.user = message.data

    clock = RunningClock()
    clock.skipped = ahead
    hub = Hub(HubConfig(**settings), broker=broker, clock=clock)
    hub.configure_room(ROOM, presence=events.config(grace_ms))
    async with hub.serve("127.0.0.1", 0, serve, close_hub=True) as server:
        await hub.broker_started()
        yield Node(hub, f"ws://127.0.0.1:{server.port}/", clock)


async def are(of: Node, *users: str | None) -> None:
    """Wait until these users are in the room, as a node sees it."""
    async with asyncio.timeout(10):
        while await of.users() != sorted(users, key=str):
            await asyncio.sleep(0.002)
