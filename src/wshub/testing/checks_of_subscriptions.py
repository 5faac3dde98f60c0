"""Checks of subscriptions: when they begin, when they end, and how many there may be."""

from __future__ import annotations

import asyncio

from wshub.brokers.interface import room_channel
from wshub.errors import BrokerUnavailable
from wshub.testing.broker_nodes import Nodes, raised_by, require
from wshub.testing.broker_registry import check

MANY = 10_000


@check()
async def subscribed_means_that_it_arrives(nodes: Nodes) -> None:
    """Once ``subscribed()`` has returned, what another node sends arrives, the very first envelope too."""
    first, second = await nodes.two()
    for number in range(100):
        channel = f"room:{number}"
        await second.join(channel)
        require(first.send(channel, number), "send() returns True")
    numbers = await second.receives(first, 100, "each first envelope after subscribed() arrives")
    require(sorted(numbers) == list(range(100)), f"the envelopes arrived as {numbers[:20]}…")
    # At the same time, and for a channel that was subscribed long ago.
    channels = [f"room:{number}" for number in range(50, 150)]
    second.subscribe(*channels)
    await nodes.finish(
        asyncio.gather(*(second.broker.subscribed(channel) for channel in channels)), "subscribed() returns"
    )
    for number, channel in enumerate(channels, 100):
        first.send(channel, number)
    await second.receives(first, 200, "each first envelope after subscribed() arrives")


@check()
async def a_second_subscribe_does_nothing(nodes: Nodes) -> None:
    """A second ``subscribe()`` does nothing: each envelope arrives once, and one ``unsubscribe()`` ends it."""
    first, second = await nodes.two("room:a", "room:b")
    subscriptions = second.broker.stats().subscriptions
    second.subscribe("room:a", "room:a")
    await second.join("room:a")
    count = second.broker.stats().subscriptions
    require(count == subscriptions, f"stats() has {count} subscriptions, {subscriptions} before the second subscribe()")
    for number in range(10):
        first.send("room:a", number)
    await second.receives(first, 10)
    second.unsubscribe("room:a")
    await ends(nodes, "room:a")
    require(len(set(second.numbers(first))) == len(second.numbers(first)), "each envelope arrives once")


async def ends(nodes: Nodes, channel: str) -> None:
    """Return when the second node receives nothing more of the channel. It has the channel ``room:b`` too."""
    first, second = nodes.all[:2]
    number = 1000
    for _ in range(20):
        before = len(second.numbers(first))
        first.send(channel, number)
        first.send("room:b", number + 1)
        first.send(second.own_channel, number + 2)
        for other in (number + 1, number + 2):
            await second.receives_number(first, other, "envelopes of the channels that the node has not left arrive")
        await nodes.quiet()
        if len(second.numbers(first)) == before + 2:
            return
        number += 3
    raise AssertionError("after unsubscribe() the envelopes of the channel stop")


@check()
async def unsubscribe_ends_the_envelopes(nodes: Nodes) -> None:
    """After ``unsubscribe()`` the envelopes of the channel stop soon. Other channels, and other nodes, stay."""
    first, second = await nodes.two("room:a", "room:b")
    third = await nodes.start()
    await third.join("room:a")
    first.send("room:a", 0)
    await second.receives(first, 1)
    second.unsubscribe("room:a")
    # It has not subscribed to these: nothing happens.
    second.unsubscribe("room:a", "room:never")
    await ends(nodes, "room:a")
    received = third.numbers(first)
    sent = [event for event in first.log if getattr(event, "channel", None) == "room:a"]
    require(len(received) == len(sent), f"another subscriber received {len(received)} of {len(sent)} envelopes")
    await second.join("room:a")
    first.send("room:a", 9000)
    await second.receives_number(first, 9000, "a channel that is subscribed again works again")


@check()
async def the_last_change_of_an_iteration_counts(nodes: Nodes) -> None:
    """Of several changes of a channel in one iteration of the loop the last one counts."""
    first, second = await nodes.two("room:b")
    broker = second.broker
    for _ in range(10):
        broker.subscribe("room:a")
        broker.unsubscribe("room:a")
        broker.subscribe("room:a")
    await nodes.finish(broker.subscribed("room:a"), "subscribed() returns")
    first.send("room:a", 0)
    await second.receives(first, 1)
    # The same for a channel that the node has.
    broker.unsubscribe("room:a")
    broker.subscribe("room:a")
    await nodes.finish(broker.subscribed("room:a"), "subscribed() returns")
    first.send("room:a", 1)
    numbers = await second.receives(first, 2)
    require(numbers == [0, 1], f"the envelopes arrived as {numbers}")
    broker.subscribe("room:a")
    broker.unsubscribe("room:a")
    await ends(nodes, "room:a")


