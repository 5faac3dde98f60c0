"""The presence of a room against a model, in memory, between workers, and with engines of every kind.

Users come, move and go at nodes whose clocks differ by hours. Nodes are closed, killed, cut off and parted from the
others. ``WSHUB_PRESENCE_RUNS`` is the number of long runs of each kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import websockets

from tests.support.engine_places import ENGINES_TOGETHER, running_place
from tests.support.presence_nodes import pass_a_moment
from tests.support.presence_worlds import (
    EngineWorld,
    MemoryWorld,
    WorkersWorld,
    World,
    running,
    shorten_lives,
)

NATS_RUNS = [("nats-2.9", "asyncio"), ("nats-current", "uvloop")]
"""Each server with one of the loops: all four pairs take twice as long."""


def on_both_loops(*kinds: str) -> list[tuple[str, str]]:
    return [(kind, loop) for kind in kinds for loop in ("asyncio", "uvloop")]


RUNS = int(os.environ.get("WSHUB_PRESENCE_RUNS", "8"))


@contextlib.asynccontextmanager
async def world_of(kind: str, path: Path) -> AsyncIterator[World]:
    if kind == "memory":
        yield MemoryWorld()
    elif kind == "workers":
        yield WorkersWorld(path)
    else:
        with running_place(kind) as place:
            yield EngineWorld(place)


class Model:
    """Users and their connections, as they should be."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.there: dict[str, list[tuple[websockets.ClientConnection, object]]] = {}
        self._users = 0

    async def connect(self, user: str) -> None:
        """Have a user connect to some node."""
        member = self.chance.choice(self.world.members)
        client = await websockets.connect(member.node.url + user, compression=None, ping_interval=None, proxy=None)
        self.there.setdefault(user, []).append((client, member))

    async def come(self) -> None:
        self._users += 1
        await self.connect(f"user-{self._users}")

    async def go(self) -> None:
        """End a connection of some user."""
        if self.there:
            user = self.chance.choice(sorted(self.there))
            connections = self.there[user]
            client, _ = connections.pop(self.chance.randrange(len(connections)))
            if not connections:
                del self.there[user]
            await client.close()

    async def move(self) -> None:
        """Have a user reconnect, perhaps to another node, within the grace."""
        if self.there:
            user = self.chance.choice(sorted(self.there))
            client, _ = self.there[user].pop()
            await client.close()
            await self.connect(user)

    async def end_node(self, *, kill: bool) -> None:
        """End a node and start another one. Its users reconnect, or stay away."""
        member = self.world.members.pop(self.chance.randrange(len(self.world.members)))
        await (member.kill() if kill else member.close())
        moved = []
        for user, connections in tuple(self.there.items()):
            for client, at in tuple(connections):
                if at is member:
                    connections.remove((client, at))
                    await client.close()
                    if self.chance.random() < 0.7:
                        moved.append(user)
            if not connections:
                del self.there[user]
        await self.world.add()
        for user in moved:
            await self.connect(user)

    def users(self) -> list[str]:
        """Return the users of all connections."""
        return sorted(user for user, connections in self.there.items() for _ in connections)

    async def settle(self) -> None:
        """Wait until each node knows who is there, by the clocks of the nodes and by time."""
        passed, tries, limit = 0.0, 0, self.world.settled_seconds
        # A node that could not say that it ends is dead after DEAD_SECONDS by the engine's clock, and a grace follows.
        end = time.monotonic() + 35
        wrong: object = "nothing was read"
        while passed < limit or time.monotonic() < end:
            if passed < limit and tries % 3 == 0:
                await self.world.skip(0.25)
                passed += 0.25
            tries += 1
            await asyncio.sleep(0.005)
            wrong = await self._difference()
            if wrong is None:
                return
        raise AssertionError(wrong)

    async def _difference(self) -> object:
        """Return what a node knows that is not so; None if all is right."""
        expected = self.users()
        for member in self.world.members:
            try:
                async with asyncio.timeout(5):
                    found = await member.node.users()
            except Exception as error:
                return repr(error)
            if found != expected:
                missing, ghosts = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
                return f"a node misses {sorted(missing)}, and has {sorted(map(str, ghosts))}, who are gone"
        return None

    async def close(self) -> None:
        for connections in self.there.values():
            for client, _ in connections:
                await client.close()


