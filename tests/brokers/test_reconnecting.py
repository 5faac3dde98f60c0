"""Brokers whose engine was away: they come back soon after it, and not all at once."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise, starmap

import pytest

from tests.support.broker_node import BrokerNode, joined, until, until_in_time_of
from tests.support.engine_places import ENGINES_TOGETHER, EnginePlace, long, running_place
from tests.support.redis_faults import proxies
from wshub.brokers import redis_topology
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_reconnecting import KeptConnection

NODES = 50

CONNECTIONS = {"redis": 2, "valkey": 2, "sentinel": 3, "cluster": 9, "nats": 1}
"""Connections that each node tries to make, by the shape of the engine.

Behind a Sentinel, one asks it again and again. In a cluster of three engines, one for each asks for the slots.
"""

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
    """Each connection is tried at once, then after up to 1, 2, 4, 4 ... seconds: 16 times in 30 seconds on average.

    It is less often with sweeps a second apart.
    """
    with running_place(kind) as place, proxies() as way:
        async with contextlib.AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(joined(place.broker(way), "room:a")) for _ in range(NODES)]
            for node in nodes:
                node.hold()
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
            assert count <= refused[-1] <= 15 * count
            # Without chance, all would try in the same second, every fourth one. A busy machine may count those of two
            # seconds in one.
            in_a_second = [after - before for before, after in pairwise(refused)][12:]
            assert sorted(in_a_second)[-3] <= 0.9 * count
            way.heal()
            await pass_seconds(nodes, 5)
            await until(lambda: all(node.broker.health().ok for node in nodes))


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
async def test_a_node_that_starts_asks_a_cluster_that_is_away_with_pauses() -> None:
    """It asks its seeds in turn, then again after up to 1, 2, 4, 4 ... seconds: 30 times a minute on average."""
    with running_place("cluster-valkey") as place, proxies() as way:
        node = BrokerNode(place.broker(way), "hub")
        node.hold()
        way.configure(refuses=True)
        starting = asyncio.ensure_future(node.start())
        try:
            await pass_a_minute(node)
            assert 10 <= way.refused / len(way.proxies) <= 45
            way.heal()
            await pass_seconds([node], 5)
            node.hold()
            await starting
        finally:
            starting.cancel()
            await node.close()


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
async def test_a_node_asks_a_cluster_that_does_not_answer_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are made and bring nothing, so a round of questions takes long. The next one waits after it."""
    monkeypatch.setattr(redis_topology, "ANSWER_SECONDS", 0.01)
    with running_place("cluster-valkey") as place, proxies() as way:
        async with joined(place.broker(way), "room:a") as node:
            node.hold()
            way.hold(to_server=True)
            way.cut()
            known = len(way.connections(b":topology"))
            await pass_a_minute(node)
            assert 5 <= (len(way.connections(b":topology")) - known) / len(way.proxies) <= 27
            monkeypatch.undo()
            way.heal()
            await pass_seconds([node], 5)
            node.hold()
            await until(lambda: node.broker.health().ok)


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
async def test_a_pause_between_questions_to_a_cluster_ends_with_the_first_connection_that_takes_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection that subscribes takes none. A question in its pause would go to the nodes over new connections."""
    monkeypatch.setattr(redis_topology, "backoff", lambda waits: 1000.0)
    may_publish = asyncio.Event()
    open_connection = KeptConnection._open

    async def open_in_turn(kept: KeptConnection, connection: RedisConnection) -> None:
        if kept._target.client_name.endswith(":publisher"):
            await may_publish.wait()
        await open_connection(kept, connection)

    with running_place("cluster-valkey") as place, proxies() as way:
        async with joined(place.broker(way), "room:a") as node:
            node.hold()
            way.configure(refuses=True)
            way.cut()
            await pass_a_minute(node)
            monkeypatch.setattr(KeptConnection, "_open", open_in_turn)
            way.heal()
            asked = len(way.connections(b"SLOTS"))
            await until_in_time_of(node, lambda: "room:a" in node.restored_channels)
            await pass_a_minute(node)
            assert len(way.connections(b"SLOTS")) == asked
            may_publish.set()
            await until_in_time_of(node, lambda: node.broker.health().ok)
            await until(lambda: any(b"SLOTS" in each.to_server.seen for each in way.open_connections(b":publisher")))


async def pass_a_minute(node: BrokerNode) -> None:
    """Let a minute pass by the clock of a node, with four sweeps in each second."""
    for _ in range(240):
        node.skip(0.25)
        node.broker.sweep(node.now())
        await asyncio.sleep(0.005)


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
