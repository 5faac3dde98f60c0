"""Checks of what arrives, where and in which order."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from wshub.brokers.interface import ALL_NODES, room_channel, user_channel
from wshub.errors import ConfigurationError
from wshub.testing.broker_nodes import Nodes, raised_by, require
from wshub.testing.broker_registry import check

# Names that mean something to an engine, to a path, to a pattern, or to whoever joins names with a separator.
NAMES = (
    "",
    " ",
    " a ",
    "a b",
    "*",
    "**",
    "a*",
    "?",
    "[ab]",
    ">",
    "a.>",
    "{a}",
    "}{",
    "a",
    "b",
    "A",
    ".",
    "..",
    "a.b",
    "../a",
    "/",
    "a:b",
    "a:",
    "%61",
    "\\a",
    "\0",
    "a\0",
    "a\0b",
    "\r\n",
    "a\r\nPING\r\n",
    "\t",
    "'\"",
    "\x7f",
    "grüße",
    "gru\u0308ße",
    "日本語",
    "\U0001f389",
    "\ufeffa",
    "\uffff",
    "all",
    "node:a",
    "x" * 65_536,
    "x" * 65_535 + "y",
)


@check()
async def each_subscriber_receives_once(nodes: Nodes) -> None:
    """An envelope reaches each other node that has subscribed to its channel, once."""
    first, second = await nodes.two("room:a")
    third = await nodes.start()
    await third.join("room:a")
    for number in range(1000):
        require(first.send("room:a", number), "send() returns True while the engine is there and little waits")
        if number % 50 == 49:
            await asyncio.sleep(0)
    for node in (second, third):
        await node.receives(first, 1000)
    await nodes.quiet()
    for node in (second, third):
        require(node.numbers(first) == list(range(1000)), f"1,000 envelopes arrived as {node.numbers(first)[:20]}…")
        require(node.interruptions() == [], f"nothing was lost, and yet there was {node.interruptions()}")


@check()
async def other_nodes_receive_nothing(nodes: Nodes) -> None:
    """An envelope reaches no node that has not subscribed to its channel."""
    first, second = await nodes.two("room:a")
    third = await nodes.start()
    await third.join("room:b", "room:aa", "user:a")
    for number in range(100):
        first.send("room:a", number)
        await first.publish("room:a", 100 + number)
    await second.receives(first, 200)
    # This comes behind everything that the third node must not get.
    first.send(third.own_channel, 200)
    await third.receives(first, 1)
    await nodes.quiet()
    require(third.numbers(first) == [200], f"a node received {third.numbers(first)[:20]}… of channels of others")


@check()
async def any_bytes_arrive_unchanged(nodes: Nodes) -> None:
    """An envelope is any bytes: every value, none at all, and a mebibyte."""
    first, second = await nodes.two("room:a")
    every_value = bytes(range(256))
    sent = [
        every_value,
        b"",
        b"\0",
        b"\r\n",
        b"$-1\r\n*3\r\n+OK\r\n>3\r\n",
        b"\xff" * 3,
        *(
            every_value * (length // 256) + every_value[: length % 256]
            for length in (255, 4095, 65_535, 65_536, 65_537)
        ),
        every_value * 4096,
        b"\0" * 1_048_575,
        b"the last one",
    ]
    for envelope in sent:
        require(first.broker.send("room:a", envelope), f"send() takes an envelope of {len(envelope)} bytes")
        # A queue may be shorter than all of them together.
        await nodes.until(lambda: first.broker.health().pending_bytes == 0, "the queue empties")
    await nodes.until(lambda: len(second.envelopes()) >= len(sent), "every envelope arrives")
    received = second.envelopes()
    for index, envelope in enumerate(sent):
        require(
            received[index] == envelope,
            f"{len(envelope)} bytes, {envelope[:20]!r}…, arrived as {len(received[index])}, {received[index][:20]!r}…",
        )


@check()
async def ten_thousand_arrive_in_order(nodes: Nodes) -> None:
    """The envelopes that one node sends on one channel arrive in the order in which it sent them."""
    first, second = await nodes.two("room:a")
    await first.send_all("room:a", range(10_000), size=100)
    numbers = await second.receives(first, 10_000)
    for before, after in pairwise(numbers):
        require(before < after, f"number {after} arrived after number {before}")
    require(numbers == list(range(10_000)), f"of 10,000 envelopes, {len(numbers)} arrived")


@check()
async def send_and_publish_keep_their_order(nodes: Nodes) -> None:
    """An envelope that ``publish()`` has sent arrives between those that ``send()`` has sent before and after it."""
    first, second = await nodes.two("room:a")
    for number in range(0, 300, 3):
        first.send("room:a", number)
        await first.publish("room:a", number + 1)
        first.send("room:a", number + 2)
    numbers = await second.receives(first, 300)
    require(numbers == list(range(300)), f"the order was {numbers[:20]}…")


@check()
async def each_sender_has_its_own_order(nodes: Nodes) -> None:
    """Envelopes of several nodes that send at the same time on the same channels all arrive, each node's in order."""
    senders = [await nodes.start() for _ in range(3)]
    receiver = await nodes.start()
    channels = [f"room:{index}" for index in range(5)]
    await receiver.join(*channels)
    for number in range(500):
        for sender in senders:
            sender.send(channels[number % 5], number)
        if number % 20 == 19:
            await asyncio.sleep(0)
    for sender in senders:
        numbers = await receiver.receives(sender, 500)
        require(sorted(numbers) == list(range(500)), "each envelope arrives once")
        for channel in range(5):
            of_channel = [number for number in numbers if number % 5 == channel]
            require(of_channel == sorted(of_channel), f"the order on a channel was {of_channel[:20]}…")