@check()
async def fast_changes_end_right(nodes: Nodes) -> None:
    """However fast a node joins and leaves channels, it ends with those that it has joined last."""
    first, second = await nodes.two("room:b")
    channels = [f"room:fast-{index}" for index in range(10)]
    for turn in range(200):
        for index, channel in enumerate(channels):
            (second.broker.subscribe if (turn + index) % 3 else second.broker.unsubscribe)(channel)
        # The last turns are in one iteration of the loop.
        if turn % 7 and turn < 195:
            await asyncio.sleep(0)
    # The last turn has left each third channel.
    left = [channel for index, channel in enumerate(channels) if (199 + index) % 3 == 0]
    stayed = [channel for channel in channels if channel not in left]
    for channel in stayed:
        await nodes.finish(second.broker.subscribed(channel), "subscribed() returns")
    for number, channel in enumerate(stayed):
        first.send(channel, number)
    await second.receives(first, len(stayed))
    for channel in left:
        await ends(nodes, channel)


@check()
async def ten_thousand_channels_at_once(nodes: Nodes) -> None:
    """A node can subscribe to 10,000 channels at once, soon receives on each, and can leave them at once."""
    first, second = await nodes.two("room:b")
    before = second.broker.stats().subscriptions
    channels = [room_channel(f"many-{index}") for index in range(MANY)]
    second.subscribe(*channels)
    await nodes.finish(second.broker.subscribed(channels[-1]), "subscribed() returns for the last of 10,000 channels")
    await nodes.finish(
        asyncio.gather(*(second.broker.subscribed(channel) for channel in channels[::10])), "subscribed() returns"
    )
    for channel in channels:
        await nodes.finish(second.broker.subscribed(channel), "subscribed() returns")
    count = second.broker.stats().subscriptions
    require(count == before + MANY, f"stats() has {count} subscriptions, {before} before 10,000 more")
    for number, channel in enumerate(channels):
        await first.send_all(channel, [number])
    numbers = await second.receives(first, MANY, "one envelope on each of 10,000 channels arrives")
    require(sorted(numbers) == list(range(MANY)), "each of them arrives once")
    second.unsubscribe(*channels)
    await ends(nodes, channels[5])
    await ends(nodes, channels[-1])
    count = second.broker.stats().subscriptions
    require(count == before, f"stats() has {count} subscriptions after all were left, not {before}")


@check()
async def channels_of_the_first_moment_work(nodes: Nodes) -> None:
    """The hub may subscribe and send while ``start()`` runs. The subscriptions are in force when it has returned."""
    first = await nodes.start()
    second = nodes.make()
    starting = asyncio.create_task(second.start())
    await asyncio.sleep(0)
    second.subscribe("room:a", "room:b")
    second.unsubscribe("room:b")
    second.broker.send("room:a", b"early")
    second.broker.health()
    second.broker.stats()
    await starting
    await nodes.finish(second.broker.subscribed("room:a"), "subscribed() returns")
    first.send("room:b", 0)
    first.send("room:a", 1)
    await second.receives(first, 1)
    await nodes.quiet()
    require(second.numbers(first) == [1], f"the envelopes {second.numbers(first)} arrived")


@check()
async def subscribed_does_not_wait_for_a_channel_that_was_left(nodes: Nodes) -> None:
    """``subscribed()`` ends if the node leaves the channel meanwhile: it returns, or raises BrokerUnavailable."""
    _, second = await nodes.two()
    for _ in range(20):
        second.subscribe("room:a")
        waiting = asyncio.create_task(raised_by(second.broker.subscribed("room:a")))
        await asyncio.sleep(0)
        second.unsubscribe("room:a")
        error = await nodes.finish(waiting, "subscribed() ends")
        require(error is None or isinstance(error, BrokerUnavailable), f"subscribed() raised {error!r}")
