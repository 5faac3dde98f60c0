"""Checks of brokers that keep envelopes: ``HistoryBroker``. They are not run for a broker that keeps none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from wshub.brokers.envelope import decode_stored, encode_envelope, mark_of
from wshub.brokers.history_interface import HistoryBroker, HistoryQuery, StoredHistory
from wshub.brokers.interface import HistoryConfig, Position, Published
from wshub.errors import BrokerError, BrokerUnavailable
from wshub.testing.broker_faults import CheckNotRunError
from wshub.testing.broker_nodes import Node, Nodes, Received, require
from wshub.testing.broker_registry import check

CONFIG = HistoryConfig(size=1000, max_bytes=10 * 1024 * 1024)


def keeper(node: Node) -> HistoryBroker:
    """Return the broker of a node, which keeps envelopes. Raise CheckNotRunError if it does not."""
    if not isinstance(node.broker, HistoryBroker):
        raise CheckNotRunError("the broker keeps no envelopes")
    return node.broker


async def publish(node: Node, channel: str, envelope: bytes, config: HistoryConfig = CONFIG, key: str = "") -> Position:
    """Publish an envelope, and return its position."""
    published = await node.nodes.finish(
        keeper(node).publish_stored(channel, envelope, config, idempotency_key=key), "publish_stored() returns"
    )
    require(published.position is not None, "publish_stored() returns a position")
    assert published.position is not None
    return published.position


async def read(node: Node, channel: str, config: HistoryConfig = CONFIG, **query: Any) -> StoredHistory:
    """Return what is stored of a channel. The further arguments are the fields of the query."""
    return await node.nodes.finish(keeper(node).history(channel, config, HistoryQuery(**query)), "history() returns")


async def read_at_last(broker: HistoryBroker) -> StoredHistory:
    """Return the history of room:a, as soon as it can be read."""
    while True:
        try:
            return await broker.history("room:a", CONFIG, HistoryQuery(limit=1000))
        except BrokerUnavailable:
            await asyncio.sleep(0.01)


def arrived(node: Node) -> list[tuple[int, int, str, bytes]]:
    """Return the offset, the offset before, the epoch and the envelope of all that has arrived with a head."""
    found = []
    for event in node.log:
        if isinstance(event, Received):
            head, envelope = decode_stored(event.envelope)
            found.append((head.offset, head.previous, head.epoch, envelope))
    return found


@check()
async def stored_envelopes_have_one_order(nodes: Nodes) -> None:
    """Envelopes that several nodes store on a channel have one order. Each subscriber gets all, its own too."""
    first, second = await nodes.two("room:a")
    keeper(first)
    third = await nodes.start()
    for node in (first, third):
        await node.join("room:a")

    async def publish_many(node: Node, name: str) -> None:
        for number in range(50):
            await publish(node, "room:a", f"{name} {number}".encode())

    await asyncio.gather(
        *(publish_many(node, f"{node.info.id} {task}") for node in (first, second) for task in range(4))
    )
    for node in (first, second, third):
        await nodes.until(lambda node=node: len(arrived(node)) >= 400, "all envelopes arrive")  # type: ignore[misc]
        require(arrived(node) == arrived(first), "two nodes received stored envelopes in two orders")
    last = 0
    for offset, previous, epoch, _ in arrived(first):
        require(previous == last, f"the envelope at {offset} names {previous} as the one before, after {last}")
        require(offset > previous, f"the offset {offset} follows {previous}")
        require(len(epoch) == 8 and epoch == arrived(first)[0][2], f"the epoch is {epoch!r} within one history")
        last = offset
    await nodes.quiet()
    require(len(arrived(first)) == 400, "400 envelopes were stored, and more arrived")


@check()
async def envelopes_of_one_node_keep_their_order(nodes: Nodes) -> None:
    """Envelopes that one node stores on a channel, by either method, keep their order."""
    first, second = await nodes.two("room:a")
    broker = keeper(first)
    calls = []
    for number in range(200):
        if number % 3:
            require(broker.send_stored("room:a", b"%d" % number, CONFIG), "send_stored() returns True")
        else:
            calls.append(asyncio.ensure_future(publish(first, "room:a", b"%d" % number)))
            # The call sends at once, or with those of this iteration.
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    await nodes.until(lambda: len(arrived(second)) >= 200, "all envelopes arrive")
    numbers = [int(envelope) for *_, envelope in arrived(second)]
    require(numbers == list(range(200)), f"200 envelopes of one node arrived as {numbers[:20]}…")


@check()
async def what_was_stored_can_be_read(nodes: Nodes) -> None:
    """History is read from any node, behind a position, in pages and backwards, bounded in number and bytes."""
    first, second = await nodes.two("room:a")
    positions = [await publish(first, "room:a", b"%d" % number + bytes(1000)) for number in range(20)]

    async def ask(**query: Any) -> tuple[list[int], str]:
        found = await read(second, "room:a", **query)
        require(found.position == positions[-1], f"the newest position is {positions[-1]}, not {found.position}")
        for stored in found.envelopes:
            number = int(stored.envelope.rstrip(b"\0"))
            require(stored.offset == positions[number].offset, f"envelope {number} was read at {stored.offset}")
        return [int(stored.envelope.rstrip(b"\0")) for stored in found.envelopes], found.gap

    require(await ask() == (list(range(20)), ""), "all envelopes are read, the oldest first")
    require(await ask(limit=0) == ([], ""), "a limit of 0 reads nothing but the position")
    require(await ask(limit=5) == ([0, 1, 2, 3, 4], ""), "a limit bounds what is read")
    require(await ask(since=positions[9]) == (list(range(10, 20)), ""), "a position begins behind its envelope")
    require(await ask(since=positions[9], limit=2) == ([10, 11], ""), "a page begins behind a position")
    require(await ask(since=positions[-1]) == ([], ""), "nothing is behind the newest position")
    require(await ask(reverse=True, limit=3) == ([19, 18, 17], ""), "in reverse the newest comes first")
    require(await ask(reverse=True, since=positions[2]) == ([1, 0], ""), "in reverse a position ends what is read")
    before_newest = await ask(reverse=True, since=positions[-1])
    require(before_newest == (list(range(18, -1, -1)), ""), "in reverse the newest position leaves one envelope out")
    numbers, _ = await ask(max_bytes=3500)
    require(numbers in ([0, 1], [0, 1, 2]), f"3,500 bytes hold 3 envelopes of 1,000, not {numbers}")
    require((await ask(max_bytes=1))[0] == [0], "the first envelope is read whatever its size")
    start = Position(0, positions[0].epoch)
    require(await ask(since=start) == (list(range(20)), ""), "everything is behind the offset 0")


@check()
async def any_bytes_can_be_stored(nodes: Nodes) -> None:
    """A stored envelope is any bytes: every value, none at all, and a mebibyte."""
    first, second = await nodes.two("room:a")
    keeper(first)
    every_value = bytes(range(256))
    sent = [every_value, b"", b"\0", b"\r\n", b"$-1\r\n", b"\xc1" * 30, every_value * 4096, b"the last one"]
    for envelope in sent:
        await publish(first, "room:a", envelope)
    await nodes.until(lambda: len(arrived(second)) >= len(sent), "every envelope arrives")
    require([envelope for *_, envelope in arrived(second)] == sent, "envelopes arrived changed")
    found = await read(second, "room:a", max_bytes=1 << 30)
    require([stored.envelope for stored in found.envelopes] == sent, "envelopes were read changed")


@check()
async def channels_have_histories_of_their_own(nodes: Nodes) -> None:
    """Each channel, and each hub, has its own history. A channel without one gets a position."""
    first = await nodes.start()
    other_hub = await nodes.start(hub=nodes.hub + "-b")
    names = [
        "room:a",
        "room:",
        "room:a:b",
        "room:ab",
        "room:*",
        "room:{a}",
        "room:a\0",
        "room:\r\n",
        "room:ä",
        "user:a",
    ]
    before = {name: (await read(first, name)).position for name in names}
    require(all(position.offset == 0 for position in before.values()), "a history begins with the offset 0")
    require(len({position.epoch for position in before.values()}) == len(names), "two channels have one epoch")
    for name in names:
        position = await publish(first, name, name.encode())
        require(position.epoch == before[name].epoch, "the first envelope has another epoch than the position before")
    for name in names:
        found = await read(first, name, since=before[name])
        require([stored.envelope for stored in found.envelopes] == [name.encode()], f"the history of {name!r} is wrong")
        require(found.gap == "", f"a reader has the position before the first envelope, and the gap is {found.gap!r}")
    found = await read(other_hub, "room:a")
    require(found.envelopes == (), "a hub reads the history of another one")


@check()
async def old_envelopes_are_forgotten(nodes: Nodes) -> None:
    """Only so many envelopes, and so many bytes of them, are kept. A question for earlier ones gets a gap."""
    first = await nodes.start()
    few = HistoryConfig(size=5)
    positions = [await publish(first, "room:a", b"%d" % number, few) for number in range(20)]
    found = await read(first, "room:a", few, since=positions[3])
    require(found.gap == "trimmed", f"envelopes are missing, and the gap is {found.gap!r}")
    require([stored.envelope for stored in found.envelopes] == [b"15", b"16", b"17", b"18", b"19"], "5 are kept")
    found = await read(first, "room:a", few, since=positions[14])
    require((len(found.envelopes), found.gap) == (5, ""), "nothing is missing behind the last that was forgotten")
    small = HistoryConfig(size=100, max_bytes=3000)
    for number in range(20):
        await publish(first, "room:b", b"%d" % number + bytes(990), small)
    found = await read(first, "room:b", small)
    require(1 <= len(found.envelopes) <= 3, f"3,000 bytes hold 3 envelopes of 990, not {len(found.envelopes)}")
    position = await publish(first, "room:b", bytes(10_000), small)
    found = await read(first, "room:b", small)
    require([stored.offset for stored in found.envelopes] == [position.offset], "the newest is kept whatever its size")


@check()
async def what_is_too_old_is_forgotten(nodes: Nodes) -> None:
    """After its time to live an envelope is forgotten, and offsets go on. A question for it gets a gap."""
    first = await nodes.start()
    short = HistoryConfig(ttl_ms=100)
    missed = await publish(first, "room:a", b"0", short)
    last = await publish(first, "room:a", b"1", short)

    for _ in range(500):
        if not (await read(first, "room:a", short)).envelopes:
            break
        await asyncio.sleep(0.02)
    found = await read(first, "room:a", short, since=last)
    require(found.position == last and not found.gap and not found.envelopes, f"nothing was missed, not {found}")
    found = await read(first, "room:a", short, since=missed)
    require((found.position, found.gap) == (last, "trimmed"), f"an envelope was missed that is forgotten, not {found}")
    following = await publish(first, "room:a", b"2", short)
    require(following == replace(last, offset=last.offset + 1), f"{following} follows {last}")
    brief = HistoryConfig(ttl_ms=50, position_ttl_ms=50)
    last = await publish(first, "room:b", b"1", brief)
    await asyncio.sleep(0.2)
    found = await read(first, "room:b", brief, since=last)
    if found.position.epoch == last.epoch:
        require((found.position, found.gap) == (last, ""), f"the epoch goes on, and nothing was missed, not {found}")
    else:
        require((found.position.offset, found.gap) == (0, "epoch"), f"a new epoch begins with {found}")


@check()
async def a_lost_position_is_told(nodes: Nodes) -> None:
    """A position of another epoch, or behind the newest envelope, is answered with a gap, and with what there is."""
    first = await nodes.start()
    last = await publish(first, "room:a", b"1")
    for since in (Position(1, "zzzzzzzz"), Position(last.offset + 1, last.epoch), Position(0, "")):
        found = await read(first, "room:a", since=since)
        require(found.gap == "epoch", f"{since} is no position of the history, and the gap is {found.gap!r}")
        require([stored.envelope for stored in found.envelopes] == [b"1"], "what is kept is read with the gap")
        require(found.position == last, "a reader has changed the position")
    ahead = Position(last.offset + 5, last.epoch)
    found = await read(first, "room:a", since=ahead, is_own=True)
    require(found.position.epoch != last.epoch, "a node has got further than the history, and the epoch goes on")
    require((found.gap, found.envelopes) == ("epoch", ()), "a new epoch begins with envelopes of the former one")
    following = await publish(first, "room:a", b"2")
    require(following.epoch == found.position.epoch, "the new epoch does not go on")
    require(following.offset > found.position.offset, f"{following} follows {found.position}")
    found = await read(first, "room:a", since=last)
    require(found.gap == "epoch", "a position of the former epoch still counts")
    require([stored.envelope for stored in found.envelopes] == [b"2"], "what is read is not that of the new epoch")


@check()
async def another_envelope_at_a_position_is_told(nodes: Nodes) -> None:
    """A node that has received another envelope than the one at its position gets a gap, and a new epoch begins."""
    first = await nodes.start()
    few = HistoryConfig(size=3)
    envelopes = [encode_envelope("room", "a", b"%d" % number, node=1, number=number) for number in range(6)]
    positions = [await publish(first, "room:a", envelope, few) for envelope in envelopes]

    # Two of these envelopes are not kept any more, and the last one of them is followed by one that is.
    for number in (1, 2, 3, 5):
        for mark in (mark_of(envelopes[number]), b""):
            found = await read(first, "room:a", few, since=positions[number], mark=mark, is_own=True)
            require(found.position == positions[-1], f"the mark {mark!r} is right, and the position has changed")
            require(found.mark in (b"", mark_of(envelopes[-1])), "the mark is not that of the newest envelope")
    other = mark_of(encode_envelope("room", "a", b"other", node=2, number=1))
    found = await read(first, "room:a", few, since=positions[4], mark=other)
    require(found.position == positions[-1], "a reader has begun a new epoch with the position of a client")
    for number, limit in ((2, 100), (4, 0), (5, 100)):
        since = Position(positions[number].offset, found.position.epoch)
        found = await read(first, "room:a", few, since=since, mark=other, is_own=True, limit=limit)
        require(found.gap == "epoch", f"another envelope is at the position {number}, and the gap is {found.gap!r}")
        require(found.envelopes == (), "envelopes of the former epoch are returned behind the gap")
        envelopes[:6] = [encode_envelope("room", "a", b"new", node=3, number=limit + each) for each in range(6)]
        positions[:6] = [await publish(first, "room:a", envelope, few) for envelope in envelopes]
        require(positions[0].epoch == found.position.epoch, "the new epoch does not go on")
        found = await read(first, "room:a", few, since=positions[4], mark=mark_of(envelopes[4]), is_own=True)
        require((found.gap, len(found.envelopes)) == ("", 1), f"nothing was lost in the new epoch, not {found}")


@check()
async def an_idempotency_key_stores_once(nodes: Nodes) -> None:
    """Of envelopes with one key, one is stored, whichever node publishes them, and at the same time too."""
    first, second = await nodes.two("room:a")
    keeper(first)

    async def attempt(node: Node, key: str) -> Published:
        return await nodes.finish(
            keeper(node).publish_stored("room:a", b"once", CONFIG, idempotency_key=key), "publish_stored() returns"
        )

    outcomes = await asyncio.gather(*(attempt(node, "key") for node in (first, second) * 5))
    require(len({outcome.position for outcome in outcomes}) == 1, "one key has two positions")
    require([outcome.is_duplicate for outcome in outcomes].count(False) == 1, "one of ten was no duplicate")
    other = await attempt(second, "another key")
    require(not other.is_duplicate, "another key is taken for the first one")
    await nodes.until(lambda: len(arrived(second)) >= 2, "both envelopes arrive")
    await nodes.quiet()
    require(len(arrived(second)) == 2, "a duplicate arrived")


@check("cut")
async def what_was_published_is_stored_whatever_fails(nodes: Nodes) -> None:
    """While connections are lost, each envelope whose publishing has not failed is stored once, and can be read."""
    first, second = await nodes.two("room:a")
    broker = keeper(first)
    known: dict[bytes, Position] = {}
    for number in range(120):
        if number % 40 == 10:
            await nodes.faults.cut(first.broker)
        envelope = b"%d" % number
        try:
            known[envelope] = await publish(first, "room:a", envelope)
        except BrokerError:
            # A broker that has lost several connections waits for a while before it tries again.
            await nodes.until(lambda: first.broker.health().ok, "the broker connects again", within=100.0, rate=10.0)
            await asyncio.sleep(0.01)
    brokers = first.broker, second.broker
    await nodes.until(lambda: all(each.health().ok for each in brokers), "the brokers connect", within=100.0, rate=10.0)
    found = await nodes.finish(read_at_last(broker), "history() returns once the brokers are connected")
    read = {stored.envelope: stored.offset for stored in found.envelopes}
    require(len(read) == len(found.envelopes), "an envelope is stored twice")
    for envelope, position in known.items():
        require(read.get(envelope) == position.offset, f"{envelope!r} was published at {position}, and is not there")
    require(len(known) >= 20, f"only {len(known)} of 120 were published")
