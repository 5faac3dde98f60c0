"""A node that subscribes to very many channels: each works, all can be left, and few commands are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers.test_redis_subscriptions import calls
from tests.support.broker_node import BrokerNode, joined, until
from tests.support.nats_engine import running_nats
from tests.support.redis_cluster import ClusterSetup, running_cluster
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker

PARTITIONS = 128


@pytest.fixture(params=["workers", "nats"])
def create(request: pytest.FixtureRequest, path: Path) -> Iterator[Callable[[], Broker]]:
    """A function that returns a broker for each node."""
    if request.param == "workers":
        yield lambda: WorkersBroker(path, several_in_process=True)
    else:
        with running_nats("current") as server:
            yield lambda: NatsBroker(server.url)


async def check_rooms(node: BrokerNode, other: BrokerNode, count: int) -> None:
    """Subscribe to so many channels, receive on some of them, and leave all."""
    channels = [f"room:{number}" for number in range(count)]
    for channel in channels:
        node.broker.subscribe(channel)
    await asyncio.gather(*(node.broker.subscribed(channel) for channel in channels[:: count // 100]))
    await node.broker.subscribed(channels[-1])
    assert node.broker.stats().subscriptions == count + 2
    for channel in channels[:: count // 100]:
        await other.broker.publish(channel, channel.encode())
    await until(lambda: len(node.received) == 100)
    assert sorted(node.received) == sorted(channel.encode() for channel in channels[:: count // 100])
    for channel in channels:
        node.broker.unsubscribe(channel)
    assert node.broker.stats().subscriptions == 2
    assert node.interruptions == []


def commands(setup: ClusterSetup, name: str) -> int:
    """Return how often the engines of a cluster have carried out a command."""
    return sum(calls(engine.command("INFO", "commandstats"), name) for engine in setup.engines)


@pytest.mark.long
@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
async def test_a_hundred_thousand_channels_work_and_can_be_left(create: Callable[[], Broker]) -> None:
    async with joined(create()) as node, joined(create()) as other:
        await check_rooms(node, other, 100_000)


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_channels_of_a_cluster_need_few_commands_for_each_partition(count: int) -> None:
    with running_cluster("valkey") as setup:
        async with joined(RedisBroker(setup.url)) as node, joined(RedisBroker(setup.url)) as other:
            before = commands(setup, "ssubscribe")
            await check_rooms(node, other, count)
            assert commands(setup, "ssubscribe") - before <= 200 + PARTITIONS
            while any(engine.command("PUBSUB", "SHARDCHANNELS", "*:room:*") for engine in setup.engines):
                await asyncio.sleep(0.01)
