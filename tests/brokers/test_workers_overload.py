"""Bounds of the queues between workers, and what is told when they are full."""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.brokers.mesh import Node, mesh, until
from tests.brokers.raw_worker import (
    ENVELOPE,
    GAP,
    PING,
    PONG,
    SNAPSHOT,
    SNAPSHOT_END,
    SUBSCRIBE,
    RawWorker,
    channels,
    number,
    record,
)
from tests.support.reactor import needs_reactor
from wshub.brokers.interface import ALL_NODES
from wshub.errors import BrokerUnavailable

MAX_PENDING = 1 << 20


async def slow_reader(node: Node, channel: str = "room:a") -> RawWorker:
    """Return a worker that has subscribed to a channel, and that reads nothing more."""
    raw = await RawWorker.meet(node)
    raw.write(SUBSCRIBE, channels(channel))
    raw.write(PING, number(1))
    await raw.read_until(PONG)
    raw.writer.transport.pause_reading()
    return raw


async def fill(node: Node, size: int = 10_000) -> int:
    """Send until an envelope is dropped. Return how many were taken."""
    for taken in range(10_000):
        if not node.broker.send("room:a", struct.pack("<I", taken) + bytes(size)):
            return taken
        if taken % 20 == 19:
            await asyncio.sleep(0)
    raise AssertionError("the queue has no bound")


async def test_a_full_queue_drops_and_counts_and_a_gap_is_told_in_its_place(path) -> None:
    async with mesh(path, 1, max_pending=MAX_PENDING) as (node,):
        raw = await slow_reader(node)
        taken = await fill(node)
        assert MAX_PENDING / 2 < node.broker.health().pending_bytes <= MAX_PENDING
        for _ in range(9):
            assert not node.broker.send("room:a", b"dropped")
        assert node.broker.stats().dropped["full"] == 10
        raw.writer.transport.resume_reading()
        records = await raw.read_until(GAP)
        assert [struct.unpack_from("<I", body)[0] for _, body in records[:-1]] == list(range(taken))
        assert records[-1] == (GAP, number(10))
        assert node.broker.send("room:a", b"after")
        assert await raw.read() == (ENVELOPE, b"after")
        raw.close()


async def test_a_slow_node_costs_the_others_nothing(path) -> None:
    async with mesh(path, 2, max_pending=MAX_PENDING) as (node, other):
        await other.join("room:a")
        raw = await slow_reader(node)
        taken = await fill(node)
        assert not node.broker.send("room:a", b"last")
        await until(lambda: len(other.received) == taken + 2)
        assert other.received[-1] == b"last"
        raw.close()


