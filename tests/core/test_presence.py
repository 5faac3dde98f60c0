"""The members of a room, on one node and on several, while nodes and their engine come and go."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from tests.support.broker_node import joined, until
from tests.support.presence_nodes import ROOM, Events, are, node, pass_a_moment, told
from tests.support.serving_hub import connected
from wshub import Connection, Hub, InvalidMessageError, MisuseError, PresenceCounts
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.presence_interface import Beat, PresenceEntry


async def test_members_are_seen_with_their_info_and_counted() -> None:
    events = Events()
    async with (
        node(events) as one,
        connected(one.url + "ann"),
        connected(one.url + "ann"),
        connected(one.url + "bob"),
        connected(one.url),
    ):
        await are(one, "ann", "ann", "bob", None)
        assert await one.hub.presence_counts(ROOM) == PresenceCounts(connections=4, users=3)
        page = await one.hub.presence(ROOM)
        assert {member.user: member.info for member in page.members} == {
            "ann": {"name": "ann"},
            "bob": {"name": "bob"},
            None: None,
        }
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("join", None): 1}, one)


async def test_a_user_who_comes_back_within_the_grace_has_neither_left_nor_joined() -> None:
    events = Events()
    async with node(events) as one:
        async with connected(one.url + "ann"):
            await are(one, "ann")
        await until(lambda: one.hub.room_size(ROOM) == 0)
        one.skip(4)
        assert await one.users() == ["ann"]
        async with connected(one.url + "ann"):
            await are(one, "ann", "ann")
            one.skip(2)
            await are(one, "ann")
            await told(events, {("join", "ann"): 1}, one)
        await until(lambda: one.hub.room_size(ROOM) == 0)
        one.skip(6)
        await until(lambda: events.log == [("join", "ann"), ("leave", "ann")])
        assert await one.users() == []
        assert await one.hub.presence_counts(ROOM) == PresenceCounts(connections=0, users=0)


async def test_a_connection_without_a_user_leaves_at_once() -> None:
    events = Events()
    async with node(events) as one:
        async with connected(one.url):
            await are(one, None)
        await until(lambda: events.log == [("join", None), ("leave", None)])
        assert await one.users() == []


async def test_another_user_of_a_connection_has_an_entry_of_its_own() -> None:
    events = Events()
    async with node(events, grace_ms=0) as one, connected(one.url + "ann") as client:
        await are(one, "ann")
        await client.send("bob")
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "ann"): 1}, one)
        assert await one.users() == ["bob"]
        ((member),) = (await one.hub.presence(ROOM)).members
        assert member.info == {"name": "ann"}


async def test_joining_again_replaces_the_info_and_leaving_for_a_moment_changes_nothing() -> None:
    events = Events()
    async with node(events) as one, connected(one.url + "ann"):
        await are(one, "ann")
        (connection,) = one.hub.connections
        connection.join(ROOM, info="typing")
        connection.leave(ROOM)
        connection.join(ROOM, info="here")
        async with asyncio.timeout(5):
            while [member.info for member in (await one.hub.presence(ROOM)).members] != ["here"]:
                await asyncio.sleep(0.002)
        one.skip(10)
        assert await one.users() == ["ann"]
        await told(events, {("join", "ann"): 1}, one)


async def test_an_info_is_bounded_and_belongs_to_rooms_with_presence() -> None:
    events = Events()
    async with node(events) as one, connected(one.url + "ann"):
        await are(one, "ann")
        (connection,) = one.hub.connections
        with pytest.raises(InvalidMessageError, match="1024 bytes"):
            connection.join(ROOM, info="x" * 1100)
        with pytest.raises(TypeError):
            connection.join(ROOM, info=object())
        with pytest.raises(MisuseError, match="presence=True"):
            connection.join("other", info="x")
        with pytest.raises(MisuseError, match="presence=True"):
            await one.hub.presence("other")


async def test_a_room_that_gets_presence_later_knows_who_is_there() -> None:
    async def serve(connection: Connection) -> None:
        connection.user = "ann"
        connection.join(ROOM)
        await connection.receive()

    hub = Hub()
    async with hub.serve("127.0.0.1", 0, serve, close_hub=True) as server, connected(f"ws://127.0.0.1:{server.port}/"):
        await until(lambda: hub.room_size(ROOM) == 1)
        hub.configure_room(ROOM, presence=True)
        await until(lambda: hub._presences is not None)
        async with asyncio.timeout(5):
            while (await hub.presence_counts(ROOM)).connections != 1:
                await asyncio.sleep(0.002)


async def test_all_nodes_see_all_members_and_one_calls_the_functions() -> None:
    events, engine = Events(), MemoryEngine()
    async with (
        node(events, MemoryBroker(engine)) as one,
        node(events, MemoryBroker(engine)) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        for each in (one, two):
            await are(each, "ann", "bob")
        async with connected(two.url + "ann"):
            await are(one, "ann", "ann", "bob")
        assert await two.hub.presence_counts(ROOM) == PresenceCounts(connections=3, users=2)
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)


async def test_a_user_who_moves_to_another_node_has_neither_left_nor_joined() -> None:
    events, engine = Events(), MemoryEngine()
    async with node(events, MemoryBroker(engine)) as one, node(events, MemoryBroker(engine)) as two:
        async with connected(one.url + "ann"):
            await are(two, "ann")
        async with connected(two.url + "ann"):
            await are(one, "ann", "ann")
            one.skip(6)
            await are(one, "ann")
            await told(events, {("join", "ann"): 1}, one, two)


async def test_the_members_of_a_node_that_was_cut_off_leave_once_and_join_when_it_is_back() -> None:
    events, engine = Events(), MemoryEngine()
    broken = MemoryBroker(engine, probe_interval=1000)
    async with (
        node(events, broken) as one,
        node(events, MemoryBroker(engine, probe_interval=1000)) as two,
        node(events, MemoryBroker(engine, probe_interval=1000)) as three,
        connected(one.url + "ann"),
        connected(one.url + "bob"),
        connected(two.url + "bob"),
    ):
        await are(two, "ann", "bob", "bob")
        engine.mute(broken)
        engine.skip(5)
        for each in (two, three):
            each.skip(4)
        await asyncio.sleep(0.02)
        engine.skip(6)
        for each in (two, three):
            each.skip(4)
        await asyncio.sleep(0.05)
        for each in (two, three):
            each.skip(6)
        await are(two, "bob")
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "ann"): 1}, two, three)
        engine.heal()
        one.skip(20)
        await until(lambda: one.skip(0.2) or events.counts()["join", "ann"] == 2)
        await are(three, "ann", "bob", "bob")
        await told(events, {("join", "ann"): 2, ("join", "bob"): 1, ("leave", "ann"): 1}, one, two, three)


async def test_the_members_of_a_node_that_closes_may_come_back_at_another_one() -> None:
    events, engine = Events(), MemoryEngine()
    async with node(events, MemoryBroker(engine)) as two:
        async with (
            node(events, MemoryBroker(engine)) as one,
            connected(one.url + "ann"),
            connected(one.url + "bob"),
        ):
            await are(two, "ann", "bob")
        two.skip(4)
        await asyncio.sleep(0.02)
        async with connected(two.url + "ann"):
            await are(two, "ann", "ann", "bob")
            two.skip(6)
            await are(two, "ann")
            await told(events, {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "bob"): 1}, two)


async def test_an_engine_that_has_lost_all_is_told_again_and_nobody_joins_twice() -> None:
    events, engine = Events(), MemoryEngine()
    async with (
        node(events, MemoryBroker(engine)) as one,
        node(events, MemoryBroker(engine)) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        await are(one, "ann", "bob")
        engine.lose_presences()
        for each in (one, two):
            each.skip(4)
        await are(one, "ann", "bob")
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)


async def test_joins_and_leaves_during_an_outage_are_told_after_it() -> None:
    events, engine = Events(), MemoryEngine()
    async with (
        node(events, MemoryBroker(engine)) as one,
        node(events, MemoryBroker(engine)) as two,
        connected(one.url + "ann"),
    ):
        await are(two, "ann")
        engine.stop()
        async with connected(one.url + "bob"):
            await until(lambda: one.hub.room_size(ROOM) == 2)
        async with connected(one.url + "cid"):
            await until(lambda: one.hub.room_size(ROOM) == 2)
            engine.heal()
            await until(lambda: all(each.skip(1) or each.hub.health().ok for each in (one, two)))
            one.skip(10)
            await are(two, "ann", "cid")
            await until(lambda: ("join", "cid") in events.log)
            await pass_a_moment(one, two)
            counts = events.counts()
            # Bob came and went during the outage. Both were told, or neither.
            assert counts.pop(("join", "bob"), 0) == counts.pop(("leave", "bob"), 0)
            assert counts == {("join", "ann"): 1, ("join", "cid"): 1}


async def test_whatever_fails_nobody_is_missing_and_there_is_no_ghost() -> None:
    """Users come and go at three nodes, whose clocks differ by hours and which lose their engine, against a model."""
    chance = random.Random(3)
    events, engine = Events(), MemoryEngine()
    brokers = [MemoryBroker(engine, probe_interval=1000) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(events, broker)) for broker in brokers]
        for each, offset in zip(nodes, (0, 3600, 7200), strict=True):
            each.clock.skipped += offset
        there: dict[str, Any] = {}
        for step in range(120):
            each = chance.choice(nodes)
            fault = chance.randrange(12)
            if fault == 0:
                engine.mute(chance.choice(brokers))
            elif fault == 1:
                engine.cut(chance.choice(brokers))
            elif fault == 2:
                engine.lose_presences()
            elif fault == 3:
                engine.stop()
            elif fault < 6:
                engine.heal()
            elif fault < 8 and there:
                await there.pop(chance.choice(sorted(there))).close()
            else:
                name = f"user-{step}"
                there[name] = await stack.enter_async_context(connected(each.url + name))
            engine.skip(1)
            for each in nodes:
                each.skip(1)
            await asyncio.sleep(0.002)
        engine.heal()

        async def is_right() -> bool:
            engine.skip(0.5)
            for each in nodes:
                each.skip(0.5)
            await asyncio.sleep(0.002)
            if not all(each.hub.health().ok for each in nodes):
                return False
            return all([await each.users() == sorted(there) for each in nodes])

        async with asyncio.timeout(30):
            while not await is_right():
                pass
        # Users who are there have joined once more than they have left; the others as often.
        for name in {user for _, user in events.log}:
            joins, leaves = events.counts()["join", name], events.counts()["leave", name]
            assert joins >= leaves


async def test_an_info_that_the_application_changes_and_sets_again_is_a_new_one() -> None:
    events = Events()
    async with node(events) as one, connected(one.url + "ann"):
        await are(one, "ann")
        (connection,) = one.hub.connections

        async def until_info(expected: str) -> None:
            async with asyncio.timeout(5):
                while [repr(member.info) for member in (await one.hub.presence(ROOM)).members] != [expected]:
                    await asyncio.sleep(0.002)

        info: dict[str, Any] = {"typing": False}
        connection.join(ROOM, info=info)
        info["typing"] = None
        await until_info("{'typing': False}")
        info["typing"] = True
        connection.join(ROOM, info=info)
        await until_info("{'typing': True}")
        connection.join(ROOM, info=1)
        await until_info("1")
        connection.join(ROOM, info=True)
        await until_info("True")
        for number in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="JSON"):
                connection.join(ROOM, info=number)
        with pytest.raises(InvalidMessageError):
            await asyncio.to_thread(connection.join, ROOM, info="x" * 2000)
        await asyncio.to_thread(connection.join, ROOM, info="from a thread")
        await until_info("'from a thread'")


async def test_a_member_that_changes_its_info_and_leaves_at_once_has_left() -> None:
    events = Events()
    async with node(events, grace_ms=0) as one, connected(one.url + "ann"), connected(one.url + "bob"):
        await are(one, "ann", "bob")
        ann, bob = sorted(one.hub.connections, key=lambda connection: str(connection.user))
        ann.join(ROOM, info="last words")
        ann.leave(ROOM)
        await are(one, "bob")
        await until(lambda: ("leave", "ann") in events.log)
        bob.leave(ROOM)
        # While the store gets the join, the info changes and the member leaves.
        bob.join(ROOM, info=1)
        await asyncio.sleep(0)
        bob.join(ROOM, info=2)
        bob.leave(ROOM)
        await until(lambda: one.hub.stats().presence.pending == 0)  # type: ignore[union-attr]
        assert await one.users() == []
        await pass_a_moment(one)
        assert events.log.count(("join", "bob")) == events.log.count(("leave", "bob")) > 0


async def test_a_room_that_loses_its_presence_has_no_members_when_it_gets_one_again() -> None:
    events = Events()
    async with node(events) as one, connected(one.url + "ann"), connected(one.url + "bob"):
        await are(one, "ann", "bob")
        one.hub.configure_room(ROOM)
        ann = next(connection for connection in one.hub.connections if connection.user == "ann")
        ann.leave(ROOM)
        one.hub.configure_room(ROOM, presence=events.config())
        await are(one, "bob")
        assert one.hub.stats().presence.members == 1  # type: ignore[union-attr]


async def test_a_member_that_leaves_and_joins_often_takes_no_more_memory() -> None:
    events = Events()
    async with node(events) as one, connected(one.url + "ann"):
        await are(one, "ann")
        (connection,) = one.hub.connections
        for _ in range(100):
            connection.leave(ROOM)
            connection.join(ROOM)
        connection.leave(ROOM)
        one.skip(4)
        assert await one.users() == ["ann"]
        assert len(one.hub._presences._leaving) == 1  # type: ignore[union-attr]
        one.skip(2)
        await until(lambda: events.log == [("join", "ann"), ("leave", "ann")])


class PatientBroker(MemoryBroker):
    """Holds beats back until it may answer them, and counts how many are under way."""

    def __init__(self) -> None:
        super().__init__(MemoryEngine())
        self.may_answer = asyncio.Event()
        self.under_way: list[int] = []
        self.count = 0

    async def presence_beat(self, *, is_leaving: bool = False) -> Beat:
        self.count += 1
        self.under_way.append(self.count)
        try:
            await self.may_answer.wait()
            return await super().presence_beat(is_leaving=is_leaving)
        finally:
            self.count -= 1


async def test_one_beat_is_under_way_at_a_time() -> None:
    broker, events = PatientBroker(), Events()
    async with node(events, broker) as one, connected(one.url + "ann"):
        presences = one.hub._presences
        assert presences is not None
        # The first member needs a beat, and the first one is under way.
        await until(lambda: presences._telling is not None and presences._beating is not None)
        for _ in range(10):
            await asyncio.sleep(0)
        broker.may_answer.set()
        await are(one, "ann")
        await told(events, {("join", "ann"): 1}, one)
        assert set(broker.under_way) == {1}


async def test_a_leave_that_another_node_has_told_is_not_told_again() -> None:
    engine = MemoryEngine()
    entry = PresenceEntry("one:1", "ann", b"data")
    async with joined(MemoryBroker(engine)) as one, joined(MemoryBroker(engine)) as two:
        await one.broker.presence_enter("room:a", [entry])  # type: ignore[attr-defined]
        await one.broker.presence_beat(is_leaving=True)  # type: ignore[attr-defined]
        ((_, taken),) = await two.broker.presence_take_over(one.info.id)  # type: ignore[attr-defined]
        assert await two.broker.presence_leave("room:a", [taken]) == [True]  # type: ignore[attr-defined]
        assert await one.broker.presence_leave("room:a", [entry]) == [False]  # type: ignore[attr-defined]
