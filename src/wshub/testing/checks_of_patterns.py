"""Checks of brokers that deliver by patterns: ``PatternBroker``. They are not run for a broker that does not."""

from __future__ import annotations

import asyncio

from wshub.brokers.envelope import decode_stored
from wshub.brokers.history_interface import HistoryBroker
from wshub.brokers.interface import ALL_NODES, HistoryConfig, PatternBroker, pattern_channel, room_channel, user_channel
from wshub.brokers.room_patterns import RoomPattern
from wshub.errors import BrokerUnavailable
from wshub.testing.broker_accounting import concerns
from wshub.testing.broker_faults import CheckNotRunError
from wshub.testing.broker_nodes import Matched, Node, Nodes, raised_by, require
from wshub.testing.broker_recovery import FOUND_RATE, FOUND_WITHIN, NOTICED_WITHIN, RATE, recovered, recovery_time
from wshub.testing.broker_registry import check

CONFIG = HistoryConfig(size=1000)

PRICES = "prices:*"
PATTERNS = (
    *(PRICES, "*", "*:audit", "prices:a*", "prices:eu.*", "prices:eu.*:x", "prices/*", "prices:1", "", "a b*", "p>*"),
    "x" * 300 + "*",
    "tenant:" * 40 + "*",
    "\udc80*",
)
ROOMS = (
    *("prices:1", "prices:", "prices:audit", "prices:a", "prices:ab:audit"),
    *("prices:eu.1", "prices:eu.1:x", "prices:eu."),
    *("prices", "price:1", "Prices:1", "prices.1", "prices/1", "prices/", "", "a b", "a b c", ">", "*", "p>q", "p>"),
    *("prices:" + "long " * 100, "prices:" + "l:o.n/g" * 100, "x" * 300, "x" * 301, "x" * 299),
    *("tenant:" * 40, "tenant:" * 40 + "1", "tenant:" * 41 + "1", "tenant:" * 39, "\udc80", "\udc80\udc80"),
)


def matcher(node: Node) -> PatternBroker:
    """Return the broker of a node, which delivers by patterns. Raise CheckNotRunError if it does not."""
    if not isinstance(node.broker, PatternBroker):
        raise CheckNotRunError("the broker does not deliver by patterns")
    return node.broker


async def join_pattern(node: Node, pattern: str = PRICES) -> None:
    """Subscribe to a pattern, and return when its envelopes arrive."""
    broker = matcher(node)
    node.subscribe_pattern(pattern)
    await node.nodes.finish(broker.pattern_subscribed(pattern), "pattern_subscribed() returns")


async def arrive(sender: Node, receiver: Node, count: int, pattern: str = PRICES) -> list[int]:
    """Wait until so many envelopes of the sender have arrived by a pattern. Return their numbers."""

    def text() -> str:
        return f"all envelopes arrive by a pattern: {len(receiver.matched(sender, pattern))} of {count} have arrived"

    await receiver.nodes.until(lambda: len(receiver.matched(sender, pattern)) >= count, text)
    return receiver.matched(sender, pattern)


async def arrives_again(sender: Node, receiver: Node) -> None:
    """Check that envelopes arrive by the pattern now."""
    await receiver.nodes.finish(
        matcher(receiver).pattern_subscribed(PRICES), "pattern_subscribed() returns after a fault has ended"
    )
    before = len(receiver.matched(sender, PRICES))
    require(sender.send("room:prices:1"), "send() returns True after a fault has ended")
    await arrive(sender, receiver, before + 1)


def missing(expected: dict[str, list[int]], sender: Node, receiver: Node) -> dict[str, list[str]]:
    """Return the rooms of which envelopes have not arrived, by pattern."""
    absent = {
        pattern[:40]: [ROOMS[number][:40] for number in numbers if number not in receiver.matched(sender, pattern)]
        for pattern, numbers in expected.items()
    }
    return {pattern: rooms for pattern, rooms in absent.items() if rooms}


