"""Several nodes with a room whose members are known, what joins them, and its faults: for tests against a model."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_places import EnginePlace
from tests.support.presence_nodes import Events, Node, node
from tests.support.redis_faults import ProxySet
from wshub.brokers import nats_lives, redis_presences
from wshub.brokers.interface import Broker
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.presence_interface import DEAD_SECONDS
from wshub.brokers.workers import WorkersBroker

__all__ = ["EngineWorld", "Member", "MemoryWorld", "WorkersWorld", "World"]

HOUR = 3600.0

SHORT_LIFE = 0.5


class Member:
    """A node of a world. It can be closed, or killed."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.broker = world.make_broker()
        self.number = number
        self.stack = contextlib.AsyncExitStack()
        self.node: Node

    async def start(self) -> Member:
        # The clocks of the nodes differ by hours. A clock that jumped later would have the node take
        # what it has just asked the engine for as unanswered.
        started = node(
            self.world.events,
            self.broker,
            ahead=self.number * HOUR,
            close_timeout_ms=self.world.close_timeout_ms,
        )
        self.node = await self.stack.enter_async_context(started)
        return self

    async def close(self) -> None:
        """End as at a deploy."""
        await self.stack.aclose()

    async def kill(self) -> None:
        """End as if the process were killed: nothing is said to the others."""
        self.world.kill(self.broker)
        await self.stack.aclose()


class World:
    """The nodes, and what is between them."""

    loses_all = False
    """Whether what joins the nodes can lose all entries."""

    close_timeout_ms = 300
    """Of the hubs. A killed node waits in vain for so long."""

    settled_seconds = 15.0
    """Seconds after the last fault after which each node must know who is there."""

    def __init__(self) -> None:
        self.events = Events()
        self.members: list[Member] = []
        self._started = 0

    async def start(self, count: int) -> None:
        for _ in range(count):
            await self.add()

    async def add(self) -> Member:
        """Start one more node."""
        self._started += 1
        member = await Member(self, self._started).start()
        self.members.append(member)
        return member

    async def close(self) -> None:
        self.heal()
        for member in self.members:
            await member.close()

    async def skip(self, seconds: float) -> None:
        """Let time pass for all nodes."""
        for member in self.members:
            member.node.skip(seconds)

    # Faults

    def make_broker(self) -> Broker:
        raise NotImplementedError

    def cut(self, broker: Broker) -> None:
        """End the connections of a node. It may connect again at once."""
        raise NotImplementedError

    def split(self, broker: Broker) -> None:
        """Part a node from the others until ``heal()``."""
        raise NotImplementedError

    def deafen(self, broker: Broker) -> None:
        """Lose the answers to a node until ``cut()``. The engine does what the node asks for."""
        raise NotImplementedError

    def kill(self, broker: Broker) -> None:
        """Have nothing that a node still sends arrive."""
        self.split(broker)

    def lose(self) -> None:
        """Lose all entries."""

    def heal(self) -> None:
        """End each split."""
        raise NotImplementedError


class MemoryWorld(World):
    """Nodes with an engine in memory."""

    loses_all = True

    def __init__(self) -> None:
        super().__init__()
        self.engine = MemoryEngine()

    def make_broker(self) -> Broker:
        return MemoryBroker(self.engine)

    async def skip(self, seconds: float) -> None:
        self.engine.skip(seconds)
        await super().skip(seconds)

    def cut(self, broker: Broker) -> None:
        self.engine.cut(broker)

    def split(self, broker: Broker) -> None:
        self.engine.mute(broker)
        self.engine.deafen(broker)

    def deafen(self, broker: Broker) -> None:
        self.engine.deafen(broker)

    def lose(self) -> None:
        self.engine.lose_presences()

    def heal(self) -> None:
        self.engine.heal()


class EngineWorld(World):
    """Nodes that reach engines through proxies. A node is dead after a while by their clock, which runs on."""

    loses_all = True
    # A busy machine lets nodes die that live: the engines' clock runs on.
    settled_seconds = 60.0

    def __init__(self, place: EnginePlace) -> None:
        super().__init__()
        self.place = place
        self.prefix = secrets.token_hex(4)
        self.proxies: dict[Broker, ProxySet] = {}

    def direct_broker(self) -> Broker:
        """Return a broker that reaches the engines without proxies."""
        return self.place.broker(prefix=self.prefix)

    def make_broker(self) -> Broker:
        proxies = ProxySet()
        broker = self.place.broker(proxies, self.prefix)
        self.proxies[broker] = proxies
        return broker

    async def skip(self, seconds: float) -> None:
        await super().skip(seconds)
        # The engines' clocks cannot be set.
        await asyncio.sleep(seconds * SHORT_LIFE / DEAD_SECONDS)

    def cut(self, broker: Broker) -> None:
        self.proxies[broker].cut()

    def split(self, broker: Broker) -> None:
        self.proxies[broker].hold(to_server=True)

    def deafen(self, broker: Broker) -> None:
        for connection in self.proxies[broker].open_connections():
            connection.to_client.is_black_hole = True

    def lose(self) -> None:
        self.place.lose()

    def heal(self) -> None:
        for proxies in self.proxies.values():
            proxies.heal()

    async def close(self) -> None:
        await super().close()
        self.close_proxies()

    def close_proxies(self) -> None:
        while self.proxies:
            _, proxies = self.proxies.popitem()
            proxies.close()


class WorkersWorld(World):
    """Nodes as the workers of one machine."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._parted: dict[object, Callable[[], None]] = {}

    def make_broker(self) -> Broker:
        return WorkersBroker(self.path, several_in_process=True)

    def cut(self, broker: Any) -> None:
        for peer in broker._session.peers:
            peer.end()

    def split(self, broker: Any) -> None:
        session = broker._session
        doorway = session._doorway
        if session in self._parted:
            return
        former = session._look_around, doorway._accepted

        def join() -> None:
            session._look_around, doorway._accepted = former

        session._look_around = lambda: None
        doorway._accepted = lambda connected: connected.close()
        self._parted[session] = join
        self.cut(broker)

    def kill(self, broker: Any) -> None:
        broker._session.abandon()

    def heal(self) -> None:
        for join in self._parted.values():
            join()
        self._parted.clear()


@contextlib.asynccontextmanager
async def running(world: World, count: int) -> AsyncIterator[World]:
    """Start so many nodes of a world, and close them at the end of the block."""
    try:
        await world.start(count)
        yield world
    finally:
        async with asyncio.timeout(30):
            await world.close()


def shorten_lives(monkeypatch: pytest.MonkeyPatch, seconds: float = SHORT_LIFE) -> None:
    """Have an engine take a node without a beat for dead after these seconds."""
    for module in (redis_presences, nats_lives):
        monkeypatch.setattr(module, "DEAD_SECONDS", seconds)
