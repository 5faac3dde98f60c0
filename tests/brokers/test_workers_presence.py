"""Presence between the workers of one machine: each room has one owner, and no worker takes knowledge along."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.brokers.mesh import Node, entries_of, mesh, until, worker
from wshub.brokers.presence_interface import PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.presence_store import PresenceEntries
from wshub.brokers.workers_owner_records import Ready
from wshub.brokers.workers_owners import rendezvous, slot_of
from wshub.brokers.workers_presence_records import Copied, Found, Lost, Outcome, Resent, decode_body
from wshub.brokers.workers_presence_tables import SlotEntries
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, MisuseError

CHANNELS = [f"room:{number}" for number in range(24)]


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


def owner_of(node: Node, channel: str) -> str:
    return node.session.presences.members.owners.owner(slot_of(channel))


async def enter(node: Node, channel: str, *users: str) -> list[bool]:
    return await node.broker.presence_enter(channel, entries_of(node.info.id, *users))


async def ids(node: Node, channel: str) -> set[str]:
    return {entry.id for entry in (await node.broker.presence_read(channel, "", 1000)).entries}


async def begin(*nodes: Node) -> None:
    for node in nodes:
        await node.broker.presence_beat()


async def look(node: Node) -> list[tuple[str, PresenceEntry]]:
    """Have a node do what its hub does at each beat. Return what it has taken over."""
    taken = []
    node.broker.sweep(node.now())
    for dead in (await node.broker.presence_beat()).dead:
        while some := await node.broker.presence_take_over(dead):
            taken += some
    return taken


async def taken_over(count: int, *nodes: Node, clock: Clock | None = None) -> list[tuple[str, PresenceEntry]]:
    """Have nodes look until they have taken so many entries over."""
    taken: list[tuple[str, PresenceEntry]] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            for node in nodes:
                taken += await look(node)
            if clock is not None:
                clock.skipped += 0.2
            await asyncio.sleep(0.01)
    return taken


@contextlib.asynccontextmanager
async def looking(*nodes: Node) -> AsyncIterator[None]:
    """Have nodes sweep meanwhile."""

    async def sweep() -> None:
        while True:
            for node in nodes:
                node.broker.sweep(node.now())
            await asyncio.sleep(0.02)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()


async def test_rooms_are_spread_over_the_workers_and_all_agree(path: Path) -> None:
    async with mesh(path, 4, letters="abcd") as nodes:
        await begin(*nodes)
        for number, channel in enumerate(CHANNELS):
            assert await enter(nodes[number % 4], channel, "ann") == [True]
        for channel in CHANNELS:
            for node in nodes:
                assert await node.broker.presence_counts(channel) == PresenceCounts(connections=1, users=1)
        assert len({owner_of(nodes[0], channel) for channel in CHANNELS}) == 4


async def test_workers_that_begin_at_once_agree_on_owners(path: Path) -> None:
    async with mesh(path, 4) as nodes:
        outcomes = await asyncio.gather(*(enter(node, channel, "ann") for channel in CHANNELS for node in nodes))
        assert Counter(outcome for (outcome,) in outcomes) == {True: len(CHANNELS), False: 3 * len(CHANNELS)}


async def test_nobody_is_missing_or_first_again_when_an_owner_leaves(path: Path) -> None:
    async with mesh(path, 3, letters="abc") as (one, two, three):
        await begin(one, two, three)
        for channel in CHANNELS:
            for node in (one, two, three):
                await enter(node, channel, "ann", f"own {node.info.id}")
        own = [channel for channel in CHANNELS if owner_of(one, channel) == three.info.id]
        assert own
        await three.close()
        # It is in its rooms until its entries are taken over and have left.
        for channel in CHANNELS:
            again = [PresenceEntry(f"{one.info.id}:again", "ann", b"")]
            assert await one.broker.presence_enter(channel, again) == [False]
            assert await one.broker.presence_leave(channel, again) == [False]
            assert await ids(two, channel) == {
                f"{node.info.id}:{user}" for node in (one, two, three) for user in ("ann", f"own {node.info.id}")
            }
        taken = await taken_over(2 * len(CHANNELS), one, two)
        assert Counter(entry.user for _, entry in taken) == {
            "ann": len(CHANNELS),
            f"own {three.info.id}": len(CHANNELS),
        }
        assert await taken_over(0, one, two) == []


async def test_the_entries_of_a_killed_worker_are_taken_over_once_whoever_kept_them(path: Path) -> None:
    async with mesh(path, 2, letters="ab") as (one, two), worker(path, "c" * 16) as process, looking(one, two):
        await begin(one, two)
        for channel in CHANNELS:
            await process.ask("enter", channel, "ann", "bob")
            assert await enter(one, channel, "ann") == [False]
        assert {owner_of(one, channel) for channel in CHANNELS} == {one.info.id, two.info.id, process.id}
        # An answer says that the copies of all entries before it have left.
        await process.ask("ids", CHANNELS[0])
        await process.kill()
        taken = await taken_over(2 * len(CHANNELS), one, two)
        assert sorted((channel, entry.user) for channel, entry in taken) == sorted(
            (channel, user) for channel in CHANNELS for user in ("ann", "bob")
        )
        last = 0
        for channel, entry in taken:
            owner = one if entry.id.startswith(one.info.id) else two
            last += (await owner.broker.presence_leave(channel, [entry]))[0]
        # Nobody else has Bob, and Ann is still there.
        assert last == len(CHANNELS)
        for channel in CHANNELS:
            assert await ids(two, channel) == {f"{one.info.id}:ann"}


def next_owner(channel: str, *nodes: Node) -> str:
    return rendezvous(slot_of(channel), [node.info.id for node in nodes])


async def nodes_with_standby(path: Path, stack: contextlib.AsyncExitStack) -> tuple[Node, Node, Node]:
    """Start a coordinator, a node, and one whose standby is the second one."""
    nodes = []
    for letter in "abc":
        nodes.append(await Node(path, node_id=letter * 16).start())
        stack.push_async_callback(nodes[-1].close)
    coordinator, standby, other = nodes
    await begin(standby, other)
    await until(lambda: other.session.presences.copies.standby == standby.info.id)
    await begin(coordinator)
    await until(lambda: all(len(node.session.presences.members.candidates()) == 3 for node in nodes))
    return coordinator, standby, other


async def test_a_new_owner_gets_the_copies_of_a_standby_that_does_not_know_yet_who_has_died(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        coordinator, standby, dying = await nodes_with_standby(path, stack)
        for channel in CHANNELS:
            await enter(dying, channel, "ann")
        await dying.session.barriers.wait()
        own = [channel for channel in CHANNELS if owner_of(dying, channel) == dying.info.id]
        assert len({next_owner(channel, coordinator, standby) for channel in own}) == 2
        dying.die()
        # The standby never looks into the directory until the coordinator has what it keeps.
        async with asyncio.timeout(30), looking(coordinator):
            for channel in own:
                if next_owner(channel, coordinator, standby) == coordinator.info.id:
                    assert await enter(coordinator, channel, "ann") == [False]
        async with asyncio.timeout(30), looking(coordinator, standby):
            for channel in CHANNELS:
                assert await enter(coordinator, channel, "ann") == [False]


async def test_all_workers_but_a_new_one_leave_at_once_and_nobody_is_first_again(path: Path) -> None:
    async with mesh(path, 4) as (*old, new):
        await begin(*old, new)
        for channel in CHANNELS:
            for node in old:
                await enter(node, channel, f"user {node.info.id}")
        await asyncio.gather(*(node.close() for node in old))
        for channel in CHANNELS:
            for node in old:
                assert await enter(new, channel, f"user {node.info.id}") == [False]
        assert len(await taken_over(3 * len(CHANNELS), new)) == 3 * len(CHANNELS)


async def test_the_leave_of_a_user_is_told_if_its_worker_and_the_owner_die_at_once(path: Path) -> None:
    async with mesh(path, 4, letters="abcd") as (one, two, three, four):
        await begin(one, two, three)
        # The standby of the owner that dies is not the worker that dies.
        await until(lambda: three.session.presences.copies.standby)
        await begin(four)
        for channel in CHANNELS:
            await enter(four, channel, "ann")
        # They have the copies.
        await asyncio.gather(*(node.session.barriers.wait() for node in (one, two, three, four)))
        of_three = {channel for channel in CHANNELS if owner_of(one, channel) == three.info.id}
        others = {channel for channel in CHANNELS if owner_of(one, channel) in (one.info.id, two.info.id)}
        assert of_three
        assert others
        # Those of the fourth worker itself may be taken over too.
        taken: set[str] = set()
        for node in (three, four):
            node.die()
        async with looking(one, two):
            while not taken >= of_three | others:
                taken.update(channel for channel, _ in await taken_over(1, one, two))


async def test_a_worker_that_hangs_has_left_and_enters_again_when_it_goes_on(path: Path) -> None:
    clock = Clock()
    async with mesh(path, 2, clock=clock) as (one, two), worker(path) as process:
        await begin(one, two)
        for channel in CHANNELS:
            await process.ask("enter", channel, "ann")
        process.signal(signal.SIGSTOP)
        began = clock()
        taken = await taken_over(len(CHANNELS), one, two, clock=clock)
        assert clock() - began < 30
        for channel, entry in taken:
            owner = one if entry.id.startswith(one.info.id) else two
            assert await owner.broker.presence_leave(channel, [entry]) == [True]
        process.signal(signal.SIGCONT)
        async with asyncio.timeout(30), looking(one, two):
            lost: set[str] = set()
            while lost != {f"{process.id}:ann"}:
                lost |= set(await process.ask("beat"))
                await asyncio.sleep(0.01)
            for channel in CHANNELS:
                assert await process.ask("enter", channel, "ann") == [True]
                assert await ids(one, channel) == {f"{process.id}:ann"}
                assert await process.ask("ids", channel) == [f"{process.id}:ann"]


async def test_a_lost_connection_changes_nothing(path: Path) -> None:
    async with mesh(path, 3) as nodes, looking(*nodes):
        await begin(*nodes)
        for channel in CHANNELS:
            for node in nodes:
                await enter(node, channel, "ann")
        for turn in range(3):
            for peer in nodes[turn].session.peers:
                peer.end()
            for channel in CHANNELS:
                assert await enter(nodes[turn], channel, f"user {turn}") == [True]
        for channel in CHANNELS:
            for node in nodes:
                assert len(await ids(node, channel)) == 6
        for node in nodes:
            beat = await node.broker.presence_beat()
            assert (beat.dead, beat.lost) == ((), ())


async def test_a_node_that_closes_while_it_is_cut_off_tells_who_has_come_and_gone(path: Path) -> None:
    async with mesh(path, 2) as (one, two):
        await begin(one, two)
        for channel in CHANNELS:
            await enter(one, channel, "ann", "bob")
        await asyncio.gather(one.session.barriers.wait(), two.session.barriers.wait())
        own = [channel for channel in CHANNELS if owner_of(one, channel) == one.info.id]
        assert own
        # Nobody sweeps, so nobody connects again by itself.
        one.peer(two).end()
        await until(lambda: not one.session.peers and not two.session.peers)
        for channel in own:
            assert await one.broker.presence_leave(channel, entries_of(one.info.id, "ann")) == [True]
            assert await enter(one, channel, "cid") == [True]
        await one.close()
        async with looking(two):
            for channel in own:
                assert await ids(two, channel) == {f"{one.info.id}:bob", f"{one.info.id}:cid"}
                assert await enter(two, channel, "ann", "cid") == [True, False]


async def test_many_entries_move_to_a_new_owner(path: Path) -> None:
    async with mesh(path, 3) as (one, two, three):
        await begin(one, two, three)
        big = [PresenceEntry(f"{one.info.id}:{number}", f"user {number}", bytes(1000)) for number in range(3000)]
        channel = CHANNELS[0]
        for first in range(0, len(big), 500):
            await one.broker.presence_enter(channel, big[first : first + 500])
        leaving = next(node for node in (two, three, one) if node.info.id == owner_of(one, channel))
        asking = two if leaving is not two else three
        await leaving.close()
        assert await asking.broker.presence_counts(channel) == PresenceCounts(connections=3000, users=3000)


async def test_changes_fail_in_time_while_their_owner_hangs(path: Path) -> None:
    clock = Clock()
    async with worker(path) as process:
        node = await Node(path, clock=clock).start()
        await begin(node)
        for channel in CHANNELS:
            await process.ask("enter", channel, "bob")
            await enter(node, channel, "ann")
        channel = next(channel for channel in CHANNELS if owner_of(node, channel) == process.id)
        process.signal(signal.SIGSTOP)
        changing = asyncio.create_task(enter(node, channel, "cid"))
        reading = asyncio.create_task(ids(node, channel))
        await asyncio.sleep(0.01)
        clock.skipped += 6
        node.broker.sweep(node.now())
        with pytest.raises(BrokerUncertain):
            await changing
        with pytest.raises(BrokerUnavailable):
            await reading
        process.signal(signal.SIGCONT)
        await node.close()


async def test_a_broker_that_is_not_started_or_closed_knows_nobody(path: Path) -> None:
    node = Node(path)
    for _ in range(2):
        for call in (enter(node, "room:a", "ann"), ids(node, "room:a"), node.broker.presence_beat(is_leaving=True)):
            with pytest.raises(BrokerError):
                await call
        if not node.broker.health().ok:
            await node.start()
            assert await enter(node, "room:a", "ann") == [True]
            with pytest.raises(MisuseError, match="cursor"):
                await node.broker.presence_read("room:a", "nonsense", 1)
            await node.close()


def test_pages_go_on_behind_an_entry_that_has_left() -> None:
    entries = PresenceEntries()
    entries.enter("node", "room:a", [PresenceEntry(f"{number:03}", "ann", b"") for number in range(100)])
    page = entries.read("room:a", "", 10)
    entries.leave("node", "room:a", [PresenceEntry(f"{number:03}", "ann", b"") for number in range(0, 100, 3)])
    following = entries.read("room:a", page.cursor, 3)
    assert [entry.id for entry in following.entries] == ["010", "011", "013"]
    assert entries.read("room:a", ">099", 3) == StoredPresence((), "")
    assert entries.read("room:b", "", 3) == StoredPresence((), "")
    assert entries.counts("room:a") == PresenceCounts(connections=66, users=1)


def test_what_is_removed_before_its_turn_is_not_sent() -> None:
    own = SlotEntries()
    own.add("room:a", entries_of("node", *(f"{number}" for number in range(300))))
    parts = own.parts(slot_of("room:a"))
    assert len(next(parts)[1]) == 200
    own.remove("room:a", [f"node:{number}" for number in range(250, 300)])
    assert len(next(parts)[1]) == 50
    own.drop(slot_of("room:a"))
    assert list(parts) == []


@pytest.mark.parametrize(
    "body",
    [
        Outcome(3, [True, False]),
        Found(1, StoredPresence((PresenceEntry("a", "\ud800", b"\0"),), ">a")),
        Resent(5, 7, "node", "room:a", (PresenceEntry("a", "", b""),)),
        Lost("room:a", ("a", "b")),
        Copied("node", "room:a", ()),
        Ready(),
    ],
)
def test_records_are_read_as_they_were_written(body: object) -> None:
    assert decode_body(body.encode()) == body  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"", b"\x14", b"\x14" + b"\xff" * 40, b"\x1b" + bytes(16) + b"\xff" * 8, b"\x1d\0"])
def test_malformed_records_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_body(body)


def test_records_of_a_later_release_are_ignored() -> None:
    assert decode_body(b"\xff and more") is None