@check()
async def a_pattern_matches_rooms_of_any_name(nodes: Nodes) -> None:
    """By a pattern, the envelopes of each room that matches arrive once, whatever the names are, and in order."""
    first, second = await nodes.two("room:prices:1", "room:other")
    for pattern in PATTERNS:
        await join_pattern(second, pattern)
    for number, room in enumerate(ROOMS):
        await first.send_all(room_channel(room), [number])
    last = len(ROOMS)
    await first.send_all("room:other", [last])
    expected = {
        pattern: [number for number, room in enumerate(ROOMS) if RoomPattern.parse(pattern).matches(room)]
        for pattern in PATTERNS
    }
    await nodes.until(
        lambda: all(set(numbers) <= set(second.matched(first, pattern)) for pattern, numbers in expected.items()),
        lambda: f"all envelopes arrive by each pattern, but not those to {missing(expected, first, second)}",
    )
    await second.receives_number(first, last, "envelopes of channels arrive")
    await nodes.quiet()
    for pattern, numbers in expected.items():
        arrived = [number for number in second.matched(first, pattern) if number in numbers]
        require(arrived == numbers, f"by the pattern {pattern[:40]!r}, {arrived} arrived, not {numbers}")
    received = second.numbers(first)
    require(received == [0, last], f"on the node's own channels, {received} arrived, not {[0, last]}")


@check()
async def a_pattern_is_of_the_rooms_of_one_hub(nodes: Nodes) -> None:
    """By a pattern arrives nothing that is sent to users, nodes or all, and nothing of a hub of another name."""
    first, second = await nodes.two()
    other = await nodes.start(hub=nodes.hub + "-2")
    await join_pattern(second, "*")
    for number, channel in enumerate((user_channel("prices:1"), second.own_channel, ALL_NODES)):
        await first.send_all(channel, [number])
    await other.send_all("room:prices:1", [3])
    await first.send_all("room:prices:1", [4])
    await arrive(first, second, 1, "*")
    await nodes.quiet()
    require(second.matched(first, "*") == [4], f"{second.matched(first, '*')} arrived, and only 4 is of a room")
    require(not second.matched(other, "*"), "an envelope of another hub has arrived")


@check()
async def pattern_subscribed_means_that_it_arrives(nodes: Nodes) -> None:
    """Once ``pattern_subscribed()`` has returned, what another node sends to a matching room arrives."""
    first, second = await nodes.two("room:b")
    for number in range(50):
        pattern = f"many-{number}:*"
        await join_pattern(second, pattern)
        require(first.send(room_channel(f"many-{number}:1"), number), "send() returns True")
        await arrive(first, second, 1, pattern)
    error = await nodes.finish(raised_by(matcher(second).pattern_subscribed("never:*")), "pattern_subscribed() returns")
    require(error is not None, "pattern_subscribed() returned for a pattern that the node has not subscribed to")


@check()
async def patterns_of_the_first_moment_work(nodes: Nodes) -> None:
    """A pattern that the node subscribes to before ``start()`` works once that has returned."""
    first = await nodes.start()
    second = nodes.make()
    matcher(second)
    second.subscribe_pattern(PRICES)
    await second.start()
    await arrives_again(first, second)


@check()
async def unsubscribe_pattern_ends_the_envelopes(nodes: Nodes) -> None:
    """After ``unsubscribe_pattern()`` nothing arrives by the pattern. Channels, and other patterns, stay."""
    first, second = await nodes.two("room:prices:1")
    await join_pattern(second)
    await join_pattern(second, "*:1")
    await join_pattern(second)
    first.send("room:prices:1", 0)
    await arrive(first, second, 1)
    await arrive(first, second, 1, "*:1")
    second.unsubscribe_pattern(PRICES)
    # It has not subscribed to this one: nothing happens.
    second.unsubscribe_pattern("never:*")
    first.send("room:prices:1", 1)
    await arrive(first, second, 2, "*:1")
    await second.receives(first, 2)
    await nodes.quiet()
    require(second.matched(first, PRICES) == [0], f"{second.matched(first, PRICES)} arrived, and 1 came too late")
    await join_pattern(second)
    first.send("room:prices:1", 2)
    require(await arrive(first, second, 2) == [0, 2], "a pattern that is subscribed again works again")
    second.unsubscribe_pattern("*:1")
    second.unsubscribe("room:prices:1")
    first.send("room:prices:1", 3)
    require(await arrive(first, second, 3) == [0, 2, 3], "a pattern needs no channel and no other pattern")


@check()
async def ten_thousand_arrive_by_a_pattern_in_order(nodes: Nodes) -> None:
    """Of 10,000 envelopes to many rooms, sent as fast as the broker takes them, each arrives once and in order."""
    first, second = await nodes.two()
    await join_pattern(second)
    for number in range(10_000):
        await first.send_all(f"room:prices:{number % 10}", [number])
    numbers = await arrive(first, second, 10_000)
    for room in range(10):
        of_room = [number for number in numbers if number % 10 == room]
        require(of_room == list(range(room, 10_000, 10)), "the envelopes of a room arrive once, and in order")


