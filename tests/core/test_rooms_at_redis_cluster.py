"""Rooms with history and presence that the engines of a cluster keep: slots move, and engines fail over."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_node import until, until_in_time_of
from tests.support.history_nodes import LARGE, ROOM, HistoryNode, client_of, history_node, publish_at_last
from tests.support.presence_nodes import ROOM as PRESENCE_ROOM
from tests.support.presence_nodes import Events, are, node, pass_a_moment, told
from tests.support.redis_cluster import ClusterSetup, running_cluster, slot_of
from tests.support.redis_engine import ENGINES_AND_LOOPS, RedisEngine
from tests.support.redis_sentinel import wait_until
from tests.support.serving_hub import connected
from wshub import PresenceCounts
from wshub.brokers import redis_presences
from wshub.brokers.interface import room_channel
from wshub.brokers.redis import RedisBroker
from wshub.brokers.redis_partitions import Partitions, ShardedNames

SMALL = replace(LARGE, size=4)

shared_setup = pytest.mark.parametrize(("setup", "run"), ENGINES_AND_LOOPS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def setup(request: pytest.FixtureRequest) -> Iterator[ClusterSetup]:
    """Three engines with slots and one without."""
    with running_cluster(request.param, spare=1) as setup:
        yield setup


def names_of(prefix: str) -> ShardedNames:
    return ShardedNames(prefix, "hub", Partitions(128))


def slot_of_room(prefix: str, room: str = ROOM) -> int:
    return slot_of(names_of(prefix).encode(room_channel(room)))


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def pass_until(nodes: list[HistoryNode], condition: Callable[[], object]) -> None:
    """Wait until a condition holds, while time passes at the nodes."""

    def holds() -> bool:
        for each in nodes:
            each.skip()
        return bool(condition())

    await until(holds)


@shared_setup
async def test_members_at_all_nodes_get_one_order_in_many_rooms(setup: ClusterSetup) -> None:
    async with (
        history_node(RedisBroker(setup.url, prefix="order")) as one,
        history_node(RedisBroker(setup.url, prefix="order")) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        for number in range(300):
            one.hub.broadcast(f"one {number}", room=ROOM)
            two.hub.broadcast(f"two {number}", room=ROOM)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(first.data) == len(second.data) == 600)
        assert first.offsets == second.offsets
        assert first.data == second.data
        for name in ("one", "two"):
            assert [text for text in first.data if text.startswith(name)] == [f"{name} {n}" for n in range(300)]
        assert sum(one.hub.broker.stats().dropped.values()) == 0  # type: ignore[union-attr]


class Flow:
    """Publishes to the room by all methods, without waiting for answers."""

    def __init__(self, node: HistoryNode) -> None:
        self.node = node
        self.sent = 0
        self.with_key = 0
        self._task = asyncio.create_task(self._publish())
        self._calls: list[asyncio.Task[Any]] = []

    async def _publish(self) -> None:
        while True:
            for _ in range(3):
                self.node.hub.broadcast(str(self.sent), room=ROOM)
                self.sent += 1
            self._begin(self.node.hub.publish(str(self.sent), room=ROOM))
            self.sent += 1
            if self.sent % 40 == 0:
                self._begin(self.node.hub.publish("key", room=ROOM, idempotency_key=str(self.with_key)))
                self.with_key += 1
            await asyncio.sleep(0.005)

    def _begin(self, call: Coroutine[Any, Any, object]) -> None:
        self._calls.append(asyncio.create_task(call))

    async def stop(self) -> None:
        """Publish no more. Raise what a call has raised."""
        self._task.cancel()
        await asyncio.gather(*self._calls)


async def moves(setup: ClusterSetup, slot: int, flow: Flow, *, pause: float = 0) -> AsyncIterator[None]:
    """Move a slot from engine to engine. Yield when the next one has all keys, and does not own the slot yet.

    Args:
        setup: the cluster.
        slot: moves to an engine that the nodes have connections to, and to one that they have none to.
        flow: goes on before each move.
        pause: seconds behind each key of a history.
    """
    for target in (setup.engines[1], setup.engines[3], setup.engines[0]):
        source = setup.owner(slot)
        if source is target:
            continue
        await until(lambda count=flow.sent: flow.sent > count + 20)
        await in_thread(setup.begin_move, slot, source, target)
        for key in sorted(setup.keys(slot, source), key=lambda key: ":idempotency:" not in key):
            await in_thread(setup.move_key, key, source, target)
            if ":idempotency:" not in key:
                await asyncio.sleep(pause)
        yield
        await in_thread(setup.end_move, slot, source, target)


@pytest.mark.failure("a slot of a cluster moves")
@shared_setup
async def test_while_the_keys_of_a_slot_move_one_by_one_members_get_every_message_in_order(setup: ClusterSetup) -> None:
    slot = slot_of_room("keys")
    async with (
        history_node(RedisBroker(setup.url, prefix="keys"), LARGE) as one,
        history_node(RedisBroker(setup.url, prefix="keys"), LARGE) as two,
        client_of(two) as member,
    ):
        flow = Flow(one)
        async for _ in moves(setup, slot, flow, pause=0.1):
            # Members hear of messages before the new engine owns the slot.
            sent = flow.sent
            await until(lambda sent=sent: len(member.data) > sent + 100)
            history = await two.hub.history(ROOM, limit=1)
            assert history.position.offset > 1
        await flow.stop()
        last = await publish_at_last(one, "last")
        await pass_until([one, two], lambda: member.data[-1:] == ["last"])
        assert not member.gaps
        assert [offset for _, offset in member.offsets] == list(range(1, last.offset + 1))
        assert member.data.count("key") == flow.with_key
        # A message with a key may be overtaken, because the key is new.
        assert [text for text in member.data[:-1] if text != "key"] == [str(number) for number in range(flow.sent)]
        assert sum(one.hub.broker.stats().dropped.values()) == 0  # type: ignore[union-attr]


@shared_setup
async def test_while_a_slot_with_a_small_history_moves_members_are_told_of_what_they_miss(setup: ClusterSetup) -> None:
    slot = slot_of_room("small")
    async with (
        history_node(RedisBroker(setup.url, prefix="small"), SMALL) as one,
        history_node(RedisBroker(setup.url, prefix="small"), SMALL) as two,
        client_of(one) as near,
        client_of(two) as far,
    ):
        flow = Flow(one)
        async for _ in moves(setup, slot, flow):
            # Messages go to the new engine before it owns the slot.
            await until(lambda count=flow.sent: flow.sent > count + 200)
        await flow.stop()
        last = await publish_at_last(one, "last")
        await pass_until([one, two], lambda: near.data[-1:] == far.data[-1:] == ["last"])
        # All are stored, whatever members get of them.
        assert last.offset == flow.sent + flow.with_key + 1
        for member in (near, far):
            assert member.holes == []
            assert set(member.gaps) <= {"trimmed"}
            assert member.offsets == sorted(set(member.offsets), key=lambda each: each[1])
            assert {epoch for epoch, _ in member.offsets} == {last.epoch}


async def failed_over(setup: ClusterSetup, replica: RedisEngine) -> None:
    while "role:master" not in await in_thread(replica.command, "INFO", "replication"):
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "run"), [("valkey", "uvloop"), pytest.param("redis", "asyncio", marks=pytest.mark.long)], indirect=["run"]
)
async def test_a_failover_that_loses_messages_is_told_and_one_that_loses_none_is_not(kind: str) -> None:
    with running_cluster(kind, replicas=1) as setup:
        old, replica = setup.engines[0], setup.engines[3]
        setup.move_slot(slot_of_room("wshub"), old)
        async with (
            history_node(RedisBroker(setup.url)) as one,
            history_node(RedisBroker(setup.url)) as two,
            client_of(two) as member,
        ):
            for number in range(5):
                await one.hub.publish(str(number), room=ROOM)
            await in_thread(setup.failover, replica)
            await publish_at_last(one, "after")
            await pass_until([one, two], lambda: member.data[-1:] == ["after"])
            assert (member.gaps, member.data) == ([], ["0", "1", "2", "3", "4", "after"])
            # Back again, and this time the last messages never get to the engine that takes over.
            await in_thread(wait_for_replication, old)
            old.pause()
            replica.command("CLIENT", "KILL", "TYPE", "replica")
            for number in range(3):
                await one.hub.publish(f"lost {number}", room=ROOM)
            await pass_until([one, two], lambda: member.data[-1:] == ["lost 2"])
            replica.stop(signal.SIGKILL)
            old.resume()
            await failed_over(setup, old)
            # More than were lost: the offsets alone do not tell.
            for number in range(5):
                await publish_at_last(one, f"new {number}")
            await pass_until([one, two], lambda: member.gaps == ["epoch"])
            await publish_at_last(one, "end")
            await pass_until([one, two], lambda: member.data[-1:] == ["end"])
            history = await two.hub.history(ROOM)
            assert not any("lost" in str(each.data) for each in history.publications)


def wait_for_replication(replica: RedisEngine) -> None:
    wait_until(lambda: "master_link_status:up" in replica.command("INFO", "replication"))


# Presence


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a beat is dead after a fifth of a second by the engines' clocks."""
    monkeypatch.setattr(redis_presences, "DEAD_SECONDS", 0.2)


