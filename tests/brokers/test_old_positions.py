"""After ``position_ttl_ms``, a new epoch begins, and a reader with an older position is told so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.brokers.mesh import Node, mesh, until
from tests.support.broker_node import joined
from tests.support.redis_engine import RedisEngine
from wshub.brokers.history_interface import HistoryBroker, HistoryQuery
from wshub.brokers.interface import HistoryConfig, Position
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.redis import RedisBroker

ROOMS = [f"room:{number}" for number in range(8)]


async def old_positions_are_of_another_epoch(
    broker: HistoryBroker, config: HistoryConfig, pass_time: Callable[[], Awaitable[None]]
) -> None:
    """Check each room once its time has passed. A read before that must not make the time longer."""
    last = {}
    for room in ROOMS:
        await broker.publish_stored(room, b"1", config)
        last[room] = (await broker.publish_stored(room, b"2", config)).position
    for room, position in last.items():
        assert position is not None
        async with asyncio.timeout(30):
            while not (found := await broker.history(room, config, HistoryQuery(since=position))).gap:
                assert found.position == position
                await pass_time()
        assert (found.gap, found.envelopes) == ("epoch", ())
        assert found.position == Position(0, found.position.epoch)
        assert found.position.epoch != position.epoch
        following = (await broker.publish_stored(room, b"3", config)).position
        assert following is not None
        # The reader may have been too slow for the new epoch, too.
        assert following.offset == 1


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped

    async def skip(self) -> None:
        self.skipped += 5.0


async def test_between_workers_whoever_owns_the_room(path: Path) -> None:
    clock = Clock()
    async with mesh(path, 3, letters="abc", clock=clock) as nodes:
        await until(lambda: len(nodes[0].session.histories.members.candidates()) == 3)
        config = HistoryConfig(ttl_ms=20_000, position_ttl_ms=60_000)
        await old_positions_are_of_another_epoch(nodes[0].broker, config, clock.skip)
        owners = {node.info.id for node in nodes if node.session.histories.keeper.stores}
        assert owners == {node.info.id for node in nodes}


async def test_between_workers_after_the_owner_has_handed_the_room_over(path: Path) -> None:
    clock = Clock()
    config = HistoryConfig(ttl_ms=20_000, position_ttl_ms=60_000)
    async with mesh(path, 1, clock=clock) as (first,):
        last = {room: (await first.broker.publish_stored(room, b"1", config)).position for room in ROOMS}
        second = await Node(path, clock=clock).start()
        clock.skipped += 50
        await first.broker.close()
        for room in ROOMS:
            found = await second.broker.history(room, config, HistoryQuery(since=last[room]))
            assert (found.gap, found.envelopes, found.position) == ("", (), last[room])
        clock.skipped += 15
        for room in ROOMS:
            assert (await second.broker.history(room, config, HistoryQuery(since=last[room]))).gap == "epoch"
        await second.close()


async def test_in_memory() -> None:
    async with joined(MemoryBroker(MemoryEngine())) as node:
        config = HistoryConfig(ttl_ms=50, position_ttl_ms=100)
        await old_positions_are_of_another_epoch(node.broker, config, lambda: asyncio.sleep(0.01))


async def test_with_redis(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url)) as node:
        config = HistoryConfig(ttl_ms=50, position_ttl_ms=100)
        await old_positions_are_of_another_epoch(node.broker, config, lambda: asyncio.sleep(0.01))
