"""The first member of a room with history at a node gets each message from the moment at which it joins."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.support.broker_node import until
from tests.support.nats_engine import running_jetstream
from tests.support.redis_engine import running_engine
from tests.support.serving_hub import connected
from wshub import Connection, HistoryConfig, Hub
from wshub.brokers.interface import Broker
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker


@pytest.fixture(scope="module")
def brokers(request: pytest.FixtureRequest) -> Iterator[Callable[[], Broker]]:
    """A function that makes brokers, which join hubs of one name."""
    match request.param:
        case "memory":
            memory = MemoryEngine()
            yield lambda: MemoryBroker(memory)
        case "workers":
            with tempfile.TemporaryDirectory(prefix="wshub-test-") as directory:
                yield lambda: WorkersBroker(directory)
        case "redis":
            with running_engine("redis") as redis:
                yield lambda: RedisBroker(redis.url)
        case "nats":
            with running_jetstream("current") as nats:
                yield lambda: NatsBroker(nats.url)


@contextlib.asynccontextmanager
async def rooms_with_history(
    broker: Broker, name: str, joined: Callable[[Hub, Connection, str], None]
) -> AsyncIterator[tuple[Hub, str]]:
    """Serve a hub with rooms whose names clients send. A function is called as soon as a client has joined one."""

    async def serve(connection: Connection) -> None:
        async for message in connection:
            connection.join(str(message.data))
            joined(hub, connection, str(message.data))

    hub = Hub(broker=broker, name=name)
    hub.configure_room("*", history=HistoryConfig(size=1000))
    async with hub.serve("127.0.0.1", 0, serve, close_hub=True) as server:
        await hub.broker_started()
        yield hub, f"ws://127.0.0.1:{server.port}/"


@pytest.mark.parametrize("brokers", ["memory", "workers", "redis", "nats"], indirect=True)
async def test_the_first_member_gets_what_its_node_sends_after_it_has_joined(brokers: Callable[[], Broker]) -> None:
    def joined(hub: Hub, connection: Connection, room: str) -> None:
        hub.broadcast("not for it", room=room, exclude=connection)
        for number in range(150):
            hub.broadcast(f"{room} {number}", room=room)
        tasks.append(asyncio.create_task(hub.publish("published", room=room)))

    tasks: list[asyncio.Task[object]] = []
    async with (
        rooms_with_history(brokers(), secrets.token_hex(4), joined) as (hub, url),
        connected(url) as client,
    ):
        for room in ("new", "used"):
            await hub.publish("before", room="used")
            await client.send(room)
            got = [str(await client.recv()) for _ in range(151)]
            assert sorted(got) == sorted([*(f"{room} {number}" for number in range(150)), "published"])
            assert [text for text in got if text != "published"] == [f"{room} {number}" for number in range(150)]
        await asyncio.gather(*tasks)


# Workers of one name are different processes.
@pytest.mark.parametrize("brokers", ["memory", "redis", "nats"], indirect=True)
async def test_once_a_room_is_subscribed_messages_of_all_nodes_arrive(brokers: Callable[[], Broker]) -> None:
    joins: list[str] = []
    name = secrets.token_hex(4)
    async with (
        rooms_with_history(brokers(), name, lambda _hub, _connection, room: joins.append(room)) as (one, url),
        rooms_with_history(brokers(), name, lambda _hub, _connection, room: None) as (two, _),
        connected(url) as client,
    ):
        await until(lambda: one.stats().cluster.nodes == two.stats().cluster.nodes == 2)  # type: ignore[union-attr]
        for number in range(5):
            await client.send(f"room {number}")
            await until(lambda number=number: len(joins) == number + 1)
            await one.subscribed(joins[-1])
            for hub in (one, two):
                await hub.publish(f"{hub is one} {number}", room=joins[-1])
            assert [await client.recv() for _ in range(2)] == [f"True {number}", f"False {number}"]
