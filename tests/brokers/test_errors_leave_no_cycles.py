"""The errors of a broker are freed with the last reference to them, not by the collector of cycles.

During an outage each publish() fails. Cycles would make the collector's work, and memory that grows until it runs.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers.mesh import mesh
from tests.support.broker_node import joined, until
from tests.support.nats_engine import NatsEngine, running_nats
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import connected, serving
from wshub import Connection, ConnectionClosed, Hub
from wshub.brokers.memory import MemoryBroker
from wshub.brokers.memory_engine import MemoryEngine
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker
from wshub.errors import BrokerError


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


Errors = list["weakref.ref[Exception]"]


async def noted(errors: Errors, call: Callable[[], Awaitable[object]]) -> None:
    """Make a call that raises an error, and keep a weak reference to the error."""
    try:
        await call()
    except (BrokerError, ConnectionClosed) as error:
        errors.append(weakref.ref(error))


async def check_freed(errors: Errors, count: int) -> None:
    await until(lambda: len(errors) == count)
    await until(lambda: all(error() is None for error in errors))


async def test_a_redis_engine_that_does_not_answer(own_engine: RedisEngine) -> None:
    errors: Errors = []
    async with joined(RedisBroker(own_engine.url), "room:a") as node, asyncio.TaskGroup() as group:
        own_engine.pause()
        node.broker.subscribe("room:b")
        group.create_task(noted(errors, lambda: node.broker.publish("room:a", b"1")))
        group.create_task(noted(errors, lambda: node.broker.subscribed("room:b")))
        await asyncio.sleep(0)
        node.skip(60)
        await until(lambda: len(errors) == 2)
        # Until then the broker waits for the answer.
        own_engine.resume()
        await check_freed(errors, 2)


async def test_a_redis_engine_that_has_ended(own_engine: RedisEngine) -> None:
    errors: Errors = []
    async with joined(RedisBroker(own_engine.url), "room:a") as node:
        own_engine.stop()
        await until(lambda: not node.broker.health().ok)
        await noted(errors, lambda: node.broker.publish("room:a", b"1"))
        await noted(errors, lambda: node.broker.subscribed("room:a"))
        await check_freed(errors, 2)


async def test_a_nats_server_that_does_not_answer(nats_engine: NatsEngine) -> None:
    errors: Errors = []
    with running_nats(nats_engine.kind) as engine:
        async with joined(NatsBroker(engine.url), "room:a") as node, asyncio.TaskGroup() as group:
            engine.pause()
            node.broker.subscribe("room:b")
            group.create_task(noted(errors, lambda: node.broker.publish("room:a", b"1")))
            group.create_task(noted(errors, lambda: node.broker.subscribed("room:b")))
            while len(errors) < 2:
                node.skip(1)
                await asyncio.sleep(0.02)
            await noted(errors, lambda: node.broker.publish("room:a", b"2"))
            await noted(errors, lambda: node.broker.subscribed("room:a"))
            engine.resume()
            await check_freed(errors, 4)


async def test_an_engine_in_memory_that_does_not_answer() -> None:
    errors: Errors = []
    engine = MemoryEngine()
    async with joined(MemoryBroker(engine), "room:a") as node, asyncio.TaskGroup() as group:
        engine.freeze()
        node.broker.subscribe("room:b")
        group.create_task(noted(errors, lambda: node.broker.publish("room:a", b"1")))
        group.create_task(noted(errors, lambda: node.broker.subscribed("room:b")))
        await asyncio.sleep(0)
        engine.stop()
        await check_freed(errors, 2)


async def test_workers_that_are_closed(path: Path) -> None:
    errors: Errors = []
    async with mesh(path, 2) as (first, second), asyncio.TaskGroup() as group:
        second.broker.subscribe("room:a")
        await second.broker.subscribed("room:a")
        group.create_task(noted(errors, lambda: first.broker.subscribed("room:a")))
        await asyncio.sleep(0)
        await first.broker.close()
        await noted(errors, lambda: first.broker.publish("room:a", b"1"))
        await check_freed(errors, 2)


async def test_a_hub_whose_engine_is_frozen() -> None:
    errors: Errors = []
    engine = MemoryEngine()
    async with Hub(broker=MemoryBroker(engine)) as hub, asyncio.TaskGroup() as group:
        await hub.broker_started()
        engine.freeze()
        group.create_task(noted(errors, lambda: hub.publish("a", room="a")))
        group.create_task(noted(errors, lambda: hub.disconnect_user("a")))
        await asyncio.sleep(0)
        engine.stop()
        await check_freed(errors, 2)


async def test_a_connection_that_is_closed_while_tasks_wait_for_it() -> None:
    errors: Errors = []

    async def serve(connection: Connection) -> None:
        connection.send(bytes(40 << 20))
        async with asyncio.TaskGroup() as group:
            group.create_task(noted(errors, connection.receive))
            group.create_task(noted(errors, connection.drain))
            group.create_task(noted(errors, connection.wait_writable))
        ended.set()

    ended = asyncio.Event()
    async with serving(serve, max_send_buffer=64 << 20) as (_, url), connected(url) as client:
        client.transport.abort()
        await ended.wait()
        # A transport takes all at once: then nothing waits until the queue is writable.
        assert len(errors) >= 2
        await check_freed(errors, len(errors))