@shared_setup
async def test_all_nodes_see_all_members_while_their_slot_moves(setup: ClusterSetup) -> None:
    events = Events()
    names = names_of("seen")
    slot = names.partitions.slots[names.group(room_channel(PRESENCE_ROOM)) // 8 * 8]
    async with (
        node(events, RedisBroker(setup.url, prefix="seen")) as one,
        node(events, RedisBroker(setup.url, prefix="seen")) as two,
        connected(one.url + "ann"),
        connected(two.url + "böb"),
        connected(two.url + "ann"),
    ):
        await are(one, "ann", "ann", "böb")
        assert await one.hub.presence_counts(PRESENCE_ROOM) == PresenceCounts(connections=3, users=2)
        source = setup.owner(slot)
        target = setup.engines[(setup.engines.index(source) + 1) % 3]
        await in_thread(setup.begin_move, slot, source, target)
        keys = setup.keys(slot, source)
        assert len(keys) >= 6
        for key in keys[: len(keys) // 2]:
            await in_thread(setup.move_key, key, source, target)
        for each in (one, two):
            each.skip(4)
        await are(two, "ann", "ann", "böb")
        async with connected(one.url + "cid"):
            await until(lambda: one.hub.room_size(PRESENCE_ROOM) == 2)
            for key in keys[len(keys) // 2 :]:
                await in_thread(setup.move_key, key, source, target)
            await in_thread(setup.end_move, slot, source, target)
            await are(two, "ann", "ann", "böb", "cid")
        await until(lambda: one.hub.room_size(PRESENCE_ROOM) == 1)
        one.skip(6)
        await are(two, "ann", "ann", "böb")
        joins = {("join", name): 1 for name in ("ann", "böb", "cid")}
        await told(events, joins | {("leave", "cid"): 1}, one, two)


@pytest.mark.usefixtures("short_life")
@shared_setup
async def test_the_members_of_a_dead_node_leave_once_in_each_room(setup: ClusterSetup) -> None:
    events = Events()
    broker = RedisBroker(setup.url, prefix="dead")
    async with (
        node(events, RedisBroker(setup.url, prefix="dead")) as two,
        connected(two.url + "bob"),
        node(events, broker) as one,
        connected(one.url + "ann"),
        connected(one.url + "bob"),
    ):
        rooms = [f"other-{number}" for number in range(30)]
        for each in (one, two):
            each.hub.configure_room("other-*", presence=events.config())
        for room in rooms:
            one.hub.join_user("ann", room)
        await are(two, "ann", "bob", "bob")
        await until(lambda: events.counts()["join", "ann"] == 31)
        # Its beats end, and nothing else.
        presences = broker._session.presences  # type: ignore[union-attr]

        async def no_beat(**_: Any) -> Any:
            raise asyncio.CancelledError

        presences.beat = no_beat
        async with asyncio.timeout(20):
            while await two.users() != ["bob"]:
                two.skip(4)
                await asyncio.sleep(0.05)
        await until(lambda: events.counts()["leave", "ann"] == 31)
        del presences.beat
        # It was not dead: it enters its members again, in all rooms.
        await until(lambda: one.skip(0.2) or events.counts()["join", "ann"] == 62)
        await are(two, "ann", "bob", "bob")
        await pass_a_moment(one, two)
        assert events.counts()["leave", "ann"] == 31
        assert events.counts()["join", "bob"] == 1


@shared_setup
async def test_an_engine_that_has_lost_its_keys_is_told_again_and_nobody_joins_twice(setup: ClusterSetup) -> None:
    events = Events()
    async with (
        node(events, RedisBroker(setup.url, prefix="empty")) as one,
        node(events, RedisBroker(setup.url, prefix="empty")) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        await are(one, "ann", "bob")
        for engine in setup.engines[:3]:
            engine.command("FLUSHALL")
            for each in (one, two):
                each.skip(4)
            await are(one, "ann", "bob")
        await told(events, {("join", "ann"): 1, ("join", "bob"): 1}, one, two)


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md"


@pytest.mark.usefixtures("short_life")
@shared_setup
async def test_the_permissions_of_the_documentation_are_enough(
    setup: ClusterSetup, caplog: pytest.LogCaptureFixture
) -> None:
    documented = set(re.findall(r"\+[a-z]+(?:\|[a-z]+)?", (RedisBroker.__doc__ or "") + PAGE.read_text()))
    assert {"+evalsha", "+cluster|slots", "+asking"} <= documented
    for engine in setup.engines:
        rights = (
            *("resetkeys", "~wshub:*", "resetchannels", "&wshub:*", "-@all"),
            *sorted(documented - {"+sentinel", "+cluster"}),
        )
        engine.command("ACL", "SETUSER", "rooms", "on", ">pw", *rights)
    url = setup.url.replace("://", "://rooms:pw@")
    events = Events()
    async with (
        history_node(RedisBroker(url)) as one,
        client_of(one) as member,
        node(events, RedisBroker(url)) as two,
    ):
        await one.hub.publish("1", room=ROOM, idempotency_key="key")
        one.hub.broadcast("2", room=ROOM)
        await until(lambda: member.data == ["1", "2"])
        assert len((await one.hub.history(ROOM)).publications) == 2
        async with node(events, RedisBroker(url)) as three, connected(three.url + "ann"):
            await are(two, "ann")
            assert (await two.hub.presence_counts(PRESENCE_ROOM)).users == 1
        await until_in_time_of(two, lambda: ("leave", "ann") in events.log)
        await two.hub.broker.presence_own()  # type: ignore[union-attr]
    assert "NOPERM" not in caplog.text
