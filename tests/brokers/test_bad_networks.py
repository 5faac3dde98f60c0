"""Brokers whose way to the engine is slow, passes single bytes, or ends within a message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import starmap
from typing import NamedTuple

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.engine_places import ENGINES_TOGETHER, EnginePlace, long, running_place
from tests.support.redis_engine import RedisEngine
from tests.support.redis_faults import ProxySet, proxies
from tests.support.tcp_proxy import ProxiedConnection
from wshub.brokers.interface import Broker

DELAY_SECONDS = 0.2


class Place(NamedTuple):
    """An engine, and the proxies through which one of the brokers reaches it."""

    engine: EnginePlace
    proxies: ProxySet

    def proxied_broker(self) -> Broker:
        return self.engine.broker(self.proxies)

    def receiving_connection(self) -> ProxiedConnection:
        """Return the connection over which the room ``a`` arrives at the only node behind the proxies."""
        connections = self.engine.receiving(self.proxies)
        if len(connections) == 1:
            return connections[0]
        (port,) = [
            each.port
            for each in self.engine.engines
            if isinstance(each, RedisEngine) and each.command("PUBSUB", "SHARDCHANNELS", "*:room:a")
        ]
        (found,) = self.proxies.proxies[port].open_connections(b":subscriber")
        return found


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[EnginePlace]:
    with running_place(request.param) as engine:
        yield engine


@pytest.fixture
def place(engine: EnginePlace) -> Iterator[Place]:
    with proxies() as found:
        yield Place(engine, found)


# Each engine has one of the loops: all pairs take twice as long.
pytestmark = pytest.mark.parametrize(
    ("engine", "run"),
    [
        ("redis", "asyncio"),
        ("valkey", "uvloop"),
        *starmap(long, ENGINES_TOGETHER),
        ("nats-2.9", "asyncio"),
        ("nats-current", "uvloop"),
    ],
    indirect=True,
    scope="module",
)


async def test_a_delay_of_200_milliseconds_keeps_the_order_and_interrupts_nothing(place: Place) -> None:
    async with (
        joined(place.proxied_broker(), "room:a") as node,
        joined(place.engine.broker(), "room:b") as other,
    ):
        place.proxies.configure(delay_seconds=DELAY_SECONDS)
        for number in range(500):
            assert other.broker.send("room:a", b"%d" % number)
            assert node.broker.send("room:b", b"%d" % number)
        publishing = [asyncio.create_task(node.broker.publish("room:b", b"%d" % number)) for number in range(500, 510)]
        # A probe is due, and one that is under way is not late.
        node.skip(5)
        await asyncio.gather(*publishing)
        await node.join("room:c")
        other.broker.send("room:c", b"500")
        await until(lambda: len(node.received) == 501 and len(other.received) == 510)
        assert node.received == [b"%d" % number for number in range(501)]
        assert other.received == [b"%d" % number for number in range(510)]
        await until(lambda: (node.broker.health().probe_ms or 0) >= 2000 * DELAY_SECONDS)
        assert node.broker.health().ok
        for each in (node, other):
            assert each.interruptions == []
            assert each.broker.stats().reconnects == 0
            assert not any(each.broker.stats().dropped.values())


async def test_envelopes_whose_bytes_come_one_at_a_time_are_whole(place: Place) -> None:
    place.proxies.configure(piece_bytes=1)
    async with (
        joined(place.proxied_broker(), "room:a") as node,
        joined(place.engine.broker(), "room:b") as other,
    ):
        envelopes = [bytes((number,)) * number + b"\r\n$5\r\nMSG a 1 5\r\n" for number in range(200)]
        for envelope in envelopes:
            other.broker.send("room:a", envelope)
            node.broker.send("room:b", envelope)
        await until(lambda: len(node.received) == len(other.received) == len(envelopes))
        assert node.received == other.received == envelopes
        assert node.interruptions == other.interruptions == []


async def test_an_envelope_that_the_end_of_the_connection_cuts_is_none(place: Place) -> None:
    async with (
        joined(place.proxied_broker(), "room:a") as node,
        joined(place.engine.broker()) as other,
    ):
        for turn, size in enumerate((1, 60, 500, 900)):
            known = len(node.received), len(node.interruptions)
            connection = place.receiving_connection()
            connection.to_client.vanish_after = size
            other.broker.send("room:a", bytes(1000))
            await until(lambda connection=connection: connection.to_client.is_black_hole)
            connection.reset()
            await until(lambda known=known: len(node.interruptions) > known[1])
            await comes_back(node)
            assert len(node.received) == known[0]
            await other.broker.publish("room:a", b"%d" % turn)
            await until(lambda known=known: len(node.received) > known[0])
        assert node.received == [b"0", b"1", b"2", b"3"]
        assert len(node.interruptions) == 4


async def comes_back(node: BrokerNode) -> None:
    """Let time pass until the broker is connected and has its channels again."""
    while not node.broker.health().ok:
        node.skip(1)
        await asyncio.sleep(0.01)
    await node.broker.subscribed("room:a")
    # A connection that has lasted for a second is made again at once.
    node.skip(2)
