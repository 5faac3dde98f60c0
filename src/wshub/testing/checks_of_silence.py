"""Checks of connections that are open and carry nothing, of slow engines, and of everything at random."""

from __future__ import annotations

import asyncio
import random
import time

from wshub.errors import BrokerUnavailable, BrokerUncertain
from wshub.testing.broker_accounting import check_arrivals, concerns
from wshub.testing.broker_faults import offers
from wshub.testing.broker_nodes import Nodes, Received, Sent, raised_by, require
from wshub.testing.broker_recovery import (
    CHANNEL,
    FOUND_RATE,
    FOUND_WITHIN,
    NOTICED_WITHIN,
    RATE,
    all_is_accounted_for,
    arrives_again,
    noticed,
    recovered,
    recovery_time,
    stream,
    trickling,
)
from wshub.testing.broker_registry import check
from wshub.testing.broker_reports import check_durations

# A queue that has taken this many bytes has no bound.
UNBOUNDED = 128 * 1024 * 1024
PIECE = 64 * 1024


@check("deafen")
async def a_deaf_node_notices(nodes: Nodes) -> None:
    """A node whose connection is open and brings nothing notices it by a probe, tells its hub, and connects again."""
    first, second = await nodes.two(CHANNEL)
    await stream(first, CHANNEL, 10)
    await second.receives(first, 10)
    await nodes.faults.deafen(second.broker)
    async with trickling(first):
        await noticed(nodes, second)
        require(second.broker.health().state in ("deaf", "disconnected"), f"the health is {second.broker.health()}")
        await second.interrupted_after(0)
        await nodes.faults.heal()
        await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("deafen")
async def a_short_deafness_loses_nothing_silently(nodes: Nodes) -> None:
    """If nothing reaches a node for less time than a probe takes, then all arrives later, or the hub is told."""
    first, second = await nodes.two(CHANNEL)
    for _ in range(3):
        await stream(first, CHANNEL, 20)
        await nodes.faults.deafen(second.broker)
        await stream(first, CHANNEL, 20)
        await nodes.pass_for(2, rate=RATE)
        await nodes.faults.heal()
        await stream(first, CHANNEL, 20)
        await recovered(nodes, first, second)
        await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("mute")
async def a_mute_node_notices(nodes: Nodes) -> None:
    """A node from which nothing leaves any more notices it, and ``publish()`` ends with an error."""
    first, second = await nodes.two(CHANNEL)
    await stream(first, CHANNEL, 10)
    await second.receives(first, 10)
    await nodes.faults.mute(first.broker)
    publishing = asyncio.create_task(raised_by(first.broker.publish(CHANNEL, b"p")))
    async with trickling(first):
        await noticed(nodes, first)
        await nodes.until(publishing.done, "publish() raises when no answer comes", within=NOTICED_WITHIN, rate=RATE)
        error = publishing.result()
        require(isinstance(error, BrokerUnavailable | BrokerUncertain), f"publish() without an answer: {error!r}")
        await nodes.faults.heal()
        await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("mute")
async def a_short_silence_loses_nothing_silently(nodes: Nodes) -> None:
    """If nothing leaves a node for less time than a probe takes, then all arrives later, or a hub is told."""
    first, second = await nodes.two(CHANNEL)
    for _ in range(3):
        await stream(first, CHANNEL, 20)
        await nodes.faults.mute(first.broker)
        await stream(first, CHANNEL, 20)
        first.subscribe("room:silent")
        await nodes.pass_for(2, rate=RATE)
        await nodes.faults.heal()
        await stream(first, CHANNEL, 20)
        await recovered(nodes, first, second)
        await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)
    await nodes.until(
        lambda: first.broker.health().ok, "a node that was mute for a moment stays connected", within=30, rate=RATE
    )


