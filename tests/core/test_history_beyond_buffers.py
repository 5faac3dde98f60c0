"""Rooms with history while an engine ends slow subscribers: all messages arrive in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.support.broker_node import until
from tests.support.engine_places import ENGINES_TOGETHER, EnginePlace, long, running_place
from tests.support.history_nodes import LARGE, ROOM, Client, HistoryNode, client_of, history_node, publish_at_last
from tests.support.nats_engine import NatsEngine
from tests.support.redis_faults import ProxySet, proxies

MESSAGES = 10_000
SIZE = 2000
QUEUES = {"max_send_buffer": 1 << 30}


# An engine keeps a mebibyte for a slow subscriber, and NATS a little less.
REDIS_LIMITS = ("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1")
NATS_LIMITS = 'max_payload: 100000\nmax_pending: 1000000\nwrite_deadline: "500ms"'


class Setup(NamedTuple):
    """Engines that end slow subscribers, and two nodes of which one has the member."""

    place: EnginePlace
    way: ProxySet
    """Between the engines and the node with the member."""
    node: HistoryNode
    other: HistoryNode
    member: Client


@contextlib.asynccontextmanager
async def running_nodes(kind: str) -> AsyncIterator[Setup]:
    """Start engines and nodes."""
    with running_place(kind, *REDIS_LIMITS, nats=NATS_LIMITS) as place, proxies() as way:
        async with (
            history_node(place.broker(way), LARGE, **QUEUES) as node,
            history_node(place.broker(), LARGE, **QUEUES) as other,
            client_of(node) as member,
        ):
            yield Setup(place, way, node, other, member)


def has_ended_one(place: EnginePlace) -> bool:
    """Return whether an engine has ended one of two slow subscribers."""
    if place.is_nats:
        return any("Slow Consumer" in engine.log for engine in place.engines if isinstance(engine, NatsEngine))
    lists = place.command("CLIENT", "LIST", "TYPE", "pubsub")
    return any(str(found).count(":subscriber ") < 2 for found in lists)


def end_subscribers(place: EnginePlace, way: ProxySet) -> None:
    """End the connections over which nodes behind the proxies receive."""
    if place.is_nats:
        way.cut()
    place.command("CLIENT", "KILL", "TYPE", "pubsub")


# Each engine has one of the loops: all pairs take twice as long.
PAIRS = [
    ("redis", "uvloop"),
    ("valkey", "asyncio"),
    ("nats-2.9", "uvloop"),
    ("nats-current", "asyncio"),
    *ENGINES_TOGETHER,
]


async def has_all(node: HistoryNode, member: Client, count: int) -> None:
    """Wait until the member has so many messages, and check them."""
    await until(lambda: node.skip() or len(member.data) >= count)
    assert [int(text.split()[0]) for text in member.data] == list(range(count))
    offsets = [offset for _, offset in member.offsets]
    assert offsets == sorted(set(offsets))
    assert not member.gaps


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("redis", "uvloop"),
        ("sentinel-redis", "asyncio"),
        ("cluster-redis", "uvloop"),
        long("valkey", "asyncio"),
        long("nats-2.9", "uvloop"),
        long("nats-current", "asyncio"),
        long("sentinel-valkey", "uvloop"),
        long("cluster-valkey", "asyncio"),
    ],
    indirect=["run"],
)
async def test_a_subscriber_whose_buffer_overflows_gets_all_that_the_engine_has_thrown_away(kind: str) -> None:
    async with running_nodes(kind) as (place, way, node, other, member):
        way.hold(to_client=True)
        for number in range(MESSAGES):
            other.hub.broadcast(f"{number} ".ljust(SIZE), room=ROOM)
            if number % 20 == 0:
                # Nothing is dropped because too much waits to be sent.
                await until(lambda: other.hub.health().broker.pending_bytes < 1 << 20)
        await until(lambda: has_ended_one(place))
        assert len(member.data) < MESSAGES
        way.heal()
        await has_all(node, member, MESSAGES)
        await publish_at_last(other, str(MESSAGES))
        await has_all(node, member, MESSAGES + 1)
        assert node.hub.stats().cluster.interruptions == {"disconnected": 1}


@pytest.mark.parametrize(("kind", "run"), PAIRS, indirect=["run"])
async def test_subscribers_that_are_killed_in_a_stream_get_all_of_it(kind: str) -> None:
    async with running_nodes(kind) as (place, way, node, other, member):
        for number in range(MESSAGES):
            other.hub.broadcast(str(number), room=ROOM)
            if number in (2000, 5000, 8000):
                # The engine finds connections to kill once they have subscribed.
                await until(lambda: node.skip() or node.hub.health().ok)
                known = node.hub.stats().cluster.broker.reconnects
                end_subscribers(place, way)
                await until(lambda known=known: node.skip() or node.hub.stats().cluster.broker.reconnects > known)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await has_all(node, member, MESSAGES)
