"""Checks of brokers that know who is there: ``PresenceBroker``. They are not run for a broker that does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from wshub.brokers.presence_interface import PresenceBroker, PresenceCounts, PresenceEntry
from wshub.errors import BrokerError
from wshub.testing.broker_faults import CheckNotRunError
from wshub.testing.broker_nodes import Node, Nodes, require
from wshub.testing.broker_recovery import recovered
from wshub.testing.broker_registry import check

ROOM = "room:presence"


def knower(node: Node) -> PresenceBroker:
    """Return the broker of a node, which knows who is there. Raise CheckNotRunError if it does not."""
    if not isinstance(node.broker, PresenceBroker):
        raise CheckNotRunError("the broker does not know who is there")
    return node.broker


def entries_of(node: Node, *users: str, first: int = 0) -> list[PresenceEntry]:
    """Return an entry of the node for each of these users."""
    return [
        PresenceEntry(f"{node.info.id}:{first + number}", user, f"data of {user}".encode(errors="surrogatepass"))
        for number, user in enumerate(users)
    ]


async def until_done(nodes: Nodes, make: Callable[[], Awaitable[list[bool]]], what: str) -> list[bool]:
    """Make a call until it does not fail any more, as a hub does. Return its outcome."""

    async def attempt() -> list[bool]:
        while True:
            try:
                return await make()
            except BrokerError:
                await asyncio.sleep(0.01)

    return await nodes.finish(attempt(), what)


async def begin(*members: Node) -> None:
    """Have nodes say that they live, which a hub does before all else."""
    for node in members:
        await node.nodes.finish(knower(node).presence_beat(), "presence_beat() returns")


async def enter(node: Node, entries: Sequence[PresenceEntry], channel: str = ROOM) -> list[bool]:
    return await node.nodes.finish(knower(node).presence_enter(channel, entries), "presence_enter() returns")


async def leave(node: Node, entries: Sequence[PresenceEntry], channel: str = ROOM) -> list[bool]:
    return await node.nodes.finish(knower(node).presence_leave(channel, entries), "presence_leave() returns")


async def counts(node: Node, channel: str = ROOM) -> PresenceCounts:
    return await node.nodes.finish(knower(node).presence_counts(channel), "presence_counts() returns")


async def read(node: Node, channel: str = ROOM, limit: int = 50) -> dict[str, PresenceEntry]:
    """Return all entries of a channel, by id, page by page."""
    found: dict[str, PresenceEntry] = {}
    cursor = ""
    while True:
        page = await node.nodes.finish(knower(node).presence_read(channel, cursor, limit), "presence_read() returns")
        found.update((entry.id, entry) for entry in page.entries)
        cursor = page.cursor
        if not cursor:
            return found


async def two(nodes: Nodes) -> tuple[Node, Node]:
    """Start two nodes that know who is there."""
    first, second = await nodes.start(), await nodes.start()
    await begin(first, second)
    return first, second


async def take_over(nodes: Nodes, takers: Sequence[Node], count: int) -> list[tuple[str, PresenceEntry]]:
    """Have nodes take entries of dead ones over, at the same time, until there are so many."""
    taken: list[tuple[str, PresenceEntry]] = []

    async def look(taker: Node) -> None:
        beat = await knower(taker).presence_beat()
        for dead in beat.dead:
            while some := await knower(taker).presence_take_over(dead):
                taken.extend(some)

    async def take() -> None:
        while len(taken) < count:
            await asyncio.gather(*(look(taker) for taker in takers))
            await asyncio.sleep(0.01)

    await nodes.finish(take(), f"the {count} entries of a node that has ended are taken over")
    return taken


@check()
async def members_are_known_to_all_nodes(nodes: Nodes) -> None:
    """All nodes see the entries of all, with their data. The first and the last one of a user are told as such."""
    first, second = await two(nodes)
    ann, bob = entries_of(first, "ann", "bob")
    (other,) = entries_of(second, "ann")
    require(await enter(first, [ann, bob]) == [True, True], "each of two entries is the first of its user")
    require(await enter(second, [other]) == [False], "an entry of another node is not the first of its user")
    for node in (first, second):
        require(await read(node) == {each.id: each for each in (ann, bob, other)}, "each node sees all entries")
        found = await counts(node)
        require(found == PresenceCounts(connections=3, users=2), f"3 connections of 2 users are counted as {found}")
    require(await leave(first, [ann, bob]) == [False, True], "one of two users has another entry")
    require(await leave(second, [other]) == [True], "the last entry of a user is told as such")
    require(await read(second) == {}, "nobody is there any more")
    require(await counts(second) == PresenceCounts(connections=0, users=0), "nobody is counted any more")
    require(len(await leave(second, [other])) == 1, "an entry that is not there can be removed")


@check()
async def of_many_entries_at_once_one_is_the_first(nodes: Nodes) -> None:
    """While several nodes add and remove entries of a user at the same time, one is the first, and one the last."""
    first, second = await two(nodes)
    entries = [(node, entry) for node in (first, second) for entry in entries_of(node, *["ann"] * 20)]
    for call, what in ((enter, "first"), (leave, "last")):
        outcomes = await asyncio.gather(*(call(node, [entry]) for node, entry in entries))
        told = Counter(outcome for (outcome,) in outcomes)[True]
        require(told == 1, f"{told} of 40 entries of a user are told to be the {what}")


@check()
async def entering_again_replaces_the_data(nodes: Nodes) -> None:
    """An entry that is there is replaced. It counts once, whatever its data."""
    first, second = await two(nodes)
    (entry,) = entries_of(first, "ann")
    every_value = bytes(range(256))
    for data in (b"", b"\0", b"a:b\n", every_value * 4):
        changed = entry._replace(data=data)
        require(await enter(first, [changed]) == [True], "the only entry of a user is told as such, again and again")
        require(await read(second) == {entry.id: changed}, f"the data {data[:10]!r} is read changed")
    require(await counts(second) == PresenceCounts(connections=1, users=1), "an entry counts once")


@check()
async def an_answer_can_be_asked_for_again(nodes: Nodes) -> None:
    """An entry that is added again has the same answer as before, which may have been lost."""
    first, second = await two(nodes)
    (ann,) = entries_of(first, "ann")
    (other,) = entries_of(second, "ann")
    for _ in range(2):
        require(await enter(first, [ann]) == [True], "the first entry of a user stays the first one")
        require(await enter(second, [other]) == [False], "the second entry of a user stays the second one")
    require(await leave(first, [ann]) == [False], "a user has another entry")
    require(await leave(second, [other]) == [True], "the last entry of a user is told as such")
    require(await enter(second, [other]) == [True], "an entry that comes back is a new one")


@check()
async def any_text_names_a_user_and_a_channel(nodes: Nodes) -> None:
    """Users and channels have any names. Each channel, and each hub, has entries of its own."""
    first, second = await two(nodes)
    elsewhere = await nodes.start(hub=nodes.hub + "-b")
    await begin(elsewhere)
    names = ["a", "", "a:b", "*", "{a}", "a\0", "\r\n", "ä", "\ud800", "a" * 300]
    everyone = {}
    for number, name in enumerate(names):
        channel = f"room:{name}"
        everyone[channel] = entries_of(first, *names, first=100 * number)
        require(await enter(first, everyone[channel], channel) == [True] * len(names), "users are taken for each other")
    for channel, entries in everyone.items():
        require(await read(second, channel) == {entry.id: entry for entry in entries}, f"{channel!r} is read wrongly")
    require(await read(elsewhere, "room:a") == {}, "a hub sees the entries of another one")


@check()
async def who_stays_is_on_a_page(nodes: Nodes) -> None:
    """Pages have every entry that stays, although others come and go between two pages."""
    first, second = await two(nodes)
    staying = entries_of(first, *(f"user {number}" for number in range(300)))
    going = entries_of(second, *(f"other {number}" for number in range(300)))
    await enter(first, staying)
    await enter(second, going[:200])
    seen: set[str] = set()
    cursor, pages = "", 0
    while pages == 0 or cursor:
        page = await nodes.finish(knower(first).presence_read(ROOM, cursor, 20), "presence_read() returns")
        seen.update(entry.id for entry in page.entries)
        cursor = page.cursor
        if pages < 20:
            await leave(second, going[10 * pages : 10 * pages + 10])
            await enter(second, going[200 + 5 * pages : 205 + 5 * pages])
        pages += 1
        require(pages < 500, "the pages do not end")
    missing = {entry.id for entry in staying} - seen
    require(not missing, f"{len(missing)} of 300 entries that stay are on no page")


@check()
async def the_entries_of_a_node_that_has_ended_are_taken_over_once(nodes: Nodes) -> None:
    """Others take the entries of a node that leaves over, each once. Until they remove them, those are there."""
    first, second = await two(nodes)
    ending = await nodes.start()
    await begin(ending)
    entries = entries_of(ending, *(f"user {number}" for number in range(50)))
    channels = [f"room:{number}" for number in range(10)]
    for number, channel in enumerate(channels):
        await enter(ending, entries[5 * number : 5 * number + 5], channel)
    await enter(first, entries_of(first, "user 0"), channels[0])
    await nodes.finish(knower(ending).presence_beat(is_leaving=True), "presence_beat() returns")
    await ending.close()
    taken = await take_over(nodes, (first, second), len(entries))
    users = Counter(entry.user for _, entry in taken)
    require(users == Counter(entry.user for entry in entries), "each entry of the dead node is taken over once")
    require({entry.data for _, entry in taken} == {entry.data for entry in entries}, "data was changed on the way")
    for channel in channels:
        there = {entry.id for entry in (await read(first, channel)).values()}
        require({entry.id for where, entry in taken if where == channel} <= there, "entries leave with their node")
    last = 0
    for channel, entry in taken:
        last += (await leave(first, [entry], channel))[0]
    require(last == len(entries) - 1, "one user has another entry, and the other 49 have none")
    for channel in channels[1:]:
        require(await read(second, channel) == {}, "entries are left that were taken over and removed")


@check()
async def nothing_of_a_node_that_lives_is_taken_over(nodes: Nodes) -> None:
    """While a node has its beat, it is not dead, and its entries are not taken over."""
    first, second = await two(nodes)
    entries = entries_of(second, "ann", "bob")
    await enter(second, entries)
    for _ in range(20):
        for node in (first, second):
            beat = await nodes.finish(knower(node).presence_beat(), "presence_beat() returns")
            require(beat.dead == (), f"a node that lives is told to be dead: {beat.dead}")
            require(beat.is_known, "a node that has its beat is known")
            require(beat.lost == (), f"entries of a node that lives are lost: {beat.lost}")
        await asyncio.sleep(0.01)
    require(await nodes.finish(knower(first).presence_take_over(second.info.id), "it returns") == [], "it is not dead")
    require(await read(first) == {entry.id: entry for entry in entries}, "entries of a node that lives are gone")


@check("cut")
async def what_was_entered_is_there_whatever_fails(nodes: Nodes) -> None:
    """While connections are lost, changes are made once they are tried again. Nothing else is there at the end."""
    first, second = await two(nodes)
    there: dict[str, PresenceEntry] = {}
    for number in range(60):
        if number % 20 == 5:
            await nodes.faults.cut(first.broker)
        node = first if number % 2 else second
        entries = entries_of(node, f"user {number}", f"user {number}", first=10 * number)
        await until_done(nodes, lambda node=node, entries=entries: enter(node, entries), "presence_enter() succeeds")  # type: ignore[misc]
        if number % 3 == 0:
            gone = entries.pop()
            await until_done(nodes, lambda node=node, gone=gone: leave(node, [gone]), "presence_leave() succeeds")  # type: ignore[misc]
        there.update((entry.id, entry) for entry in entries)
    await recovered(nodes, first, second)
    for node in (first, second):
        require(await read(node) == there, "what was entered and not removed is there, and nothing else")


@check("stop")
async def a_node_is_told_what_an_engine_has_lost(nodes: Nodes) -> None:
    """If an engine comes back without entries, the next beat of each node says so, and the nodes enter them again."""
    first, second = await two(nodes)
    entries = {node: entries_of(node, "ann", "bob") for node in (first, second)}
    for node in (first, second):
        await enter(node, entries[node])
    await nodes.faults.stop()
    await nodes.faults.heal()
    await recovered(nodes, first, second)
    for node in (first, second):

        async def say_alive(node: Node = node) -> list[bool]:
            beat = await knower(node).presence_beat()
            return [beat.is_known]

        if await until_done(nodes, say_alive, "presence_beat() succeeds") == [False]:
            await enter(node, entries[node])
    there = {entry.id: entry for each in entries.values() for entry in each}
    for node in (first, second):
        require(await read(node) == there, "entries are missing although each node was asked whether it is known")