@check()
async def any_text_names_a_channel(nodes: Nodes) -> None:
    """A channel may have any name: empty, with spaces, with wildcards, with NUL, of 64 KiB. Each is another channel."""
    first, second, third = [await nodes.start() for _ in range(3)]
    channels = [name for kind in (room_channel, user_channel) for name in map(kind, NAMES)]
    await second.join(*channels[::2])
    await third.join(*channels[1::2])
    for number, channel in enumerate(channels):
        await first.send_all(channel, [number])
    for node, start in ((second, 0), (third, 1)):
        # All of them have left before the one that ends the waiting: nothing else is still to be sent.
        expected = list(range(start, len(channels), 2))
        await node.receives(first, len(expected))
    await nodes.quiet()
    for node, start in ((second, 0), (third, 1)):
        received = node.numbers(first)
        for number, channel in enumerate(channels):
            times, wanted = received.count(number), int(number % 2 == start)
            require(times == wanted, f"an envelope on {channel[:40]!r} arrived {times} times, not {wanted}")


@check()
async def all_nodes_and_the_own_channel_work_from_the_start(nodes: Nodes) -> None:
    """Envelopes on ``ALL_NODES``, and on the node's own channel, arrive as soon as ``start()`` has returned."""
    first = await nodes.start()
    for count in range(1, 4):
        newcomer = await nodes.start()
        require(first.send(ALL_NODES, count), "send() returns True")
        require(first.send(newcomer.own_channel, 100 + count), "send() returns True")
        require(newcomer.send(ALL_NODES, 0) and newcomer.send(first.own_channel, 1), "send() returns True")
        await first.receives(newcomer, 2, "what a newcomer sends arrives")
        await newcomer.receives(first, 2, "what is sent to a newcomer arrives")
    await nodes.quiet()
    for count, node in enumerate(nodes.all[1:], 1):
        expected = sorted([100 + count, *range(count, 4)])
        require(sorted(node.numbers(first)) == expected, f"node {count} received {node.numbers(first)}, not {expected}")