@check("freeze")
async def a_slow_engine_fills_a_bounded_queue(nodes: Nodes) -> None:
    """If the engine takes nothing, ``send()`` returns False once too much waits, counts it, and never blocks."""
    first, second = await nodes.two(CHANNEL)
    await nodes.faults.freeze()
    before = first.broker.stats().dropped.get("full", 0)
    dropped = 0
    durations = []
    for number in range(UNBOUNDED // PIECE):
        started = time.perf_counter()
        dropped += not first.send(CHANNEL, size=PIECE)
        durations.append(time.perf_counter() - started)
        if number % 16 == 15:
            await asyncio.sleep(0)
        if dropped >= 200:
            break
    require(dropped > 0, f"an engine that takes nothing was given {UNBOUNDED >> 20} MiB: the queue has no bound")
    check_durations(durations)
    counted = first.broker.stats().dropped.get("full", 0) - before
    require(counted == dropped, f"send() returned False {dropped} times, and {counted} are counted as full")
    pending = first.broker.health().pending_bytes
    require(0 < pending < UNBOUNDED, f"health() has {pending} bytes that wait")
    await nodes.faults.heal()
    await nodes.until(
        lambda: first.broker.health().pending_bytes == 0, "what waits leaves once the engine takes it", within=30
    )
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("freeze")
async def close_does_not_wait_for_a_frozen_engine(nodes: Nodes) -> None:
    """``close()`` waits a second at most for an engine that takes nothing, and ends what is open with an error."""
    first, _ = await nodes.two(CHANNEL)
    await nodes.faults.freeze()
    await stream(first, CHANNEL, 100, size=PIECE)
    publishing = asyncio.create_task(raised_by(first.broker.publish(CHANNEL, b"p")))
    await asyncio.sleep(0)
    await nodes.finish(first.close(), "close() returns after a second at most", within=3.0)
    error = await nodes.finish(publishing, "publish() ends with close()")
    require(isinstance(error, BrokerUnavailable | BrokerUncertain), f"publish() was closed, and there was {error!r}")


@check("freeze")
async def a_frozen_engine_is_noticed(nodes: Nodes) -> None:
    """If the engine takes nothing for long, the hub is told, ``publish()`` raises, and it works again afterwards."""
    first, second = await nodes.two(CHANNEL)
    await nodes.faults.freeze()
    publishing = asyncio.create_task(raised_by(first.broker.publish(CHANNEL, b"p")))
    await stream(first, CHANNEL, 20)
    await noticed(nodes, first, second)
    await nodes.until(publishing.done, "publish() raises when no answer comes", within=NOTICED_WITHIN, rate=RATE)
    error = publishing.result()
    require(isinstance(error, BrokerUnavailable | BrokerUncertain), f"publish() without an answer: {error!r}")
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("refuse")
async def a_refused_channel_is_told_and_heals(nodes: Nodes) -> None:
    """If the engine refuses a channel, the hub is told, other channels work, and the broker tries again."""
    first, second = await nodes.two(CHANNEL)
    await nodes.faults.refuse(second.broker, "room:refused")
    second.subscribe("room:refused")
    waiting = asyncio.create_task(raised_by(second.broker.subscribed("room:refused")))
    await nodes.until(
        lambda: waiting.done() or any(concerns(event, "room:refused") for event in second.interruptions()),
        "the hub is told that a channel was refused, by subscribed() or by interrupted()",
        within=NOTICED_WITHIN,
        rate=RATE,
    )
    if waiting.done():
        error = waiting.result()
        require(isinstance(error, BrokerUnavailable), f"subscribed() for a refused channel: {error!r}")
    await nodes.until(lambda: second.broker.health().ok, "the other channels work", within=NOTICED_WITHIN, rate=RATE)
    await arrives_again(nodes, first, second)
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    before = len(second.numbers(first))

    def arrived() -> bool:
        first.send("room:refused")
        return len(second.numbers(first)) > before

    await nodes.until(arrived, "the broker subscribes again when it is allowed", within=recovery_time(nodes), rate=RATE)
    await nodes.finish(asyncio.gather(waiting), "subscribed() ends")


@check("forget")
async def a_subscription_that_the_engine_lost_is_found(nodes: Nodes) -> None:
    """A subscription that only the engine has lost is found in 40 s, though another node has the channel, and told."""
    first, second = await nodes.two(CHANNEL, *(f"room:{number}" for number in range(60)))
    await first.join(CHANNEL)
    await arrives_again(nodes, first, second)
    await nodes.faults.forget(second.broker, CHANNEL)
    await stream(first, CHANNEL, 5)
    await nodes.until(
        lambda: any(concerns(event, CHANNEL) for event in second.interruptions()),
        "the hub is told that a subscription was lost",
        within=FOUND_WITHIN,
        rate=FOUND_RATE,
    )
    await recovered(nodes, first, second)
    await arrives_again(nodes, first, second)
    await all_is_accounted_for(nodes, first, second)


@check("cut")
async def whatever_fails_nothing_is_lost_silently(nodes: Nodes) -> None:
    """Under random faults each envelope arrives once, was dropped, or is in a gap that a hub was told about."""
    chance = random.Random("faults")
    members = [await nodes.start() for _ in range(3)]
    for node in members:
        await node.join(CHANNEL)
    offered = [name for name in ("cut", "cut", "stop", "freeze", "deafen", "mute") if offers(nodes.faults, name)]
    async with trickling(*members):
        for _ in range(8):
            await nodes.pass_for(chance.choice((0, 0.5, 3)))
            fault = getattr(nodes.faults, chance.choice(offered))
            needs_broker = fault.__name__ not in ("stop", "freeze")
            await (fault(chance.choice(members).broker) if needs_broker else fault())
            await nodes.pass_for(chance.choice((0, 0.5, 3, 18)))
            await nodes.faults.heal()
            if chance.random() < 0.5:
                await recovered(nodes, *members)
        await recovered(nodes, *members)
    for sender in members:
        for receiver in members:
            if receiver is not sender:
                await arrives_again(nodes, sender, receiver)
    await nodes.quiet()
    for sender in members:
        refused = sum(isinstance(event, Sent) and not event.accepted for event in sender.log)
        stats = sender.broker.stats()
        dropped = sum(stats.dropped.values())
        require(dropped >= refused, f"send() returned False {refused} times, and {dropped} are counted as dropped")
        received = sum(isinstance(event, Received) for event in sender.log)
        require(stats.received == received, f"{received} envelopes arrived, and stats() has {stats.received}")
        for receiver in members:
            if receiver is not sender:
                check_arrivals(sender, receiver, CHANNEL)
