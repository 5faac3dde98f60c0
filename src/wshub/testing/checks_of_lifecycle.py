"""Checks of start and close, of what close() leaves behind, and of what a broker tells about itself."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

from wshub.brokers.interface import ALL_NODES, Broker
from wshub.errors import BrokerUnavailable
from wshub.testing.broker_nodes import Node, Nodes, raised_by, require
from wshub.testing.broker_registry import check
from wshub.testing.broker_reports import check_durations, check_health, check_stats
from wshub.testing.traces import Traces


@check()
async def close_sends_what_waits(nodes: Nodes) -> None:
    """``close()`` sends what waits first: what ``send()`` and ``publish()`` have taken arrives."""
    first, second = await nodes.two("room:a")
    for number in range(100):
        require(first.send("room:a", number), "send() returns True")
    await first.publish("room:a", 100)
    for number in range(101, 200):
        require(first.send("room:a", number), "send() returns True")
    await first.close()
    numbers = await second.receives(first, 200, "what was sent right before close() arrives")
    require(numbers == list(range(200)), f"the order was {numbers[:20]}…")


@check()
async def close_under_load_leaves_nothing(nodes: Nodes) -> None:
    """``close()`` under load leaves no task, timer, thread, descriptor or reference to the broker."""
    first, second = await nodes.two("room:a")
    loaded = nodes.make()
    before = Traces()
    await loaded.start()
    await loaded.join("room:a")
    publishing = [asyncio.create_task(raised_by(loaded.broker.publish("room:a", b"p"))) for _ in range(20)]
    for number in range(500):
        first.send("room:a", number, size=1000)
        loaded.send("room:a", number, size=1000)
        if number % 50 == 49:
            await asyncio.sleep(0)
    loaded.subscribe(*(f"room:{index}" for index in range(1000)))
    waiting = [asyncio.create_task(raised_by(loaded.broker.subscribed(f"room:{index}"))) for index in range(20)]
    await asyncio.sleep(0)
    await loaded.close()
    await nodes.finish(asyncio.gather(*publishing, *waiting), "publish() and subscribed() end with close()")
    # The errors that they have returned refer to the broker.
    publishing.clear()
    waiting.clear()
    await second.receives(first, 500, "other nodes go on to receive")
    reference = forget_broker(loaded)
    await nodes.until(lambda: before.left(reference) == [], lambda: f"nothing is left: {before.left(reference)}")


def forget_broker(node: Node) -> Callable[[], object]:
    """Let go of the node's broker. Return what tells whether something else has a reference to it."""
    broker, node.broker = node.broker, ClosedBroker()  # type: ignore[assignment]
    try:
        return weakref.ref(broker)
    except TypeError:
        # Not every native class has weak references.
        return lambda: None


class ClosedBroker:
    """Stands in for a broker that the check has forgotten."""

    async def close(self) -> None:
        """Do nothing, as the second call of ``close()``."""


