"""Each row of the table of failures on the page about rooms with history."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from types import FunctionType

import pytest

from tests.brokers import test_workers_histories
from tests.core import (
    test_history_failures_over_nats,
    test_history_fallback,
    test_rooms_at_redis_cluster,
    test_rooms_behind_sentinels,
)
from tests.support.broker_node import until
from tests.support.history_nodes import (
    LARGE,
    ROOM,
    Client,
    as_json,
    client_of,
    gap_as_json,
    history_node,
    publish_at_last,
)
from tests.support.pages import rows
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.tcp_proxy import proxy_to
from wshub import BrokerError, BrokerUnavailable, BrokerUncertain, HistoryConfig, Position
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import room_channel
from wshub.brokers.redis import RedisBroker

# By default a write may wait until an earlier one is on the disk, and be lost.
KEEPS_DATA = ("--appendonly", "yes", "--appendfsync", "always")


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


@pytest.mark.failure("a node cannot reach the engine")
async def test_a_node_that_was_cut_off_reads_what_was_sent_elsewhere(own_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}")) as node,
            history_node(RedisBroker(own_engine.url)) as other,
            client_of(node) as member,
        ):
            proxy.refuses = True
            for connection in list(proxy.open_connections()):
                connection.reset()
            await until(lambda: not node.hub.health().ok)
            with pytest.raises(BrokerUnavailable):
                await node.hub.publish("nowhere", room=ROOM)
            for number in range(50):
                await other.hub.publish(str(number), room=ROOM)
            assert not member.data
            proxy.heal()
            await until(lambda: node.skip() or len(member.data) == 50)
            assert member.data == [str(number) for number in range(50)]
            assert not member.gaps


@pytest.mark.failure("a node was away for longer than messages are kept")
async def test_members_are_told_of_messages_that_are_not_kept_any_more(own_engine: RedisEngine) -> None:
    few = HistoryConfig(size=5, encode=as_json, encode_gap=gap_as_json)
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}"), few) as node,
            history_node(RedisBroker(own_engine.url), few) as other,
            client_of(node) as member,
        ):
            proxy.refuses = True
            for connection in list(proxy.open_connections()):
                connection.reset()
            for number in range(20):
                await other.hub.publish(str(number), room=ROOM)
            proxy.heal()
            await until(lambda: node.skip() or member.data[-1:] == ["19"])
            assert member.data == ["15", "16", "17", "18", "19"]
            assert member.gaps == ["trimmed"]
            assert node.hub.stats().history.gaps == {"trimmed": 1}


@pytest.mark.failure("the answer to a message is lost")
async def test_a_message_whose_answer_is_lost_is_stored_once_by_its_key(own_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}")) as node,
            history_node(RedisBroker(own_engine.url)) as other,
            client_of(other) as member,
        ):
            await node.hub.publish("1", room=ROOM)
            (publisher,) = proxy.open_connections(contains=b":publisher")
            publisher.to_client.is_black_hole = True
            publishing = asyncio.create_task(node.hub.publish("2", room=ROOM, idempotency_key="key"))
            await until(lambda: len(member.data) == 2)
            rejected = node.hub.stats().cluster.rejected
            publisher.reset()
            with pytest.raises(BrokerUncertain):
                await publishing
            assert node.hub.stats().cluster.rejected == rejected + 1
            await until(lambda: node.skip() or node.hub.health().ok)
            published = await node.hub.publish("2", room=ROOM, idempotency_key="key")
            assert published.is_duplicate
            assert published.position == member.position
            await node.hub.publish("3", room=ROOM)
            await until(lambda: len(member.data) == 3)
            assert member.data == ["1", "2", "3"]


@pytest.mark.failure("the engine stands still")
async def test_messages_to_an_engine_that_stands_still_arrive_later(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        own_engine.pause()
        node.hub.broadcast("2", room=ROOM)
        publishing = asyncio.create_task(node.hub.publish("3", room=ROOM))
        await asyncio.sleep(0)
        node.clock.skipped += 6
        node.hub._cluster.sweep(node.hub.now())  # type: ignore[union-attr]
        with pytest.raises(BrokerUncertain):
            await publishing
        own_engine.resume()
        await until(lambda: len(member.data) == 3)
        assert member.data == ["1", "2", "3"]
        assert not member.gaps


@pytest.mark.failure("a node stands still")
async def test_members_of_a_node_that_stands_still_get_everything_later(own_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with (
            history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}"), LARGE) as node,
            history_node(RedisBroker(own_engine.url), LARGE) as other,
            client_of(node) as member,
        ):
            proxy.to_client.clear()
            texts = [f"{number} {'x' * 1000}" for number in range(500)]
            for text in texts:
                await other.hub.publish(text, room=ROOM)
            assert not member.data
            proxy.to_client.set()
            await until(lambda: node.skip() or len(member.data) == 500)
            assert member.data == texts
            assert not member.gaps


@pytest.mark.failure("a node dies")
async def test_clients_of_a_node_that_has_died_recover_at_another_one(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as other:
        async with history_node(RedisBroker(own_engine.url)) as node:
            client = Client()
            await client.come_back(node.url)
            await node.hub.publish("1", room=ROOM)
            await until(lambda: client.data == ["1"])
            await client.leave()
        await other.hub.publish("2", room=ROOM)
        await client.come_back(other.url)
        await other.hub.publish("3", room=ROOM)
        await until(lambda: client.data == ["1", "2", "3"])
        assert not client.gaps
        await client.leave()


@pytest.mark.failure("the engine has forgotten its scripts")
async def test_messages_that_the_engine_has_refused_without_its_scripts_are_stored(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(4):
            own_engine.command("SCRIPT", "FLUSH")
            node.hub.broadcast(str(2 * number), room=ROOM)
            await node.hub.publish(str(2 * number + 1), room=ROOM)
        await until(lambda: len(member.data) == 8)
        assert member.data == list("01234567")
        assert node.hub.stats().cluster.rejected == 0


@pytest.mark.failure("two nodes run different versions of wshub")
async def test_a_message_of_a_later_version_is_left_out_at_an_old_node(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = secrets.token_hex(4)
    broker = RedisBroker(redis_engine.url, prefix=prefix)
    async with history_node(broker) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        later = bytearray(encode_envelope("room", ROOM, b"2"))
        later[0] += 1
        broker.send_stored(room_channel(ROOM), bytes(later), HistoryConfig())
        await until(lambda: node.hub.stats().cluster.ignored.unreadable == 1)
        await node.hub.publish("3", room=ROOM)
        await until(lambda: len(member.data) == 2)
        assert member.data == ["1", "3"]
        assert [offset for _, offset in member.offsets] == [1, 3]
        assert "message 2" in caplog.text
        async with client_of(node, Position(0, member.offsets[0][0])) as late:
            assert late.data == ["1", "3"]


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
    modules = (
        *(sys.modules[__name__], test_history_fallback, test_workers_histories),
        *(test_history_failures_over_nats, test_rooms_at_redis_cluster, test_rooms_behind_sentinels),
    )
    tested = {
        mark.args[0]
        for module in modules
        for function in vars(module).values()
        if isinstance(function, FunctionType)
        for mark in getattr(function, "pytestmark", ())
        if mark.name == "failure"
    }
    assert {row[0] for row in rows("history.md", "When something fails")} == tested