@check()
async def hubs_of_another_name_are_apart(nodes: Nodes) -> None:
    """A broker joins hubs of the same name only, whatever the names of the hubs and the channels are."""
    first, second = await nodes.two("room:a", "x:room:a")
    others = []
    for name in [nodes.hub + end for end in ("x", ":x", ".x", "/x", "-x", "_x", "\0x", "}", "*", "")] + [""]:
        hub = name if name != nodes.hub else name.upper()
        node = nodes.make(hub)
        error = await raised_by(node.start())
        # A broker may refuse a name that it cannot tell from others.
        require(error is None or isinstance(error, ConfigurationError), f"start() raised {error!r}")
        if error is None:
            await node.join("room:a", "room:b", first.own_channel)
            others.append(node)
    for number, channel in enumerate(["room:a", ALL_NODES, "x:room:a", "x.room:a", "x/room:a", "xroom:a", "}room:a"]):
        await first.send_all(channel, [number])
        for index, node in enumerate(others):
            await first.publish(node.own_channel, 100 + index)
    await second.receives(first, 3)
    for index, node in enumerate(others):
        await node.send_all(ALL_NODES, [index])
        await node.send_all(second.own_channel, [index])
        await node.send_all("room:a", [index])
    await nodes.quiet()
    for node in others:
        require(node.numbers(first) == [], f"hub {node.info.hub!r} received an envelope of hub {first.info.hub!r}")
        for receiver in (first, second, *others):
            if receiver is not node:
                crossed = receiver.numbers(node)
                require(crossed == [], f"hub {receiver.info.hub!r} received an envelope of hub {node.info.hub!r}")


@check()
async def publish_returns_when_it_is_taken(nodes: Nodes) -> None:
    """``publish()`` returns the number of nodes that get the envelope, or None; and the envelope arrives."""
    first, second = await nodes.two("room:a")
    third = await nodes.start()
    await third.join("room:a")
    receivers = await first.publish("room:a", 0)
    require(receivers in (None, 2), f"two nodes have subscribed, and publish() told {receivers}")
    receivers = await first.publish("room:nobody", 1)
    require(receivers in (None, 0), f"no node has subscribed, and publish() told {receivers}")
    await first.join("room:a")
    receivers = await first.publish("room:a", 2)
    require(receivers in (None, 2, 3), f"three nodes have subscribed, and publish() told {receivers}")
    await asyncio.gather(*(first.publish("room:a", number) for number in range(3, 203)))
    for node in (second, third):
        numbers = await node.receives(first, 202)
        require(sorted(numbers) == [0, *range(2, 203)], "each published envelope arrives once")


@check()
async def sending_to_nobody_is_no_loss(nodes: Nodes) -> None:
    """``send()`` returns True if no node has subscribed to the channel: nothing was dropped."""
    alone = await nodes.start()
    for channel in ("room:a", ALL_NODES, "node:0123456789abcdef"):
        require(alone.send(channel), "send() returns True when there is nobody to send to")
        await alone.publish(channel, 1)
    await nodes.quiet()
    dropped = alone.broker.stats().dropped
    require(not any(dropped.values()), f"something was dropped: {dropped}")
    require(alone.interruptions() == [], "nothing was lost")


@check()
async def nothing_is_called_from_within_send(nodes: Nodes) -> None:
    """The hub is called from the loop, and never from within ``send()``, ``subscribe()`` and ``unsubscribe()``."""
    first, second = await nodes.two("room:a")
    # The node gets its own envelopes only if the broker wants that: then not from within send() either.
    await first.join("room:a")
    for number in range(20):
        for node in (first, second):
            before = len(second.envelopes())
            node.send("room:a", number)
            require(len(second.envelopes()) == before, "an envelope arrived before send() had returned")
        second.subscribe(f"room:{number}")
        second.unsubscribe(f"room:{number}")
    await second.receives(first, 20)
    await first.receives(second, 20)
