"""Brokers whose engine was away: they come back soon after it, and not all at once."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise, starmap

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.engine_places import ENGINES_TOGETHER, EnginePlace, long, running_place
from tests.support.redis_faults import proxies

NODES = 50

CONNECTIONS = {"redis": 2, "valkey": 2, "sentinel": 2, "cluster": 9, "nats": 1}
"""Connections that each node tries to make, by the shape of the engine: in a cluster, also those that ask for slots."""

# Each engine has one of the loops: all pairs take twice as long.
SINGLE = [("redis", "asyncio"), ("valkey", "uvloop"), ("nats-2.9", "asyncio"), ("nats-current", "uvloop")]


def connections_of(place: EnginePlace) -> int:
    return CONNECTIONS[place.kind.split("-")[0]]


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        *SINGLE,
        *starmap(long, ENGINES_TOGETHER),
    ],
    indirect=["run"],
)
async def test_many_nodes_do_not_storm_an_engine_that_is_away(kind: str) -> None:
    """Each connection is tried at once, then after up to 1, 2, 4, 4 ... seconds: 16 times in 30 seconds on average."""
    with running_place(kind) as place, proxies() as way:
        async with contextlib.AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(joined(place.broker(way), "room:a")) for _ in range(NODES)]
            way.configure(refuses=True)
            way.cut()
            refused = []
            for _ in range(30):
                for node in nodes:
                    node.skip(1)
                    node.broker.sweep(node.now())
                await asyncio.sleep(0.1)
                refused.append(way.refused)
            count = NODES * connections_of(place)
            assert count <= refused[-1] <= 25 * count
            # Without chance, all would try in the same second. A busy machine may count those of two seconds in one.
            in_a_second = [after - before for before, after in pairwise(refused)][12:]
            assert max(in_a_second) <= 0.9 * count
            way.heal()
            await until(lambda: all(node.broker.health().ok for node in nodes))


async def pass_seconds(nodes: list[BrokerNode], seconds: float) -> None:
    """Let time pass by the clocks of the nodes, with time for the answers of engines."""
    for _ in range(round(2 * seconds)):
        for node in nodes:
            node.skip(0.5)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "with-data"])
@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("redis", "asyncio"),
        long("valkey", "uvloop"),
        *starmap(long, ENGINES_TOGETHER),
        long("nats-2.9", "asyncio"),
        ("nats-current", "uvloop"),
    ],
    indirect=["run"],
)
async def test_nodes_are_back_five_seconds_after_an_engine_that_was_away_for_minutes(kind: str, empty: bool) -> None:
    with running_place(kind, "--appendonly", "yes") as place:
        async with joined(place.broker(), "room:a", "room:b") as node, joined(place.broker()) as sender:
            nodes = [node, sender]
            await sender.broker.publish("room:a", b"before")
            await until(lambda: node.received == [b"before"])
            await asyncio.to_thread(place.kill)
            await pass_seconds(nodes, 120)
            assert not node.broker.health().ok
            await asyncio.to_thread(place.start, empty=empty)
            while not await asyncio.to_thread(place.is_ready):
                await asyncio.sleep(0.01)
            known = len(node.log)
            # Real time passes as well, which is more on a busy machine. Nothing after it may need the clock to go on.
            await pass_seconds(nodes, 5)
            for each in nodes:
                each.hold()
            await until(lambda: node.broker.health().ok and sender.broker.health().ok)
            for room in ("room:a", "room:b"):
                await node.broker.subscribed(room)
            await sender.broker.publish("room:a", b"after")
            await until(lambda: node.received[-1:] == [b"after"])
            assert {"room:a", "room:b"} <= node.restored_channels
            assert [event[0] for event in node.log[:known]].count("interrupted") >= 1
            assert node.received == [b"before", b"after"]
