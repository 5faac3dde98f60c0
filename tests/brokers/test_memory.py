"""The broker in memory keeps the contract, and its engine fails as it is told to."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.support.broker_node import BrokerNode, until
from tests.support.memory_brokers import MemoryFaults
from wshub.brokers.interface import ALL_NODES
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.errors import BrokerUnavailable, BrokerUncertain, MisuseError
from wshub.testing.broker_nodes import Interrupted, Nodes, Received, Restored, raised_by
from wshub.testing.check_broker import broker_checks, check_broker


# On one loop: what the broker does with the loop is the same on both, and its own tests run on both.
@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
@pytest.mark.parametrize("check", [pytest.param(run, id=name) for name, run in broker_checks()])
async def test_it_keeps_the_contract(check: Any) -> None:
    engine = MemoryEngine()
    await check(lambda: MemoryBroker(engine), MemoryFaults(engine))


@pytest.mark.one_loop
async def test_all_checks_run_at_once_and_say_which_were_not_run() -> None:
    engine = MemoryEngine()
    report = await check_broker(lambda: MemoryBroker(engine))
    assert len(report.passed) >= 25
    assert report.not_run["a_deaf_node_notices"] == "the check needs the fault deafen"
    assert len(report.passed) + len(report.not_run) == len(list(broker_checks()))


async def started(engine: MemoryEngine, **settings: Any) -> tuple[MemoryBroker, BrokerNode]:
    broker = MemoryBroker(engine, **settings)
    node = BrokerNode(broker, "hub")
    await node.start()
    return broker, node


def told(node: BrokerNode) -> list[str]:
    """Return what the hub was told, in order: the reasons of interruptions, and when they ended."""
    return [event[-1] if event[0] == "interrupted" else event[0] for event in node.log if event[0] != "received"]


async def test_a_delay_keeps_the_order_and_ends_with_heal() -> None:
    engine = MemoryEngine()
    (first, one), (_, events) = await started(engine), await started(engine)
    engine.delay(0.05)
    loop = asyncio.get_running_loop()
    began = loop.time()
    first.send(ALL_NODES, b"1")
    await asyncio.sleep(0)
    engine.delay(0.0)
    first.send(ALL_NODES, b"2")
    await until(lambda: len(events.received) == 2)
    assert events.received == [b"1", b"2"]
    assert loop.time() - began >= 0.04
    await one.close()
    await events.close()


async def test_a_slow_engine_takes_a_few_envelopes_in_each_iteration() -> None:
    engine = MemoryEngine()
    (first, one), (_, events) = await started(engine, max_pending_bytes=10_000), await started(engine)
    engine.slow_down(2)
    assert all(first.send(ALL_NODES, bytes(36)) for _ in range(100))
    assert not first.send(ALL_NODES, bytes(36))
    assert first.health().pending_bytes == 10_000
    for taken in (2, 4, 6):
        await asyncio.sleep(0)
        assert first.stats().sent == taken
    await until(lambda: len(events.received) == 100)
    assert first.stats().dropped == {"full": 1}
    await one.close()
    await events.close()


async def test_what_is_under_way_can_be_dropped_and_the_hub_is_told() -> None:
    engine = MemoryEngine()
    (first, one), (second, events) = await started(engine), await started(engine)
    engine.delay(60)
    first.send(ALL_NODES, b"lost")
    await asyncio.sleep(0)
    assert engine.drop_under_way() == 1
    assert engine.lost == {"dropped": 1}
    engine.heal()
    first.send(ALL_NODES, b"arrives")
    await until(lambda: events.received)
    assert events.received == [b"arrives"]
    assert told(events) == ["lost", "restored"]
    assert second.stats().interruptions == {"lost": 1}
    await one.close()
    await events.close()


async def test_a_node_that_takes_its_envelopes_too_slowly_is_cut_off() -> None:
    engine = MemoryEngine(max_undelivered_bytes=10_000)
    (first, one), (_, events) = await started(engine), await started(engine)
    engine.delay(60)
    for _ in range(3):
        first.send(ALL_NODES, bytes(4000))
    await asyncio.sleep(0)
    engine.delay(0)
    await until(lambda: "restored" in told(events))
    assert told(events) == ["disconnected", "restored"]
    assert engine.lost == {"too slow": 3}
    first.send(ALL_NODES, b"arrives")
    await until(lambda: events.received)
    assert events.received == [b"arrives"]
    await one.close()
    await events.close()


async def test_a_publish_without_an_answer_is_uncertain_and_one_without_a_connection_was_not_sent() -> None:
    engine = MemoryEngine()
    broker, events = await started(engine, probe_timeout=5)
    engine.deafen(broker)
    publishing = asyncio.create_task(raised_by(broker.publish(ALL_NODES, b"p")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    broker.sweep(events.now() + 5.1)
    assert isinstance(await publishing, BrokerUncertain)
    engine.stop()
    await until(lambda: "disconnected" in told(events))
    with pytest.raises(BrokerUnavailable, match="nothing was sent"):
        await broker.publish(ALL_NODES, b"p")
    await events.close()


async def test_a_broker_belongs_to_one_hub() -> None:
    engine = MemoryEngine()
    broker, node = await started(engine)
    with pytest.raises(MisuseError, match="belongs to one hub"):
        await broker.start(node.info, node)
    await node.close()


async def test_a_pace_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MemoryEngine().slow_down(0)


async def test_hubs_in_several_threads_are_joined() -> None:
    engine = MemoryEngine()
    count = 2000

    async def life(name: str, started_nodes: list[str]) -> list[bytes]:
        broker, events = await started(engine)
        started_nodes.append(name)
        while len(started_nodes) < 3:
            await asyncio.sleep(0.001)
        for number in range(count):
            while not broker.send(ALL_NODES, f"{name} {number}".encode()):
                await asyncio.sleep(0)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(events.received) == 2 * count)
        started_nodes.append(name)
        while len(started_nodes) < 6:
            await asyncio.sleep(0.001)
        await events.close()
        return events.received

    nodes: list[str] = []
    lives = await asyncio.gather(*(asyncio.to_thread(asyncio.run, life(name, nodes)) for name in "abc"))
    for name, received in zip("abc", lives, strict=True):
        for other in set("abc") - {name}:
            of_other = [envelope for envelope in received if envelope.startswith(other.encode())]
            assert of_other == [f"{other} {number}".encode() for number in range(count)]


async def test_a_loop_that_closed_without_close_costs_the_engine_nothing() -> None:
    engine = MemoryEngine()
    abandoned: list[MemoryBroker] = []

    async def life() -> None:
        broker, _ = await started(engine)
        abandoned.append(broker)

    await asyncio.to_thread(asyncio.run, life())
    first, node = await started(engine)
    first.send(ALL_NODES, b"nobody")
    await asyncio.sleep(0)
    assert (await first.publish(ALL_NODES, b"nobody")).receivers == 0
    await node.close()


async def test_an_outage_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wshub.broker")
    engine = MemoryEngine()
    nodes = Nodes(lambda: MemoryBroker(engine), MemoryFaults(engine), patience=10)
    node = await nodes.start()
    engine.stop()
    await nodes.until(lambda: not node.broker.health().ok, "it notices")
    await nodes.pass_for(20)
    engine.heal()
    await nodes.until(lambda: node.broker.health().ok, "it connects again", within=60, rate=10)
    await nodes.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    events = [type(event) for event in node.log]
    assert events == [Interrupted, Restored]
    assert not any(isinstance(event, Received) for event in node.log)
