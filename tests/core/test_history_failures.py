"""Each row of the table of failures on the page about rooms with history."""

from __future__ import annotations

import signal
from types import FunctionType

import pytest

from tests.core import test_history_fallback
from tests.core.test_history_over_redis import publish_at_last
from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, client_of, history_node
from tests.support.pages import rows
from tests.support.redis_engine import RedisEngine, running_engine
from wshub import BrokerError, BrokerUnavailable
from wshub.brokers.redis import RedisBroker

KEEPS_DATA = ("--appendonly", "yes")


@pytest.mark.failure("the engine is down")
async def test_without_an_engine_nobody_gets_a_message_and_what_was_stored_arrives_later(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with running_engine(redis_engine.kind, *KEEPS_DATA) as engine:
        async with history_node(RedisBroker(engine.url)) as node, client_of(node) as member:
            assert "Traceback" not in caplog.text
            await node.hub.publish("1", room=ROOM)
            engine.stop(signal.SIGKILL)
            await until(lambda: not node.hub.health().ok)
            with pytest.raises(BrokerUnavailable):
                await node.hub.publish("2", room=ROOM)
            rejected = node.hub.stats().cluster.rejected
            node.hub.broadcast("3", room=ROOM)
            assert node.hub.stats().cluster.rejected == rejected + 1
            engine.start()
            await publish_at_last(node, "4")
            await until(lambda: node.skip() or member.data[-1:] == ["4"])
            assert member.data == ["1", "4"]
            assert not member.gaps


@pytest.mark.failure("the engine closes a subscriber")
async def test_members_get_what_was_sent_while_the_subscriber_was_away(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(100):
            if number == 50:
                own_engine.command("CLIENT", "KILL", "TYPE", "pubsub")
            await publish_at_last(node, str(number))
        await until(lambda: node.skip() or len(member.data) >= 100)
        assert member.data == [str(number) for number in range(100)]
        assert not member.gaps
        assert node.hub.stats().history.caught_up >= 1


@pytest.mark.failure("the engine comes back without its data")
@pytest.mark.failure("the engine has evicted a position")
@pytest.mark.parametrize("cause", ["restart", "evicted"])
async def test_a_lost_history_begins_a_new_epoch_and_members_are_told(own_engine: RedisEngine, cause: str) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        if cause == "restart":
            own_engine.stop(signal.SIGKILL)
            own_engine.start()
        else:
            own_engine.command("DEL", *[key for key in own_engine.command("KEYS", "*") if ":position:" in key])
        await publish_at_last(node, "2")
        await until(lambda: node.skip() or member.data[-1:] == ["2"])
        assert member.gaps == ["epoch"]
        assert node.hub.stats().history.gaps == {"epoch": 1}


@pytest.mark.failure("the engine has no memory left")
async def test_a_full_engine_refuses_messages(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        own_engine.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        own_engine.command("CONFIG", "SET", "maxmemory", "1")
        rejected = node.hub.stats().cluster.rejected
        with pytest.raises(BrokerError, match="OOM"):
            await node.hub.publish("2", room=ROOM)
        assert node.hub.stats().cluster.rejected == rejected + 1
        own_engine.command("CONFIG", "SET", "maxmemory", "0")
        await node.hub.publish("3", room=ROOM)
        await until(lambda: member.data[-1:] == ["3"])
        assert member.data == ["1", "3"]
        assert not member.gaps


async def test_the_rights_that_the_page_names_suffice(own_engine: RedisEngine) -> None:
    commands = ["evalsha", "script|load", "time", "del", "hmget", "hset", "hincrby", "pexpire"]
    commands += ["xadd", "xlen", "xrange", "xrevrange", "xtrim"]
    plain = ["hello", "ping", "publish", "subscribe", "unsubscribe", "pubsub", "client"]
    rights = [f"+{command}" for command in (*commands, *plain)]
    own_engine.command("ACL", "SETUSER", "hub", "on", ">pw", "&*", "~*", "-@all", *rights)
    url = own_engine.url.replace("redis://", "redis://hub:pw@")
    async with history_node(RedisBroker(url)) as node, client_of(node) as member:
        for text in "12":
            await node.hub.publish(text, room=ROOM, idempotency_key=text)
        await until(lambda: member.data == ["1", "2"])
        found = await node.hub.history(ROOM, reverse=True)
        assert [entry.data for entry in found.publications] == ["2", "1"]


async def test_the_first_member_of_a_room_has_no_error(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with history_node(RedisBroker(redis_engine.url)) as node, client_of(node):
        assert [record for record in caplog.records if record.exc_info] == []


def test_every_row_of_the_page_has_a_test() -> None:
    tested = {
        mark.args[0]
        for function in (*globals().values(), *vars(test_history_fallback).values())
        if isinstance(function, FunctionType)
        for mark in getattr(function, "pytestmark", ())
        if mark.name == "failure"
    }
    assert {row[0] for row in rows("history.md", "When something fails")} == tested
