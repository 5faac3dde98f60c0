"""Checks of brokers that know who is where: ``PresenceBroker``. They are not run for a broker that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from wshub.brokers.presence_interface import PresenceBroker, PresenceCounts, PresenceEntry
from wshub.testing.broker_faults import CheckNotRunError
from wshub.testing.broker_nodes import Node, Nodes, require
from wshub.testing.broker_registry import check

# Beats of all nodes within which one that has left is found.
BEATS = 20


def knower(node: Node) -> PresenceBroker:
    """Return the broker of a node, which knows who is where. Raise CheckNotRunError if it does not."""
    if not isinstance(node.broker, PresenceBroker):
        raise CheckNotRunError("the broker does not know who is where")
    return node.broker


def entries_of(node: Node, users: Iterable[str]) -> list[PresenceEntry]:
    """Return entries of a node, one for each user."""
    return [PresenceEntry(f"{node.info.id}:{number}:1", user, b"data") for number, user in enumerate(users)]


async def read_all(nodes: Nodes, node: Node, channel: str, limit: int = 10) -> list[PresenceEntry]:
    """Return all entries of a channel, page by page, in the order of their ids."""
    found: list[PresenceEntry] = []
    cursor = ""
    while True:
        page = await nodes.finish(knower(node).presence_read(channel, cursor, limit), "presence_read() returns")
        found += page.entries
        cursor = page.cursor
        if not cursor:
            return sorted(found)


@check()
async def a_node_is_known_from_its_second_beat_on(nodes: Nodes) -> None:
    """The first beat of a node says that it is not known, the next ones that it is. All have one epoch."""
    first, second = await nodes.start(), await nodes.start()
    beats = [
        await nodes.finish(knower(node).presence_beat(), "presence_beat() returns")
        for node in (first, second, first, second)
    ]
    require([beat.is_known for beat in beats] == [False, False, True, True], f"known are {beats}")
    require(len({beat.epoch for beat in beats}) == 1, f"the epoch has changed: {beats}")
    require(not any(beat.dead for beat in beats), f"a node that lives is dead: {beats}")


@check()
async def one_entry_of_a_user_is_the_first_and_one_the_last(nodes: Nodes) -> None:
    """Of the entries that nodes add at once for a user, one is alone. Of those that they remove, one is the last."""
    both = await nodes.start(), await nodes.start()
    for node in both:
        await nodes.finish(knower(node).presence_beat(), "presence_beat() returns")
    for _ in range(5):
        batches = [(node, entries_of(node, ["ann", "bob", "ann"])) for node in both]
        entered = await asyncio.gather(
            *(nodes.finish(knower(node).presence_enter("room:a", batch), "it returns") for node, batch in batches)
        )
        first = users_of(batches, entered)
        require(first == ["ann", "bob"], f"the first of their users are {first}")
        counts = await nodes.finish(knower(both[0]).presence_counts("room:a"), "presence_counts() returns")
        require(counts == PresenceCounts(connections=6, users=2), f"6 entries of 2 users count as {counts}")
        again = await nodes.finish(knower(both[0]).presence_enter("room:a", batches[0][1][:1]), "it returns")
        require(again == [False], "an entry that is there already is the only one of its user")
        left = await asyncio.gather(
            *(nodes.finish(knower(node).presence_leave("room:a", batch), "it returns") for node, batch in batches)
        )
        last = users_of(batches, left)
        require(last == ["ann", "bob"], f"the last of their users are {last}")
    require(await read_all(nodes, both[1], "room:a") == [], "entries are left that were removed")


def users_of(batches: list[tuple[Node, list[PresenceEntry]]], outcomes: list[list[bool]]) -> list[str]:
    """Return the users of the entries whose outcome is True."""
    pairs = [
        pair for (_, batch), outcome in zip(batches, outcomes, strict=True) for pair in zip(batch, outcome, strict=True)
    ]
    return sorted(entry.user for entry, is_alone in pairs if is_alone)


@check()
async def entries_are_read_from_any_node(nodes: Nodes) -> None:
    """Every node reads all entries of a channel, in pages, with any name and data, and none of another channel."""
    first, second = await nodes.start(), await nodes.start()
    await nodes.finish(knower(first).presence_beat(), "presence_beat() returns")
    users = ["", "*", "a.b", "ü", "\ud800", "x" * 1000, *(f"user {number}" for number in range(30))]
    entries = [entry._replace(data=bytes(range(256))) for entry in entries_of(first, users)]
    for channel in ("room:a", "room:a.b", "room:*", "room:"):
        await nodes.finish(knower(first).presence_enter(channel, entries), "presence_enter() returns")
    changed = entries[0]._replace(data=b"changed")
    await nodes.finish(knower(first).presence_enter("room:a", [changed]), "presence_enter() returns")
    require(await read_all(nodes, second, "room:a") == sorted([changed, *entries[1:]]), "a node reads other entries")
    require(await read_all(nodes, second, "room:*") == sorted(entries), "a channel has entries of another one")
    require(await read_all(nodes, second, "room:b") == [], "a channel without entries has some")


@check()
async def the_entries_of_a_node_that_leaves_are_taken_over_once(nodes: Nodes) -> None:
    """Each entry of a node that has left is taken over by one other node, which can remove it."""
    leaving, second, third = await nodes.start(), await nodes.start(), await nodes.start()
    others = (second, third)
    for node in (leaving, *others):
        await nodes.finish(knower(node).presence_beat(), "presence_beat() returns")
    entries = entries_of(leaving, (f"user {number}" for number in range(40)))
    await nodes.finish(knower(leaving).presence_enter("room:a", entries), "presence_enter() returns")
    await nodes.finish(knower(leaving).presence_beat(is_leaving=True), "presence_beat() returns")
    await leaving.close()
    taken: dict[Node, list[PresenceEntry]] = {node: [] for node in others}

    async def take(node: Node) -> None:
        broker = knower(node)
        for dead in (await nodes.finish(broker.presence_beat(), "presence_beat() returns")).dead:
            while found := await nodes.finish(broker.presence_take_over(dead), "presence_take_over() returns"):
                require({channel for channel, _ in found} == {"room:a"}, "entries of another channel were taken over")
                taken[node] += [entry for _, entry in found]

    for _ in range(BEATS):
        await asyncio.gather(*map(take, others))
    users = sorted(entry.user for found in taken.values() for entry in found)
    require(users == sorted(entry.user for entry in entries), f"40 entries were taken over as {len(users)}")
    require(
        await read_all(nodes, second, "room:a") == sorted(entry for found in taken.values() for entry in found),
        "entries that were taken over are read under other ids",
    )
    for node, found in taken.items():
        outcome = await nodes.finish(knower(node).presence_leave("room:a", found), "presence_leave() returns")
        require(all(outcome), "an entry that was taken over and removed was not the last of its user")
    require(await read_all(nodes, third, "room:a") == [], "entries are left of a node that has left")
