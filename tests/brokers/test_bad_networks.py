"""Brokers whose way to the engine is slow, passes single bytes, or ends within a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.nats_engine import running_nats
from tests.support.redis_engine import running_engine
from tests.support.tcp_proxy import ProxiedConnection, TcpProxy, proxy_to
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker

DELAY_SECONDS = 0.2


class Place(NamedTuple):
    """An engine, and a proxy to it."""

    proxy: TcpProxy
    port: int
    create: Callable[[int], Broker]
    """Returns a broker that connects to a port."""

    def receiving_connection(self) -> ProxiedConnection:
        """Return the connection over which the only broker behind the proxy receives."""
        role = b":subscriber" if "redis" in self.create.__name__ else b""
        (connection,) = self.proxy.open_connections(role)
        return connection


def redis_broker(port: int) -> Broker:
    return RedisBroker(f"redis://127.0.0.1:{port}")


def nats_broker(port: int) -> Broker:
    return NatsBroker(f"nats://127.0.0.1:{port}")


@pytest.fixture(scope="module", params=["redis", "valkey", "2.9", "current"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[int, Callable[[int], Broker]]]:
    """The port of an engine, and a function that returns a broker for a port."""
    if request.param in ("redis", "valkey"):
        with running_engine(request.param) as redis:
            yield redis.port, redis_broker
    else:
        with running_nats(request.param) as nats:
            yield nats.port, nats_broker


@pytest.fixture
def place(engine: tuple[int, Callable[[int], Broker]]) -> Iterator[Place]:
    port, create = engine
    with proxy_to("127.0.0.1", port) as proxy:
        yield Place(proxy, port, create)


# Each engine has one of the loops: all pairs take twice as long.
pytestmark = pytest.mark.parametrize(
    ("engine", "run"),
    [("redis", "asyncio"), ("valkey", "uvloop"), ("2.9", "asyncio"), ("current", "uvloop")],
    indirect=True,
)


async def test_a_delay_of_200_milliseconds_keeps_the_order_and_interrupts_nothing(place: Place) -> None:
    async with (
        joined(place.create(place.proxy.port), "room:a") as node,
        joined(place.create(place.port), "room:b") as other,
    ):
        place.proxy.delay_seconds = DELAY_SECONDS
        for number in range(500):
            assert other.broker.send("room:a", b"%d" % number)
            assert node.broker.send("room:b", b"%d" % number)
        publishing = [asyncio.create_task(node.broker.publish("room:b", b"%d" % number)) for number in range(500, 510)]
        # A probe is due.
        node.skip(6)
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
    place.proxy.piece_bytes = 1
    async with (
        joined(place.create(place.proxy.port), "room:a") as node,
        joined(place.create(place.port), "room:b") as other,
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
        joined(place.create(place.proxy.port), "room:a") as node,
        joined(place.create(place.port)) as other,
    ):
        connection = place.receiving_connection()
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
