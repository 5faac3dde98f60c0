"""Nodes with a room whose members are known on all nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from tests.support.broker_node import until
from tests.support.history_nodes import RunningClock
from wshub import Connection, Hub, HubConfig, Member, PresenceConfig
from wshub.brokers.interface import Broker

ROOM = "room"

MOMENT = 4.0
"""Seconds in which each node has a beat. A grace that has just begun lasts longer."""


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

    @property
    def is_idle(self) -> bool:
        """Whether no beat is under way, the store knows of each change, and each call has ended."""
        presences = self.hub._presences
        assert presences is not None
        return presences._beating is None and presences._telling is None and not presences._calls

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


async def told(events: Events, expected: Mapping[tuple[str, str | None], int], *nodes: Node) -> None:
    """Wait until the functions were called so often, and check that a moment of these nodes brings no further call."""
    count = sum(expected.values())
    await until_within_time(lambda: len(events.log) >= count, lambda: f"{events.log} was told, not {dict(expected)}")
    await pass_a_moment(*nodes)
    assert events.counts() == expected, f"{events.log} was told, not {dict(expected)}"


async def pass_a_moment(*nodes: Node) -> None:
    """Have each node do what is due, then have another beat by its clock, and do what that asks for."""
    for seconds in (0.0, MOMENT):
        for each in nodes:
            each.skip(seconds)
        await until_within_time(lambda: all(each.is_idle for each in nodes), lambda: "a node goes on telling its store")


async def until_within_time(condition: Callable[[], bool], failure: Callable[[], str]) -> None:
    """Return when a condition holds. After ten seconds, fail and say why."""
    try:
        async with asyncio.timeout(10):
            await until(condition)
    except TimeoutError:
        raise AssertionError(failure()) from None


async def are(of: Node, *users: str | None) -> None:
    """Wait until these users are in the room, as a node sees it."""
    async with asyncio.timeout(10):
        while await of.users() != sorted(users, key=str):
            await asyncio.sleep(0.002)
