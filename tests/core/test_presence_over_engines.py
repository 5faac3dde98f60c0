"""The members of a room, which an engine keeps: Redis, Valkey, several of them, or the JetStream of NATS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import starmap

import pytest

from tests.support.broker_node import until, until_in_time_of
from tests.support.engine_places import ENGINES_TOGETHER, EnginePlace, long, running_place
from tests.support.presence_nodes import ROOM, are, node, pass_a_moment, told
from tests.support.presence_worlds import EngineWorld, Member, running, shorten_lives
from tests.support.serving_hub import connected
from wshub import PresenceCounts
from wshub.brokers.presence_interface import PresenceEntry
from wshub.errors import BrokerError, BrokerUncertain

# Each NATS server, and engines behind Sentinels and in a cluster, have one of the loops: all pairs take twice as long.
pytestmark = pytest.mark.parametrize(
    ("place", "run"),
    [
        ("redis", "asyncio"),
        ("redis", "uvloop"),
        ("valkey", "asyncio"),
        ("valkey", "uvloop"),
        *starmap(long, ENGINES_TOGETHER),
        ("nats-2.9", "asyncio"),
        ("nats-current", "uvloop"),
    ],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[EnginePlace]:
    with running_place(request.param) as place:
        yield place


@pytest.fixture
def world(place: EnginePlace) -> Iterator[EngineWorld]:
    """A prefix that no other test has, and brokers with it."""
    world = EngineWorld(place)
    yield world
    world.close_proxies()


async def test_all_nodes_see_all_members_and_one_calls_the_functions(world: EngineWorld) -> None:
    async with (
        node(world.events, world.direct_broker()) as one,
        node(world.events, world.direct_broker()) as two,
        connected(one.url + "ann"),
        connected(two.url + "böb"),
        connected(two.url + "ann"),
        connected(two.url),
    ):
        await are(one, "ann", "ann", "böb", None)
        await are(two, "ann", "ann", "böb", None)
        assert await one.hub.presence_counts(ROOM) == PresenceCounts(connections=4, users=3)
        await told(world.events, {("join", "ann"): 1, ("join", "böb"): 1, ("join", None): 1}, one, two)
        page = await one.hub.presence(ROOM)
        assert {member.user: member.info for member in page.members} == {
            "ann": {"name": "ann"},
            "böb": {"name": "böb"},
            None: None,
        }


async def test_many_members_are_read_in_pages(world: EngineWorld) -> None:
    async with node(world.events, world.direct_broker()) as one, contextlib.AsyncExitStack() as stack:
        names = [f"user-{number}" for number in range(600)]
        for name in names:
            await stack.enter_async_context(connected(one.url + name))
        await until(lambda: len(world.events.log) == 600)
        assert await one.users() == sorted(names)
        page = await one.hub.presence(ROOM, limit=50)
        assert 50 <= len(page.members) < 300
        assert page.cursor


async def test_a_user_who_moves_to_another_node_has_neither_left_nor_joined(world: EngineWorld) -> None:
    events = world.events
    async with (
        node(events, world.direct_broker()) as one,
        node(events, world.direct_broker()) as two,
    ):
        async with connected(one.url + "ann"):
            await are(two, "ann")
        async with connected(two.url + "ann"):
            await are(one, "ann", "ann")
            one.skip(6)
            await are(one, "ann")
            await told(events, {("join", "ann"): 1}, one, two)
        await until(lambda: two.hub.room_size(ROOM) == 0)
        two.skip(6)
        await until(lambda: events.log[1:] == [("leave", "ann")])


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a beat is dead after a second by the engine's clock: a busy machine delays the others for less."""
    shorten_lives(monkeypatch, 1.0)