@check()
async def close_can_be_called_at_any_time(nodes: Nodes) -> None:
    """``close()`` does nothing before ``start()``, and a second call does nothing, at the same time or later."""
    node = nodes.make()
    await node.close()
    await node.close()
    first, second = await nodes.two("room:a")
    await nodes.finish(asyncio.gather(second.close(), second.broker.close(), second.broker.close()), "close() returns")
    await second.close()
    require(first.send("room:a"), "the other nodes go on")
    # A start that is given up.
    third = nodes.make()
    starting = asyncio.create_task(third.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await third.close()


@check()
async def a_closed_broker_refuses_in_good_order(nodes: Nodes) -> None:
    """Before ``start()`` and after ``close()``, ``send()`` returns False, and the rest raises BrokerUnavailable."""
    first = await nodes.start()
    never, closed = nodes.make(), await nodes.start()
    await closed.join("room:a")
    await closed.close()
    for node in (never, closed):
        require(node.send("room:a") is False, "send() returns False without a connection")
        error = await nodes.finish(raised_by(node.broker.publish("room:a", b"p")), "publish() raises")
        require(isinstance(error, BrokerUnavailable), f"publish() raised {error!r}, not BrokerUnavailable")
        error = await nodes.finish(raised_by(node.broker.subscribed("room:a")), "subscribed() raises")
        require(isinstance(error, BrokerUnavailable), f"subscribed() raised {error!r}, not BrokerUnavailable")
        node.unsubscribe("room:a")
        node.broker.sweep(nodes.clock())
        check_health(node.broker, connected=False)
        check_stats(node.broker)
    first.send("room:a", 1)
    first.send(ALL_NODES, 2)
    await nodes.quiet()
    require(closed.envelopes() == [], "a closed broker delivers nothing")


@check()
async def it_starts_again_after_close(nodes: Nodes) -> None:
    """After ``close()`` a broker can be started again, as another node, and counts from zero."""
    first, second = await nodes.two("room:a")
    for turn in range(3):
        for number in range(10):
            first.send("room:a", number)
            second.send(first.own_channel, number)
        await second.receives(first, 10)
        await first.receives(second, 10)
        await second.close()
        again = Node(nodes, second.broker, nodes.hub)
        nodes.all.append(again)
        second.broker = ClosedBroker()  # type: ignore[assignment]
        await again.start()
        stats = again.broker.stats()
        require(stats.sent == 0 and stats.received == 0, f"after the new start() it has {stats}")
        await again.join("room:a")
        require(again.own_channel != second.own_channel, f"turn {turn} has another node")
        second = again


@check()
async def it_starts_on_a_new_loop(nodes: Nodes) -> None:
    """If the loop was closed without ``close()``, the broker can be started on another loop."""
    loop_type = type(asyncio.get_running_loop())
    make, patience = nodes.maker, nodes.patience

    def run() -> None:
        broker = make()
        lives: list[Nodes] = []

        async def first_life() -> None:
            inner = Nodes(lambda: broker, None, patience=patience)
            node = await inner.start()
            await node.join("room:a", "room:b")
            node.send("room:a", 1)
            lives.append(inner)

        async def second_life() -> None:
            inner = Nodes(make, None, patience=patience)
            try:
                sender = await inner.start()
                node = Node(inner, broker, inner.hub)
                inner.all.append(node)
                await node.start()
                require(node.broker.health().ok, f"after start() it is {node.broker.health()}")
                await node.join("room:a")
                sender.send("room:a", 1)
                sender.send(node.own_channel, 2)
                await node.receives(sender, 2)
            finally:
                await inner.close()

        run_on(loop_type, first_life())
        lives.pop().abandon()
        run_on(loop_type, second_life())

    await nodes.finish(asyncio.to_thread(run), "a broker works on its second loop", within=3 * patience)


def run_on(loop_type: type[asyncio.AbstractEventLoop], life: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a new loop of the type, as ``asyncio.run()`` does."""
    with asyncio.Runner(loop_factory=loop_type) as runner:
        runner.run(life)


@check()
async def it_stays_connected_when_nothing_happens(nodes: Nodes) -> None:
    """While nothing is sent a broker stays connected, loses nothing, and tells the hub nothing."""
    first, second = await nodes.two("room:a")
    await nodes.pass_for(30, rate=5)
    for node in (first, second):
        check_health(node.broker, connected=True)
        require(node.interruptions() == [], f"nothing was lost, and yet there was {node.interruptions()}")
        require(node.broker.stats().reconnects == 0, "there was no reason to connect again")
    first.send("room:a", 1)
    await second.receives(first, 1)


@check()
async def health_and_stats_are_well_formed(nodes: Nodes) -> None:
    """``health()`` and ``stats()`` have their fields, before, during and after the connection."""
    node = nodes.make()
    check_health(node.broker, connected=False)
    require(node.broker.health().state == "starting", "the state is `starting` before start() has returned")
    check_stats(node.broker)
    require(isinstance(node.broker, Broker), "a broker has all methods of Broker")
    await node.start()
    other = await nodes.start()
    await nodes.until(lambda: node.broker.stats().peers >= 1, "stats() counts a peer")
    before = node.broker.stats().subscriptions
    await node.join("room:a", "room:b")
    stats = node.broker.stats()
    require(stats.subscriptions == before + 2, f"two subscriptions more are {stats.subscriptions - before}")
    other.send("room:a")
    await node.receives(other, 1)
    for broker in (node.broker, other.broker):
        check_health(broker, connected=True)
        check_stats(broker)
        for name in ("dropped", "interruptions"):
            counts = getattr(broker.stats(), name)
            require(counts is not getattr(broker.stats(), name), f"stats().{name} is a copy")


@check()
async def the_counts_add_up(nodes: Nodes) -> None:
    """Without a fault each envelope is counted once as sent and once as received, with its bytes."""
    first, second = await nodes.two("room:a")
    sent, received = first.broker.stats(), second.broker.stats()
    await first.send_all("room:a", range(500), size=200)
    for number in range(500, 600):
        await first.publish("room:a", number)
    await second.receives(first, 600)
    await nodes.until(lambda: first.broker.health().pending_bytes == 0, "nothing waits after all have arrived")
    size = sum(map(len, second.envelopes()))
    accepted = [event for event in first.log if getattr(event, "accepted", False)]
    refused = [event for event in first.log if getattr(event, "accepted", True) is False]
    expected = {
        "sent": (first.broker.stats().sent - sent.sent, len(accepted)),
        "dropped": (sum(first.broker.stats().dropped.values()) - sum(sent.dropped.values()), len(refused)),
        "received": (second.broker.stats().received - received.received, 600),
    }
    for name, (counted, right) in expected.items():
        require(counted == right, f"{name} is {counted}, not {right}")
    for name, counts, before in (
        ("bytes_sent", first.broker.stats().bytes_sent, sent.bytes_sent),
        ("bytes_received", second.broker.stats().bytes_received, received.bytes_received),
    ):
        require(counts - before >= size, f"{name} has grown by {counts - before}, less than the {size} bytes sent")


@check()
async def send_returns_at_once(nodes: Nodes) -> None:
    """``send()`` waits for nothing."""
    first, _ = await nodes.two("room:a")
    durations = []
    for number in range(400):
        before = time.perf_counter()
        first.broker.send("room:a", first.envelope(number))
        durations.append(time.perf_counter() - before)
        if number % 20 == 19:
            await asyncio.sleep(0)
    check_durations(durations)