async def test_a_gap_interrupts_before_the_next_envelope(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        raw.write(ENVELOPE, b"1")
        raw.write(GAP, number(3))
        raw.write(ENVELOPE, b"2")
        await until(lambda: len(node.received) == 2)
        assert node.log == [b"1", ("interrupted", "full"), ("restored",), b"2"]
        assert node.broker.stats().interruptions["full"] == 1
        raw.close()


async def test_changes_of_subscriptions_are_not_lost_when_the_queue_is_full(path) -> None:
    async with mesh(path, 1, max_pending=MAX_PENDING) as (node,):
        node.broker.subscribe("room:old")
        raw = await slow_reader(node)
        await fill(node)
        before = node.broker.health().pending_bytes
        for index in range(20_000):
            node.broker.subscribe(f"room:{index}")
            if index % 2:
                node.broker.unsubscribe(f"room:{index}")
        node.broker.unsubscribe("room:old")
        assert node.broker.health().pending_bytes <= before
        waiting = asyncio.create_task(node.broker.subscribed("room:0"))
        raw.writer.transport.resume_reading()
        records = await raw.read_until(PING)
        kinds = [kind for kind, _ in records if kind != ENVELOPE]
        assert kinds[:2] == [GAP, SNAPSHOT]
        assert set(kinds[2:-2]) == {SUBSCRIBE}
        assert kinds[-2:] == [SNAPSHOT_END, PING]
        snapshot = b"".join(body for kind, body in records if kind == SUBSCRIBE)
        kept = [f"room:{index}" for index in range(0, 20_000, 2)]
        assert snapshot == channels(ALL_NODES, node.own_channel, *kept)
        await asyncio.sleep(0)
        assert not waiting.done()
        raw.write(PONG, records[-1][1])
        await waiting
        raw.close()


async def test_answers_to_a_node_that_only_asks_are_bounded(path) -> None:
    async with mesh(path, 1, max_pending=MAX_PENDING) as (node,):
        raw = await slow_reader(node)
        await fill(node)
        before = node.broker.health().pending_bytes
        # In one write: from Python 3.12 on, each write to a transport looks at all that wait.
        raw.writer.write(b"".join(record(PING, number(index)) for index in range(100_000)))
        raw.write(ENVELOPE, b"end")
        await until(lambda: node.received)
        assert node.broker.health().pending_bytes <= before
        raw.writer.transport.resume_reading()
        records = await raw.read_until(PONG)
        # It answers all before it.
        assert records[-1] == (PONG, number(99_999))
        raw.close()


async def test_an_empty_queue_takes_an_envelope_of_any_size_up_to_the_limit(path) -> None:
    async with mesh(path, 2, max_pending=1000) as (first, second):
        await second.join("room:a")
        assert first.broker.send("room:a", bytes(1 << 20))
        assert not first.broker.send("room:a", bytes(1 << 20))
        await until(lambda: len(second.received) == 1)
        assert (await first.broker.publish("room:a", bytes(8 << 20))).receivers == 1
        assert not first.broker.send("room:a", bytes((65 << 20) + 1))
        assert first.broker.stats().dropped["too_large"] == 1
        assert first.broker.send("room:a", bytes(65 << 20))
        await until(lambda: len(second.received) == 3)


async def test_a_large_snapshot_does_not_count_against_envelopes(path) -> None:
    async with mesh(path, 1, max_pending=100_000) as (node,):
        for index in range(30_000):
            node.broker.subscribe(f"room:{index}")
        raw = await RawWorker.connect(node)
        raw.writer.transport.pause_reading()
        raw.hello()
        await until(lambda: node.peers == 1)
        assert node.broker.send(ALL_NODES, bytes(1000))
        raw.close()


async def test_publish_returns_when_the_kernel_has_taken_the_envelope(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await slow_reader(node)
        for _ in range(60):
            assert node.broker.send("room:a", bytes(100_000))
        publishing = asyncio.create_task(node.broker.publish("room:a", b"published"))
        await until(lambda: node.broker.stats().sent)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not publishing.done()
        raw.writer.transport.resume_reading()
        reading = asyncio.create_task(raw.reader.read())
        assert (await publishing).receivers == 1
        raw.close()
        await asyncio.wait([reading])


@pytest.mark.parametrize("channel", ["room:a", "match:a*"])
async def test_publish_raises_if_too_much_waits_for_each_node(path, channel: str) -> None:
    async with mesh(path, 1, max_pending=MAX_PENDING) as (node,):
        raw = await slow_reader(node, channel)
        await fill(node, 100_000)
        with pytest.raises(BrokerUnavailable, match="too much waits"):
            await node.broker.publish("room:a", b"x")
        raw.writer.transport.abort()


# A transport takes all at once.
@needs_reactor
async def test_publish_raises_if_each_node_is_lost_meanwhile(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await slow_reader(node)
        publishing = asyncio.create_task(node.broker.publish("room:a", bytes(20 << 20)))
        await until(lambda: node.broker.health().pending_bytes)
        raw.writer.transport.abort()
        with pytest.raises(BrokerUnavailable, match="gone"):
            await publishing


async def test_a_flood_of_one_node_leaves_the_loop_time(path) -> None:
    async with mesh(path, 2) as (first, second):
        await second.join("room:a")
        # As if each were for a room with many members.
        second.on_receive = lambda envelope: sum(range(2000))
        for _ in range(20_000):
            assert first.broker.send("room:a", bytes(64))
        most = received = 0
        while received < 20_000:
            await asyncio.sleep(0)
            before, received = received, len(second.received)
            most = max(most, received - before)
        # One turn handles about 50. Without a bound, one read handles thousands.
        assert most <= 500


async def test_silence_ends_a_connection_and_pings_prevent_it(path) -> None:
    async with mesh(path, 2) as (first, second):
        raw = await RawWorker.meet(first)
        await until(lambda: first.peers == 2)
        for now in range(100, 116):
            for node in (first, second):
                node.broker.sweep(now)
            # A round trip: the PING that the sweep has sent arrives.
            await first.broker.subscribed(first.own_channel) if now < 100 else await asyncio.sleep(0.01)
        await until(lambda: first.peers == 1)
        assert second.peers == 1
        assert ("interrupted", "lost") in first.log
        assert second.log == []
        assert first.broker.health().probe_ms is not None
        assert await raw.is_closed()
        raw.close()


async def test_time_in_which_the_loop_did_not_run_is_no_silence_of_others(path) -> None:
    async with mesh(path, 2) as (first, second):
        first.broker.sweep(100)
        first.broker.sweep(200)
        first.broker.sweep(300)
        await first.broker.subscribed(first.own_channel)
        assert first.peers == 1
        assert second.log == first.log == []


async def test_a_node_that_hears_nothing_of_any_other_is_deaf(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        await until(lambda: node.peers == 1)
        for now in range(100, 108):
            node.broker.sweep(now)
        assert node.broker.health().state == "deaf"
        raw.write(PING, number(1))
        await raw.read_until(PONG)
        node.broker.sweep(108)
        assert node.broker.health().ok
        raw.close()
