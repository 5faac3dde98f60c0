"""Rooms with history while an engine ends slow subscribers: all messages arrive in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.core.test_history_over_redis import LARGE, publish_at_last
from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, Client, HistoryNode, client_of, history_node
from tests.support.nats_engine import running_jetstream
from tests.support.redis_engine import running_engine
from tests.support.tcp_proxy import TcpProxy, proxy_to
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker

MESSAGES = 10_000
SIZE = 2000
QUEUES = {"max_send_buffer": 1 << 30}


class Place(NamedTuple):
    """An engine that keeps a mebibyte for a slow subscriber, and a proxy to it."""

    port: int
    proxy: TcpProxy
    create: Callable[[int], Broker]
    """Returns a broker that connects to a port."""
    has_ended: Callable[[], object]
    """Returns whether the engine has ended a slow subscriber."""
    kill: Callable[[], object]
    """Ends the connections over which nodes behind the proxy receive."""


@pytest.fixture(params=["redis", "valkey", "2.9", "current"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param in ("redis", "valkey"):
        limits = ("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1")
        with running_engine(request.param, *limits) as redis, proxy_to("127.0.0.1", redis.port) as proxy:
            yield Place(
                redis.port,
                proxy,
                lambda port: RedisBroker(f"redis://127.0.0.1:{port}"),
                lambda: redis.command("CLIENT", "LIST", "TYPE", "pubsub").count(":subscriber ") < 2,
                lambda: redis.command("CLIENT", "KILL", "TYPE", "pubsub"),
            )
    else:
        settings = 'max_payload: 100000\nmax_pending: 1000000\nwrite_deadline: "500ms"'
        with running_jetstream(request.param, settings) as nats, proxy_to("127.0.0.1", nats.port) as proxy:
            yield Place(
                nats.port,
                proxy,
                lambda port: NatsBroker(f"nats://127.0.0.1:{port}"),
                lambda: "Slow Consumer" in nats.log,
                lambda: [connection.end() for connection in proxy.open_connections()],
            )


# Each engine has one of the loops: all pairs take twice as long.
PAIRS = [("redis", "uvloop"), ("valkey", "asyncio"), ("2.9", "uvloop"), ("current", "asyncio")]


async def has_all(node: HistoryNode, member: Client, count: int) -> None:
    """Wait until the member has so many messages, and check them."""
    await until(lambda: node.skip() or len(member.data) >= count)
    assert [int(text.split()[0]) for text in member.data] == list(range(count))
    offsets = [offset for _, offset in member.offsets]
    assert offsets == sorted(set(offsets))
    assert not member.gaps


@pytest.mark.parametrize(
    ("place", "run"), [PAIRS[0], *(pytest.param(*pair, marks=pytest.mark.long) for pair in PAIRS[1:])], indirect=True
)
async def test_a_subscriber_whose_buffer_overflows_gets_all_that_the_engine_has_thrown_away(place: Place) -> None:
    async with (
        history_node(place.create(place.proxy.port), LARGE, **QUEUES) as node,
        history_node(place.create(place.port), LARGE, **QUEUES) as other,
        client_of(node) as member,
    ):
        place.proxy.to_client.clear()
        for number in range(MESSAGES):
            other.hub.broadcast(f"{number} ".ljust(SIZE), room=ROOM)
            if number % 20 == 0:
                # Nothing is dropped because too much waits to be sent.
                await until(lambda: other.hub.health().broker.pending_bytes < 1 << 20)
        await until(place.has_ended)
        assert len(member.data) < MESSAGES
        place.proxy.heal()
        await has_all(node, member, MESSAGES)
        await publish_at_last(other, str(MESSAGES))
        await has_all(node, member, MESSAGES + 1)
        assert node.hub.stats().cluster.interruptions == {"disconnected": 1}


@pytest.mark.parametrize(("place", "run"), PAIRS, indirect=True)
async def test_subscribers_that_are_killed_in_a_stream_get_all_of_it(place: Place) -> None:
    async with (
        history_node(place.create(place.proxy.port), LARGE, **QUEUES) as node,
        history_node(place.create(place.port), LARGE, **QUEUES) as other,
        client_of(node) as member,
    ):
        for number in range(MESSAGES):
            other.hub.broadcast(str(number), room=ROOM)
            if number in (2000, 5000, 8000):
                # The engine finds connections to kill once they have subscribed.
                await until(lambda: node.skip() or node.hub.health().ok)
                known = node.hub.stats().cluster.broker.reconnects
                place.kill()
                await until(lambda known=known: node.skip() or node.hub.stats().cluster.broker.reconnects > known)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await has_all(node, member, MESSAGES)
