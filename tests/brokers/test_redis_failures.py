"""A broker whose Redis engine fails, or the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.brokers.test_redis_subscriptions import connection_of, subscribers
from tests.support.broker_node import BrokerNode, joined, until
from tests.support.redis_engine import RedisEngine
from tests.support.tcp_proxy import proxy_to
from wshub.brokers.redis import RedisBroker
from wshub.errors import BrokerUnavailable, BrokerUncertain

CHANNELS = [f"room:{number}" for number in range(2000)]


def numbers(node: BrokerNode) -> list[int]:
    return [int(envelope) for envelope in node.received]


def check_gaps(node: BrokerNode) -> None:
    """Check that envelopes came in order, and that each gap has an interruption before the envelope after it."""
    last = -1
    interrupted = False
    for event in node.log:
        if event[0] == "interrupted":
            interrupted = True
        elif event[0] == "received":
            number = int(event[1])
            assert number > last
            assert number == last + 1 or interrupted, f"{number} came after {last} without an interruption"
            last, interrupted = number, False


async def test_killed_subscribers_come_back_and_tell_of_the_gap(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(redis_engine.url), "room:a", *CHANNELS) as node,
        joined(RedisBroker(redis_engine.url)) as sender,
    ):
        for number in range(10_000):
            sender.broker.send("room:a", b"%d" % number)
            if number in (2000, 5000, 8000):
                known = len(node.interruptions)
                redis_engine.command("CLIENT", "KILL", "TYPE", "pubsub")
                await until(lambda known=known: len(node.interruptions) > known and node.broker.health().ok)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await node.broker.subscribed("room:a")
        sender.broker.send("room:a", b"10000")
        await until(lambda: numbers(node)[-1:] == [10_000])
        check_gaps(node)
        assert node.interruptions == [(None, "disconnected")] * 3
        await until(lambda: {"all", "room:a", *CHANNELS} <= node.restored_channels)
        stats = node.broker.stats()
        assert stats.reconnects == 3
        assert stats.interruptions == {"disconnected": 3}
        # Its own channels come first.
        first = next(event for event in node.log if event[0] == "restored")
        assert {"all", f"node:{node.info.id}"} <= set(first[1])


async def test_a_killed_publisher_leaves_the_subscriber_alone(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url), "room:a") as node:
        broker = node.broker
        redis_engine.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: broker.stats().reconnects == 1 and broker.health().ok)
        await broker.publish("room:a", b"1")
        await until(lambda: node.received == [b"1"])
        assert node.interruptions == []


async def test_an_engine_that_is_restarted_is_found_again(
    own_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        joined(RedisBroker(own_engine.url), "room:a", *CHANNELS) as node,
        joined(RedisBroker(own_engine.url)) as sender,
    ):
        caplog.clear()
        own_engine.stop(signal.SIGKILL)
        await until(lambda: node.interruptions)
        await until(lambda: not sender.broker.send("room:a", b"1"))
        with pytest.raises(BrokerUnavailable):
            await sender.broker.publish("room:a", b"1")
        with pytest.raises(BrokerUnavailable):
            await node.broker.subscribed("room:a")
        assert node.broker.health().state == "disconnected"
        node.broker.subscribe("room:new")
        node.broker.unsubscribe("room:0")
        own_engine.start()
        began = time.monotonic()
        await until(lambda: node.broker.health().ok and sender.broker.health().ok)
        assert time.monotonic() - began < 5
        await node.broker.subscribed("room:new")
        await sender.broker.publish("room:new", b"2")
        await until(lambda: node.received[-1:] == [b"2"])
        await until(lambda: {"room:a", *CHANNELS[1:]} <= node.restored_channels)
        assert subscribers(own_engine, "room:0") == 0
        assert node.interruptions == [(None, "disconnected")]
        # One line of each node as the engine goes, and one as it comes back.
        assert len(caplog.records) <= 4


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
async def test_a_subscriber_in_a_black_hole_is_deaf_and_replaced(
    redis_engine: RedisEngine, direction: str, caplog: pytest.LogCaptureFixture
) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node, joined(RedisBroker(redis_engine.url)) as sender:
            await until(lambda: broker.health().probe_ms is not None)
            publisher = await connection_of(proxy, "publisher")
            hole = getattr(await connection_of(proxy, "subscriber"), direction)
            hole.is_black_hole = True
            sender.broker.send("room:a", b"1")
            for _ in range(32):
                if node.interruptions:
                    break
                node.skip(0.5)
                await asyncio.sleep(0.1)
            assert node.interruptions == [(None, "deaf" if direction == "to_client" else "disconnected")]
            await until(lambda: broker.health().ok)
            assert publisher.is_open
            sender.broker.send("room:a", b"2")
            await node.broker.subscribed("room:a")
            await sender.broker.publish("room:a", b"3")
            await until(lambda: node.received[-1:] == [b"3"])
            assert (b"1" in node.received) == (direction == "to_server")
            told = [record for record in caplog.records if "broker is deaf" in record.getMessage()]
            assert len(told) == (direction == "to_client")


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
async def test_a_publisher_in_a_black_hole_is_replaced_alone(redis_engine: RedisEngine, direction: str) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            await until(lambda: broker.health().probe_ms is not None)
            subscriber, publisher = await connection_of(proxy, "subscriber"), await connection_of(proxy, "publisher")
            getattr(publisher, direction).is_black_hole = True
            publishing = asyncio.create_task(broker.publish("room:a", b"1"))
            await asyncio.sleep(0)
            assert broker.send("room:a", b"2")
            await asyncio.sleep(0.1)
            while not publishing.done() or publisher.is_open:
                node.skip(0.5)
                await asyncio.sleep(0.1)
            with pytest.raises(BrokerUncertain):
                await publishing
            await until(lambda: not publisher.is_open and broker.health().ok)
            assert subscriber.is_open
            assert node.interruptions == []
            stats = broker.stats()
            assert stats.dropped["unanswered"] == 2
            assert stats.sent == 0
            # The engine may have taken them.
            assert node.received == ([b"1", b"2"] if direction == "to_client" else [])
            await broker.publish("room:a", b"3")
            await until(lambda: node.received[-1:] == [b"3"])


async def test_a_slow_engine_delays_and_loses_nothing(own_engine: RedisEngine) -> None:
    broker = RedisBroker(own_engine.url, max_pending=500_000)
    async with joined(broker, "room:a") as node:
        with own_engine.client() as client:
            client.send("DEBUG", "SLEEP", "2")
            await asyncio.sleep(0.1)
            began = time.monotonic()
            number = 0
            while number < 100_000:
                broker.send("room:a", b"%d" % number)
                number += 1
                if number % 100 == 0:
                    await asyncio.sleep(0)
            # The time is that of the loop, not of the engine.
            assert broker.health().pending_bytes <= 500_100
            sent = broker.stats().sent
            assert sent + broker.stats().dropped["full"] == 100_000
            await until(lambda: len(node.received) == sent)
            assert time.monotonic() - began < 30
            assert numbers(node) == sorted(numbers(node))
            assert node.interruptions == []
            client.reply()


async def test_an_answer_that_takes_too_long_is_uncertain(own_engine: RedisEngine) -> None:
    broker = RedisBroker(own_engine.url)
    async with joined(broker, "room:a") as node:
        own_engine.pause()
        publishing = asyncio.create_task(broker.publish("room:a", b"1"))
        await asyncio.sleep(0.1)
        node.skip(3)
        await asyncio.sleep(0.2)
        assert not publishing.done()
        node.skip(2)
        with pytest.raises(BrokerUncertain):
            await publishing
        own_engine.resume()
        # It was sent after all.
        await until(lambda: node.received == [b"1"])
        assert broker.stats().sent == 1
        assert broker.health().ok


async def test_a_subscriber_that_reads_too_slowly_loses_its_connection(own_engine: RedisEngine) -> None:
    own_engine.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")
    async with (
        joined(RedisBroker(own_engine.url), "room:a") as node,
        joined(RedisBroker(own_engine.url, max_pending=100_000_000)) as sender,
    ):
        with own_engine.client() as client:
            # The node cannot read meanwhile: its loop is this one.
            for first in range(0, 40_000, 100):
                for number in range(first, first + 100):
                    client.send("PUBLISH", "wshub:hub:room:a", str(number).rjust(1000))
                for _ in range(100):
                    client.reply()
        await until(lambda: node.interruptions and node.broker.health().ok)
        await node.broker.subscribed("room:a")
        await sender.broker.publish("room:a", b"40000")
        await until(lambda: numbers(node)[-1:] == [40_000])
        check_gaps(node)
        assert node.broker.stats().interruptions == {"disconnected": 1}


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n", b">-5\r\n", b"*9999999999\r\n", b"$999999999999999\r\n"]
)
async def test_what_no_engine_sends_ends_the_connection(redis_engine: RedisEngine, garbage: bytes) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            connection = await connection_of(proxy, "subscriber")
            connection.send_to_client(garbage)
            await until(lambda: not connection.is_open or broker.stats().bytes_received > 0)
            if garbage.startswith(b"$"):
                # It waits for the rest, which a probe finds out.
                for _ in range(20):
                    node.skip(1)
                    await asyncio.sleep(0.06)
            await until(lambda: node.interruptions)
            await until(lambda: broker.health().ok)
            await broker.publish("room:a", b"1")
            await node.broker.subscribed("room:a")
            await broker.publish("room:a", b"2")
            await until(lambda: node.received[-1:] == [b"2"])


async def test_pushes_of_another_kind_are_ignored(redis_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            connection = await connection_of(proxy, "subscriber")
            probe = f"wshub:hub:probe:{node.info.id}".encode()
            for push in (
                b">1\r\n+invalidate\r\n",
                b">2\r\n$10\r\ninvalidate\r\n_\r\n",
                b">3\r\n$9\r\nsubscribe\r\n_\r\n:0\r\n",
                b">3\r\n$9\r\nsubscribe\r\n$5\r\n\xff\xfe\xfd:a\r\n:0\r\n",
                b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n",
                b">3\r\n$7\r\nmessage\r\n_\r\n_\r\n",
                b">3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$3\r\n\xc2\xb2x\r\n" % (len(probe), probe),
                b">3\r\n:1\r\n:2\r\n:3\r\n",
                b">0\r\n",
            ):
                connection.send_to_client(push)
            await broker.publish("room:a", b"1")
            await until(lambda: node.received == [b"1"])
            assert node.interruptions == []


async def test_bytes_may_come_one_at_a_time_and_the_end_in_the_middle(redis_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            connection = await connection_of(proxy, "subscriber")
            # Nothing of the engine's may come between the bytes.
            connection.to_client.is_black_hole = True
            push = b">3\r\n$7\r\nmessage\r\n$16\r\nwshub:hub:room:a\r\n$5\r\nhello\r\n"
            for offset in range(len(push)):
                connection.send_to_client(push[offset : offset + 1])
                await asyncio.sleep(0)
            await until(lambda: node.received == [b"hello"])
            connection.send_to_client(push[:-4])
            await asyncio.sleep(0.05)
            connection.reset()
            await until(lambda: node.interruptions and broker.health().ok)
            assert node.received == [b"hello"]


async def test_close_sends_what_waits(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url), "room:a") as node:
        async with joined(RedisBroker(redis_engine.url)) as sender:
            taken = sum(sender.broker.send("room:a", b"%d" % number) for number in range(10_000))
            began = time.monotonic()
        assert time.monotonic() - began < 5
        await until(lambda: len(node.received) == taken)
        assert sender.broker.stats().dropped["unanswered"] == 0


async def test_close_does_not_wait_for_an_engine_that_stands_still(own_engine: RedisEngine) -> None:
    broker = RedisBroker(own_engine.url)
    async with joined(broker, "room:a"):
        own_engine.pause()
        publishing = asyncio.create_task(broker.publish("room:a", b"1"))
        for _ in range(10):
            broker.send("room:a", b"2")
        await asyncio.sleep(0)
        began = time.monotonic()
        await broker.close()
        assert 0.9 < time.monotonic() - began < 3
        with pytest.raises(BrokerUncertain):
            await publishing
        assert broker.stats().dropped["unanswered"] == 11
        assert not broker.send("room:a", b"3")
    own_engine.resume()


async def test_close_at_any_moment_leaves_nothing(own_engine: RedisEngine) -> None:
    loop = asyncio.get_running_loop()
    # The first transport of a loop may open descriptors that stay.
    async with joined(RedisBroker(own_engine.url)):
        pass
    tasks = asyncio.all_tasks()
    descriptors = len(os.listdir("/proc/self/fd"))
    for moment in range(40):
        node = BrokerNode(RedisBroker(own_engine.url), "hub")
        starting = loop.create_task(node.start())
        for _ in range(moment):
            await asyncio.sleep(0)
        await asyncio.gather(node.broker.close(), node.close())
        with contextlib.suppress(BrokerUnavailable):
            await starting
        # Cancelled instead.
        node = BrokerNode(RedisBroker(own_engine.url), "hub")
        starting = loop.create_task(node.start())
        for _ in range(moment):
            await asyncio.sleep(0)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await node.close()
    gc.collect()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    assert asyncio.all_tasks() == tasks


def test_a_loop_that_has_closed_leaves_nothing(
    redis_engine: RedisEngine, run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> None:
    """The hub was not closed. The broker can be started again on another loop."""
    broker = RedisBroker(redis_engine.url)
    descriptors = len(os.listdir("/proc/self/fd"))

    async def first_life() -> None:
        node = BrokerNode(broker, "hub")
        await node.start()
        await node.join("room:a")
        broker.send("room:a", b"1")

    async def second_life() -> None:
        assert not broker.send("room:a", b"1")
        async with joined(broker, "room:b") as node:
            assert broker.stats().subscriptions == 3
            await broker.publish("room:a", b"2")
            await broker.publish("room:b", b"3")
            await until(lambda: node.received == [b"3"])

    run(first_life())
    gc.collect()
    run(second_life())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_a_broker_can_be_started_again(redis_engine: RedisEngine) -> None:
    broker = RedisBroker(redis_engine.url)
    for _ in range(3):
        async with joined(broker, "room:a") as node:
            await broker.publish("room:a", b"1")
            await until(lambda known=node: known.received == [b"1"])
            assert broker.stats().sent == 1
            assert broker.stats().subscriptions == 3
        assert broker.health().state == "disconnected"