async def all_is_told(world: World) -> None:
    """Wait until no node has anything to tell the store. Requests do not expire meanwhile."""
    for _ in range(200):
        presences = [member.node.hub._presences for member in world.members]
        if not any(each is not None and (each._changed or each._telling) for each in presences):
            return
        await world.skip(0.01)
        await asyncio.sleep(0.005)


async def drive(world: World, seed: int, steps: int, faults: tuple[str, ...]) -> Model:
    """Let users come and go, and things fail, at random. Then end all faults, and wait until everything is right."""
    chance = random.Random(seed)
    is_exact = not {"kill", "split", "lose"} & set(faults)
    async with running(world, 3):
        model = Model(world, chance)
        try:
            for _ in range(steps):
                action = chance.choice(("come", "come", "come", "go", "move", "nothing", "fault"))
                if action == "fault":
                    await fail(world, model, chance.choice(faults), chance)
                elif action != "nothing":
                    await getattr(model, action)()
                if is_exact:
                    await all_is_told(world)
                await world.skip(chance.choice((0.1, 0.5, 1.0)))
                await asyncio.sleep(0.001)
            world.heal()
            await model.settle()
            # All graces are over.
            for _ in range(12):
                await world.skip(0.5)
                await asyncio.sleep(0.002)
            await model.settle()
            if is_exact:
                await pass_a_moment(*(member.node for member in world.members))
                check_told_in_turn(world, model)
        finally:
            await model.close()
    return model


async def fail(world: World, model: Model, fault: str, chance: random.Random) -> None:
    if fault in ("close", "kill"):
        await model.end_node(kill=fault == "kill")
    elif fault == "lose":
        world.lose()
    elif fault == "heal":
        world.heal()
    else:
        getattr(world, fault)(chance.choice(world.members).broker)


def check_told_in_turn(world: World, model: Model) -> None:
    """Check that each user was told to join and to leave in turn, and in the end as things are."""
    told: dict[str, list[str]] = {}
    for event, user in world.events.log:
        assert user is not None
        told.setdefault(user, []).append(event)
    assert set(model.there) <= set(told)
    for user, events in told.items():
        turns = ["join", "leave"] * len(events)
        assert events == turns[: len(events)], f"{user} was told to {events}"
        assert (events[-1] == "join") == (user in model.there), f"{user} was told to {events}, {user in model.there}"


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        *on_both_loops("memory", "workers", "redis", "valkey", "cluster-valkey"),
        ("sentinel-redis", "uvloop"),
        *NATS_RUNS,
    ],
    indirect=["run"],
)
async def test_whatever_fails_nobody_is_missing_and_there_is_no_ghost(
    kind: str, socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_lives(monkeypatch)
    async with world_of(kind, socket_directory) as world:
        faults = ("close", "kill", "cut", "split", "split", "heal", *(["lose"] if world.loses_all else []))
        await drive(world, 1, 60, faults)


@pytest.mark.parametrize(
    ("kind", "run"), [*on_both_loops("memory", "workers"), ("redis", "asyncio"), *NATS_RUNS], indirect=["run"]
)
async def test_while_nodes_are_replaced_and_connections_lost_each_user_joins_and_leaves_in_turn(
    kind: str, socket_directory: Path
) -> None:
    async with world_of(kind, socket_directory) as world:
        # A node that was cut off has the time to tell what has changed.
        world.close_timeout_ms = 10_000
        await drive(world, 2, 60, ("close", "cut"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("memory", "asyncio"),
        ("workers", "asyncio"),
        ("workers", "uvloop"),
        ("redis", "asyncio"),
        ("valkey", "uvloop"),
        *ENGINES_TOGETHER,
        *NATS_RUNS,
    ],
    indirect=["run"],
)
async def test_in_long_runs_nobody_is_missing_and_there_is_no_ghost(
    kind: str, seed: int, socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_lives(monkeypatch)
    async with world_of(kind, socket_directory) as world:
        faults = ("close", "kill", "cut", "split", "split", "heal", *(["lose"] if world.loses_all else []))
        await drive(world, seed, 100, faults)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("memory", "uvloop"),
        *on_both_loops("workers"),
        ("redis", "asyncio"),
        ("valkey", "uvloop"),
        *ENGINES_TOGETHER,
        *NATS_RUNS,
    ],
    indirect=["run"],
)
async def test_in_long_runs_each_user_joins_and_leaves_in_turn(kind: str, seed: int, socket_directory: Path) -> None:
    async with world_of(kind, socket_directory) as world:
        world.close_timeout_ms = 10_000
        await drive(world, seed, 100, ("close", "cut"))