@check()
async def stored_envelopes_arrive_by_a_pattern_once(nodes: Nodes) -> None:
    """Envelopes that any node stores arrive by a pattern once, with their heads and in their order."""
    first, second = await nodes.two("room:prices:1")
    if not isinstance(first.broker, HistoryBroker) or not isinstance(second.broker, HistoryBroker):
        raise CheckNotRunError("the broker keeps no envelopes")
    await join_pattern(second)
    for number in range(20):
        broker = (first, second)[number % 2].broker
        assert isinstance(broker, HistoryBroker)
        for room in ("prices:1", "prices:2"):
            await nodes.finish(
                broker.publish_stored(room_channel(room), f"{room} {number}".encode(), CONFIG),
                "publish_stored() returns",
            )

    def arrived(room: str) -> list[tuple[int, int, bytes]]:
        found = []
        for event in second.log:
            if isinstance(event, Matched):
                head, envelope = decode_stored(event.envelope)
                if envelope.startswith(room.encode()):
                    found.append((head.offset, head.previous, envelope))
        return found

    for room in ("prices:1", "prices:2"):
        await nodes.until(lambda room=room: len(arrived(room)) >= 20, "stored envelopes arrive")  # type: ignore[misc]
    await nodes.quiet()
    for room in ("prices:1", "prices:2"):
        last = 0
        for number, (offset, previous, envelope) in enumerate(arrived(room)):
            require(envelope == f"{room} {number}".encode(), f"envelope {number} of {room} is {envelope!r}")
            require(offset > previous == last, f"the offset {offset} follows {previous}, after {last}")
            last = offset
        require(len(arrived(room)) == 20, f"20 envelopes of {room} were stored, and {len(arrived(room))} have arrived")


@check("cut")
async def patterns_are_restored_after_a_lost_connection(nodes: Nodes) -> None:
    """If a connection is lost, the hub is told that envelopes of the pattern may be lost. Then they arrive again."""
    first, second = await nodes.two("room:b")
    await join_pattern(second)
    first.send("room:prices:1")
    await arrive(first, second, 1)
    await nodes.faults.cut(second.broker)
    await nodes.until(
        lambda: any(concerns(event, pattern_channel(PRICES)) for event in second.interruptions()),
        "the hub is told of a lost connection",
        within=NOTICED_WITHIN,
        rate=RATE,
    )
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    await arrives_again(first, second)
    numbers = second.matched(first, PRICES)
    require(len(set(numbers)) == len(numbers), f"{numbers} arrived: each envelope arrives once")


@check("forget")
async def a_pattern_that_the_engine_lost_is_found(nodes: Nodes) -> None:
    """A subscription of a pattern that only the engine has lost is found, told to the hub, and made again."""
    # The node has a channel that the pattern matches: what arrives there says nothing about the pattern.
    first, second = await nodes.two("room:prices:1")
    await join_pattern(second)
    await nodes.faults.forget(second.broker, pattern_channel(PRICES))
    await nodes.until(
        lambda: any(concerns(event, pattern_channel(PRICES)) for event in second.interruptions()),
        "the hub is told that a subscription was lost",
        within=FOUND_WITHIN,
        rate=FOUND_RATE,
    )
    await recovered(nodes, first, second)
    await arrives_again(first, second)


@check("refuse")
async def a_refused_pattern_is_told_and_heals(nodes: Nodes) -> None:
    """If the engine refuses a pattern, the hub is told, and the broker tries again."""
    first, second = await nodes.two("room:b")
    broker = matcher(second)
    await nodes.faults.refuse(second.broker, pattern_channel(PRICES))
    second.subscribe_pattern(PRICES)
    waiting = asyncio.create_task(raised_by(broker.pattern_subscribed(PRICES)))
    await nodes.until(waiting.done, "pattern_subscribed() raises if it is refused", within=NOTICED_WITHIN, rate=RATE)
    error = waiting.result()
    require(isinstance(error, BrokerUnavailable), f"pattern_subscribed() for a refused pattern: {error!r}")
    await nodes.faults.heal()
    await recovered(nodes, first, second)

    def arrived() -> bool:
        first.send("room:prices:1")
        return bool(second.matched(first, PRICES))

    await nodes.until(arrived, "the broker subscribes again when it is allowed", within=recovery_time(nodes), rate=RATE)