@pytest.mark.usefixtures("short_life")
async def test_the_members_of_a_dead_node_leave_once_and_join_when_it_was_not_dead(world: EngineWorld) -> None:
    events = world.events
    broker = world.make_broker()
    async with (
        node(events, broker) as one,
        node(events, world.direct_broker()) as two,
        node(events, world.direct_broker()) as three,
        connected(one.url + "ann"),
        connected(one.url + "bob"),
        connected(two.url + "bob"),
    ):
        await are(three, "ann", "bob", "bob")
        # An hour between the clocks of nodes means nothing.
        three.clock.skipped += 3600
        world.split(broker)
        async with asyncio.timeout(20):
            while await two.users() != ["bob"]:
                for each in (two, three):
                    each.skip(4)
                await asyncio.sleep(0.05)
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "ann"): 1}, two, three)
        world.heal()
        await until_in_time_of(one, lambda: events.counts()["join", "ann"] == 2)
        await are(three, "ann", "bob", "bob")
        await pass_a_moment(one, two, three)
        assert events.counts()["leave", "ann"] == 1


async def test_the_members_of_a_node_that_closes_may_come_back_at_another_one(world: EngineWorld) -> None:
    events = world.events
    async with node(events, world.direct_broker()) as two:
        async with (
            node(events, world.direct_broker()) as one,
            connected(one.url + "ann"),
            connected(one.url + "bob"),
        ):
            await are(two, "ann", "bob")
        two.skip(4)
        await asyncio.sleep(0.05)
        async with connected(two.url + "ann"):
            await are(two, "ann", "ann", "bob")
            await until_in_time_of(two, lambda: len(events.log) == 3)
            await are(two, "ann")
            await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "bob"): 1}, two)


