"""Checks of an engine that is away, and of connections that are lost."""

from __future__ import annotations

import asyncio
import logging
import time

from wshub.errors import BrokerUnavailable, BrokerUncertain
from wshub.testing.broker_nodes import Interrupted, Left, Nodes, raised_by, require
from wshub.testing.broker_recovery import (
    CHANNEL,
    NOTICED_WITHIN,
    RATE,
    all_is_accounted_for,
    arrives_again,
    noticed,
    recovered,
    recovery_time,
    restored,
    stream,
)
from wshub.testing.broker_registry import check
from wshub.testing.broker_reports import check_durations


@check("stop")
async def without_an_engine_everything_is_refused_and_counted(nodes: Nodes) -> None:
    """While the engine is away ``send()`` returns False at once, and the rest raises BrokerUnavailable."""
    first, second = await nodes.two(CHANNEL)
    await nodes.faults.stop()
    await noticed(nodes, first, second)
    # A broker may have one connection to receive and another one to send, which end one after the other.
    await nodes.until(lambda: not first.send(CHANNEL), "send() returns False once the end of the engine is noticed")
    await nodes.until(
        lambda: all(node.interruptions() for node in (first, second)),
        "the hub is told by interrupted() when the connection is lost",
    )
    require(first.broker.health().state == "disconnected", f"the health is {first.broker.health()}")
    before = first.broker.stats().dropped.get("disconnected", 0)
    durations = []
    for _ in range(200):
        started = time.perf_counter()
        accepted = first.send(CHANNEL)
        durations.append(time.perf_counter() - started)
        require(accepted is False, "send() returns False while there is no connection")
    check_durations(durations)
    dropped = first.broker.stats().dropped.get("disconnected", 0) - before
    require(dropped == 200, f"of 200 envelopes that were dropped, {dropped} are counted as disconnected")
    for call, arguments in ((first.broker.publish, (CHANNEL, b"p")), (second.broker.subscribed, (CHANNEL,))):
        error = await nodes.finish(raised_by(call(*arguments)), "publish() and subscribed() raise without a connection")
        require(
            isinstance(error, BrokerUnavailable), f"without a connection there was {error!r}, not BrokerUnavailable"
        )
    require(first.broker.health().pending_bytes == 0, "nothing waits for an engine that is away")
    for node in (first, second):
        require(sum(node.broker.stats().interruptions.values()) >= 1, "stats() counts the interruption")
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)


@check("stop")
async def channels_are_restored_when_the_engine_is_back(nodes: Nodes) -> None:
    """When the engine is back, so are the channels, with the changes made meanwhile; ``interrupted`` comes first."""
    first, second = await nodes.two(CHANNEL, "room:old", "room:b")
    await stream(first, CHANNEL, 50)
    await second.receives(first, 50)
    await nodes.faults.stop()
    await stream(first, CHANNEL, 50)
    await noticed(nodes, first, second)
    await stream(first, CHANNEL, 50)
    second.subscribe("room:new", "room:not", "room:again")
    second.unsubscribe("room:old", "room:not", "room:b")
    second.subscribe("room:b")
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    told = [event for event in second.log if not isinstance(event, Left)]
    require(
        len(told) > 50 and isinstance(told[50], Interrupted),
        f"after the last envelope before the outage the hub is told: {told[50:55]}",
    )
    for channel in (CHANNEL, "room:new", "room:again", "room:b"):
        await arrives_again(nodes, first, second, channel)
    before = len(second.numbers(first))
    first.send("room:old", 1_000_001)
    first.send("room:not", 1_000_002)
    first.send(second.own_channel, 1_000_003)
    await second.receives(first, before + 1)
    await nodes.quiet()
    require(
        second.numbers(first)[before:] == [1_000_003], "channels that were left while the engine was away stay left"
    )
    await stream(first, CHANNEL, 50)
    await all_is_accounted_for(nodes, first, second)
    require(second.broker.stats().reconnects >= 1, "stats() counts that it has connected again")


