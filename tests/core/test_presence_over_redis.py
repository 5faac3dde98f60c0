"""The members of a room, which a Redis or Valkey engine keeps."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import pytest

from tests.support.broker_node import until
from tests.support.presence_nodes import ROOM, Events, are, node
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import connected
from tests.support.tcp_proxy import proxy_to
from wshub import PresenceCounts
from wshub.brokers import redis_presences
from wshub.brokers.redis import RedisBroker


async def test_all_nodes_see_all_members_and_one_calls_the_functions(redis_engine: RedisEngine) -> None:
    events, prefix = Events(), secrets.token_hex(4)
    async with (
        node(events, RedisBroker(redis_engine.url, prefix=prefix)) as one,
        node(events, RedisBroker(redis_engine.url, prefix=prefix)) as two,
        connected(one.url + "ann"),
        connected(two.url + "böb"),
        connected(two.url + "ann"),
    ):
        await are(one, "ann", "ann", "böb")
        await are(two, "ann", "ann", "böb")
        assert await one.hub.presence_counts(ROOM) == PresenceCounts(connections=3, users=2)
        assert events.counts() == {("join", "ann"): 1, ("join", "böb"): 1}


async def test_many_members_are_read_in_pages(redis_engine: RedisEngine) -> None:
    events, prefix = Events(), secrets.token_hex(4)
    async with node(events, RedisBroker(redis_engine.url, prefix=prefix)) as one, contextlib.AsyncExitStack() as stack:
        names = [f"user-{number}" for number in range(600)]
        for name in names:
            await stack.enter_async_context(connected(one.url + name))
        await until(lambda: len(events.log) == 600)
        assert await one.users() == sorted(names)
        page = await one.hub.presence(ROOM, limit=50)
        assert 50 <= len(page.members) < 300
        assert page.cursor


async def test_a_user_who_moves_to_another_node_has_neither_left_nor_joined(redis_engine: RedisEngine) -> None:
    events, prefix = Events(), secrets.token_hex(4)
    async with (
        node(events, RedisBroker(redis_engine.url, prefix=prefix)) as one,
        node(events, RedisBroker(redis_engine.url, prefix=prefix)) as two,
    ):
        async with connected(one.url + "ann"):
            await are(two, "ann")
        async with connected(two.url + "ann"):
            await are(one, "ann", "ann")
            one.skip(6)
            await are(one, "ann")
            assert events.log == [("join", "ann")]
        two.skip(0)
        await until(lambda: two.hub.room_size(ROOM) == 0)
        two.skip(6)
        await until(lambda: events.log[1:] == [("leave", "ann")])


@pytest.fixture
def short_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a beat is dead after a fifth of a second by the engine's clock."""
    monkeypatch.setattr(redis_presences, "DEAD_SECONDS", 0.2)


@pytest.mark.usefixtures("short_life")
async def test_the_members_of_a_dead_node_leave_once_and_join_when_it_was_not_dead(own_engine: RedisEngine) -> None:
    events = Events()
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            node(events, RedisBroker(f"redis://127.0.0.1:{proxy.port}")) as one,
            node(events, RedisBroker(own_engine.url)) as two,
            node(events, RedisBroker(own_engine.url)) as three,
            connected(one.url + "ann"),
            connected(one.url + "bob"),
            connected(two.url + "bob"),
        ):
            await are(three, "ann", "bob", "bob")
            proxy.to_server.clear()
            async with asyncio.timeout(10):
                while await two.users() != ["bob"]:
                    for each in (two, three):
                        each.skip(4)
                    await asyncio.sleep(0.02)
            await until(lambda: ("leave", "ann") in events.log)
            assert events.counts() == {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "ann"): 1}
            proxy.heal()
            await until(lambda: one.skip(0.2) or events.counts()["join", "ann"] == 2)
            await are(three, "ann", "bob", "bob")
            assert events.counts()["leave", "ann"] == 1


async def test_the_members_of_a_node_that_closes_may_come_back_at_another_one(redis_engine: RedisEngine) -> None:
    events, prefix = Events(), secrets.token_hex(4)
    async with node(events, RedisBroker(redis_engine.url, prefix=prefix)) as two:
        async with (
            node(events, RedisBroker(redis_engine.url, prefix=prefix)) as one,
            connected(one.url + "ann"),
            connected(one.url + "bob"),
        ):
            await are(two, "ann", "bob")
        two.skip(4)
        await asyncio.sleep(0.02)
        async with connected(two.url + "ann"):
            await are(two, "ann", "ann", "bob")
            await until(lambda: two.skip(0.5) or len(events.log) == 3)
            await are(two, "ann")
            assert events.counts() == {("join", "ann"): 1, ("join", "bob"): 1, ("leave", "bob"): 1}


async def test_an_engine_that_comes_back_empty_is_told_again_and_nobody_joins_twice(own_engine: RedisEngine) -> None:
    events = Events()
    async with (
        node(events, RedisBroker(own_engine.url)) as one,
        node(events, RedisBroker(own_engine.url)) as two,
        connected(one.url + "ann"),
        connected(two.url + "bob"),
    ):
        await are(one, "ann", "bob")
        own_engine.command("FLUSHALL")
        for each in (one, two):
            each.skip(4)
        await are(one, "ann", "bob")
        assert events.counts() == {("join", "ann"): 1, ("join", "bob"): 1}