async def test_an_engine_that_comes_back_empty_is_told_again_and_nobody_joins_twice(world: EngineWorld) -> None:
    async with (
        node(world.events, world.direct_broker()) as one,
        node(world.events, world.direct_broker()) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        await are(one, "ann", "bob")
        world.lose()

        async def are_told() -> None:
            while True:
                for each in (one, two):
                    each.skip(4)
                await asyncio.sleep(0.05)
                with contextlib.suppress(Exception):
                    if await one.users() == ["ann", "bob"]:
                        return

        async with asyncio.timeout(10):
            await are_told()
        await told(world.events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)


CHANNEL = "room:lost-answers"


def entries(*ids: str) -> list[PresenceEntry]:
    return [PresenceEntry(each, "ann", b'["node", 1, "ann", null]') for each in ids]


async def there(member: Member) -> set[str]:
    page = await member.broker.presence_read(CHANNEL, "", 100)  # type: ignore[attr-defined]
    return {entry.id for entry in page.entries}


async def leave_without_answer(world: EngineWorld, member: Member, *ids: str) -> None:
    """Have a node remove entries, and lose the answer."""
    world.deafen(member.broker)
    leaving = asyncio.create_task(member.broker.presence_leave(CHANNEL, entries(*ids)))  # type: ignore[attr-defined]
    other = next(each for each in world.members if each is not member)
    async with asyncio.timeout(10):
        while await there(other) & {*ids}:
            await asyncio.sleep(0.005)
    world.cut(member.broker)
    with pytest.raises(BrokerUncertain):
        await leaving


async def leave(member: Member, *ids: str) -> list[bool]:
    """Have a node remove entries once it is connected."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await member.broker.presence_leave(CHANNEL, entries(*ids))  # type: ignore[attr-defined,no-any-return]
            except BrokerError:
                member.node.skip(0.5)
                await asyncio.sleep(0.01)


async def test_a_leave_whose_answer_was_lost_is_told_by_one_of_two_nodes(world: EngineWorld) -> None:
    async with running(world, 2):
        one, two = world.members
        for member, name in ((two, "b"), (one, "a")):
            await member.broker.presence_enter(CHANNEL, entries(name))  # type: ignore[attr-defined]

        await leave_without_answer(world, one, "a")
        assert await leave(two, "b") == [True]
        assert await leave(one, "a") == [False]


async def test_a_last_leave_whose_answer_was_lost_is_told(world: EngineWorld) -> None:
    async with running(world, 2):
        one, _ = world.members
        await one.broker.presence_enter(CHANNEL, entries("a"))  # type: ignore[attr-defined]
        await leave_without_answer(world, one, "a")
        assert await leave(one, "a") == [True]


async def test_of_connections_of_a_user_whose_leaves_had_no_answer_one_is_the_last(world: EngineWorld) -> None:
    async with running(world, 2):
        one, _ = world.members
        await one.broker.presence_enter(CHANNEL, entries("a", "b", "c"))  # type: ignore[attr-defined]
        await leave_without_answer(world, one, "a", "b", "c")
        assert sorted(await leave(one, "a", "b", "c")) == [False, False, True]


async def test_a_user_who_is_back_has_not_left_when_the_answer_was_lost(world: EngineWorld) -> None:
    async with running(world, 2):
        one, two = world.members
        await one.broker.presence_enter(CHANNEL, entries("a"))  # type: ignore[attr-defined]
        await leave_without_answer(world, one, "a")
        assert await two.broker.presence_enter(CHANNEL, entries("b")) == [True]  # type: ignore[attr-defined]
        assert await leave(one, "a") == [False]
        assert await leave(two, "b") == [True]


async def test_a_member_who_came_while_another_connection_of_the_user_left_is_no_ghost(world: EngineWorld) -> None:
    async with running(world, 2):
        one, two = world.members
        await one.broker.presence_enter(CHANNEL, entries("a"))  # type: ignore[attr-defined]
        await asyncio.gather(
            one.broker.presence_leave(CHANNEL, entries("a")),  # type: ignore[attr-defined]
            one.broker.presence_enter(CHANNEL, entries("b")),  # type: ignore[attr-defined]
        )
        world.members.remove(one)
        await one.close()
        beat = await two.broker.presence_beat()  # type: ignore[attr-defined]
        # The hub may have taken it over by now.
        assert beat.dead or "b" not in await there(two)


async def take_over(member: Member, count: int) -> list[PresenceEntry]:
    """Have a node take so many entries over."""
    taken: list[PresenceEntry] = []
    async with asyncio.timeout(10):
        while len(taken) < count:
            for dead in (await member.broker.presence_beat()).dead:  # type: ignore[attr-defined]
                taken += [entry for _, entry in await member.broker.presence_take_over(dead)]  # type: ignore[attr-defined]
    return taken


async def test_a_leave_that_another_node_has_told_is_not_told_again(world: EngineWorld) -> None:
    async with running(world, 2):
        one, two = world.members
        # The hubs have no beat of their own, once those that are due have ended.
        for member in (one, two):
            member.node.clock.hold()
            member.node.skip(0)
            await until(lambda member=member: member.node.is_idle)
        await one.broker.presence_enter(CHANNEL, entries("a"))  # type: ignore[attr-defined]
        await one.broker.presence_beat(is_leaving=True)  # type: ignore[attr-defined]
        taken = await take_over(two, 1)
        assert await two.broker.presence_leave(CHANNEL, taken) == [True]  # type: ignore[attr-defined]
        assert await leave(one, "a") == [False]


async def test_a_user_who_comes_to_a_node_that_was_taken_for_dead_joins_once(world: EngineWorld) -> None:
    if world.place.is_nats:
        pytest.skip("over NATS, a node has a beat before it enters members")
    events = world.events
    broker = world.direct_broker()
    async with (
        node(events, broker) as one,
        node(events, world.direct_broker()) as two,
        connected(one.url + "ann"),
    ):
        await are(two, "ann")
        one.clock.hold()
        await broker.presence_beat(is_leaving=True)
        async with asyncio.timeout(10):
            while not two.hub.stats().presence.taken_over:  # type: ignore[union-attr]
                two.skip(3)
                await asyncio.sleep(0.01)
        two.clock.hold()
        async with connected(one.url + "eve"):
            await are(two, "ann", "eve")
            await until(lambda: ("join", "eve") in events.log)
            one.clock.go_on()
            one.skip(3)
            # Its members are entered anew, beside what the other node has taken over.
            await are(two, "ann", "ann", "eve")
            two.clock.go_on()
            two.skip(6)
            await are(two, "ann", "eve")
            await told(events, {("join", "ann"): 1, ("join", "eve"): 1}, one, two)