@check("stop")
async def it_waits_for_an_engine_that_is_away_at_the_start(nodes: Nodes) -> None:
    """``start()`` waits for an engine that cannot be reached, and logs that once. The hub uses the rest meanwhile."""
    first = await nodes.start()
    await nodes.faults.stop()
    await noticed(nodes, first)
    lines: list[str] = []
    handler = CollectingHandler(lines)
    logger = logging.getLogger("wshub.broker")
    second = nodes.make()
    starting = asyncio.create_task(raised_by(second.broker.start(second.info, second.recorder)))
    second.is_started = True
    logger.addHandler(handler)
    try:
        # A broker with several connections may log each.
        await nodes.pass_for(8)
        logged = len(lines)
        await nodes.pass_for(30)
    finally:
        logger.removeHandler(handler)
    require(len(lines) == logged, f"an outage that lasts is logged once, not as {lines[:4]}")
    require(not starting.done(), "start() waits for the engine")
    require(second.broker.health().state == "starting", f"the health is {second.broker.health()}")
    require(second.send(CHANNEL) is False, "send() returns False while there is no connection")
    error = await nodes.finish(raised_by(second.broker.publish(CHANNEL, b"p")), "publish() raises")
    require(isinstance(error, BrokerUnavailable), f"publish() raised {error!r}, not BrokerUnavailable")
    second.subscribe(CHANNEL, "room:not")
    second.unsubscribe("room:not")
    await nodes.faults.heal()
    await nodes.until(starting.done, "start() returns when the engine is there", within=recovery_time(nodes), rate=RATE)
    require(starting.result() is None, f"start() raised {starting.result()!r}")
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)


class CollectingHandler(logging.Handler):
    """Collects lines that say that something is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@check("stop")
async def it_can_be_closed_while_the_engine_is_away(nodes: Nodes) -> None:
    """``close()`` ends a broker that has lost its engine, and one that has not reached it yet."""
    first, _ = await nodes.two(CHANNEL)
    await nodes.faults.stop()
    await noticed(nodes, first)
    second = nodes.make()
    starting = asyncio.create_task(raised_by(second.broker.start(second.info, second.recorder)))
    second.is_started = True
    await nodes.pass_for(3)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    for node in (first, second):
        await nodes.finish(node.close(), "close() returns", within=3.0)


@check("cut")
async def a_lost_connection_is_told_before_what_follows(nodes: Nodes) -> None:
    """After a lost connection, ``interrupted`` comes before the first envelope after the gap, ``restored`` later."""
    first, second = await nodes.two(CHANNEL)
    await stream(first, CHANNEL, 100)
    await second.receives(first, 100)
    for _ in range(3):
        count = len(second.interruptions())
        await stream(first, CHANNEL, 50)
        await nodes.faults.cut(second.broker)
        for _ in range(40):
            await stream(first, CHANNEL, 25)
            await asyncio.sleep(0.002)
        await second.interrupted_after(count)
        await recovered(nodes, first, second)
        await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)
    stats = second.broker.stats()
    require(stats.reconnects >= 3, f"it was cut three times, and stats() has {stats.reconnects} reconnects")
    require(sum(stats.interruptions.values()) == len(second.interruptions()), "stats() counts each interruption")


@check("cut")
async def restored_means_that_it_arrives(nodes: Nodes) -> None:
    """Once ``restored`` was called, what another node sends on the channels arrives, the very first envelope too."""
    first, second = await nodes.two(*(f"room:{number}" for number in range(200)))
    for turn in range(3):
        count = len(second.interruptions())
        await nodes.faults.cut(second.broker)
        await second.interrupted_after(count)
        # Between workers, a cut ends the first node's connection too.
        await restored(nodes, second, first)
        before = len(second.numbers(first))
        for number in range(200):
            require(first.send(f"room:{number}", turn * 200 + number), "send() returns True")
        await second.receives(first, before + 200, "the first envelope on each restored channel arrives")


@check("cut")
async def what_a_cut_leaves_open_is_answered(nodes: Nodes) -> None:
    """``publish()`` and ``subscribed()`` end when the connection is lost: with an answer, or the right error."""
    first, second = await nodes.two(CHANNEL)
    for _ in range(3):
        errors = []
        calls = [asyncio.create_task(raised_by(first.broker.publish(CHANNEL, b"p"))) for _ in range(10)]
        first.subscribe(*(f"room:{number}" for number in range(10)))
        calls += [asyncio.create_task(raised_by(first.broker.subscribed(f"room:{number}"))) for number in range(10)]
        await asyncio.sleep(0)
        await nodes.faults.cut(first.broker)
        for call in calls:
            await nodes.until(call.done, "publish() and subscribed() end", within=NOTICED_WITHIN, rate=RATE)
            errors.append(call.result())
        for error in errors:
            right = error is None or isinstance(error, BrokerUnavailable | BrokerUncertain)
            require(right, f"a call that lost its connection raised {error!r}")
        for error in errors[10:]:
            require(not isinstance(error, BrokerUncertain), "subscribed() raises BrokerUnavailable, and nothing else")
        await recovered(nodes, first, second)
