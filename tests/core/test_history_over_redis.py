"""Rooms with history whose messages a Redis or Valkey engine keeps, at several nodes and while it fails."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal

import pytest

from tests.support.broker_node import until
from tests.support.history_nodes import LARGE, ROOM, Crowd, client_of, history_node, publish_at_last
from tests.support.redis_engine import RedisEngine
from tests.support.serving_hub import connected
from tests.support.tcp_proxy import proxy_to
from wshub import HistoryConfig, Hub, Position
from wshub.brokers.redis import RedisBroker
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain


async def test_members_at_all_nodes_get_one_order(redis_engine: RedisEngine) -> None:
    prefix = secrets.token_hex(4)
    async with (
        history_node(RedisBroker(redis_engine.url, prefix=prefix)) as one,
        history_node(RedisBroker(redis_engine.url, prefix=prefix)) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        for number in range(500):
            one.hub.broadcast(f"one {number}", room=ROOM)
            two.hub.broadcast(f"two {number}", room=ROOM)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(first.data) == len(second.data) == 1000)
        assert first.offsets == second.offsets
        assert first.data == second.data


async def test_a_hub_that_starts_later_reads_the_same(redis_engine: RedisEngine) -> None:
    prefix = secrets.token_hex(4)
    async with history_node(RedisBroker(redis_engine.url, prefix=prefix)) as one:
        for number in range(3):
            await one.hub.publish(str(number), room=ROOM, publisher="ann")
    async with Hub(broker=RedisBroker(redis_engine.url, prefix=prefix)) as hub:
        hub.configure_room(ROOM, history=HistoryConfig())
        await hub.broker_started()
        history = await hub.history(ROOM)
        assert [(entry.data, entry.publisher) for entry in history.publications] == [
            ("0", "ann"),
            ("1", "ann"),
            ("2", "ann"),
        ]


async def test_an_engine_that_comes_back_empty_begins_an_epoch_and_members_are_told(own_engine: RedisEngine) -> None:
    async with (
        history_node(RedisBroker(own_engine.url)) as one,
        history_node(RedisBroker(own_engine.url)) as two,
        client_of(two) as member,
    ):
        await one.hub.publish("1", room=ROOM)
        await until(lambda: member.data == ["1"])
        own_engine.stop()
        own_engine.start()
        await publish_at_last(one, "2")
        await until(lambda: two.skip() or member.data == ["1", "2"])
        assert member.gaps == ["epoch"]
        assert [offset for _, offset in member.offsets] == [1, 1]
        assert len({epoch for epoch, _ in member.offsets}) == 2


async def test_an_engine_that_was_flushed_does_not_mix_two_histories(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(3):
            await node.hub.publish(str(number), room=ROOM)
        # The position alone is lost, as if it had been evicted: the stream says nothing then.
        own_engine.command("DEL", *[key for key in own_engine.command("KEYS", "*") if ":position:" in key])
        await node.hub.publish("new", room=ROOM)
        await until(lambda: member.data[-1:] == ["new"])
        assert member.gaps == ["epoch"]
        history = await node.hub.history(ROOM)
        assert [(entry.offset, entry.data) for entry in history.publications] == [(1, "new")]


async def test_members_are_told_that_the_stream_alone_was_lost(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(3):
            await node.hub.publish(str(number), room=ROOM)
        await until(lambda: len(member.data) == 3)
        assert own_engine.command("DEL", *[key for key in own_engine.command("KEYS", "*") if ":history:" in key]) == 1
        last = Position(3, member.offsets[0][0])
        # Somebody who has all of it has missed nothing, and somebody who has not is told.
        for offset, gaps in ((3, []), (2, ["trimmed"]), (0, ["trimmed"])):
            async with client_of(node, Position(offset, last.epoch)) as late:
                assert (late.data, late.gaps, late.position) == ([], gaps, last)
        await node.hub.publish("new", room=ROOM)
        await until(lambda: member.data[-1:] == ["new"])
        assert not member.gaps
        history = await node.hub.history(ROOM)
        assert [(entry.offset, entry.data) for entry in history.publications] == [(4, "new")]


async def test_a_broadcast_before_the_broker_has_started_is_counted_and_later_ones_are_stored(
    redis_engine: RedisEngine,
) -> None:
    hub = Hub(broker=RedisBroker(redis_engine.url, prefix=secrets.token_hex(4)))
    hub.configure_room(ROOM, history=HistoryConfig())
    for _ in range(2):
        # The second time, the broker has been closed.
        async with hub:
            hub.broadcast("too early", room=ROOM)
            await hub.broker_started()
            cluster = hub.stats().cluster
            assert cluster is not None
            assert cluster.rejected == 1
            for number in range(3):
                hub.broadcast(str(number), room=ROOM)
            await hub.publish("last", room=ROOM)
            history = await hub.history(ROOM)
            assert [entry.data for entry in history.publications][-4:] == ["0", "1", "2", "last"]
    assert history.position.offset == 8


async def test_other_settings_count_from_the_next_broadcast_on(redis_engine: RedisEngine) -> None:
    async with Hub(broker=RedisBroker(redis_engine.url, prefix=secrets.token_hex(4))) as hub:
        hub.configure_room("*", history=HistoryConfig(size=5))
        await hub.broker_started()
        for number in range(10):
            hub.broadcast(str(number), room=ROOM)
        hub.configure_room(ROOM, history=HistoryConfig(size=2))
        assert [entry.offset for entry in (await hub.history(ROOM)).publications] == [6, 7, 8, 9, 10]
        hub.broadcast("10", room=ROOM)
        assert [entry.offset for entry in (await hub.history(ROOM)).publications] == [10, 11]
        hub.configure_room(ROOM)
        hub.broadcast("not kept", room=ROOM)
        hub.configure_room(ROOM, history=HistoryConfig(size=2))
        assert [entry.data for entry in (await hub.history(ROOM)).publications] == ["9", "10"]


async def test_what_is_sent_while_the_engine_forgets_its_scripts_arrives_in_order(own_engine: RedisEngine) -> None:
    async with history_node(RedisBroker(own_engine.url), LARGE) as node, client_of(node) as member:
        publishing = []
        for number in range(1000):
            if number % 50 == 0:
                own_engine.command("SCRIPT", "FLUSH")
            if number % 7 == 0:
                publishing.append(asyncio.create_task(node.hub.publish(str(number), room=ROOM)))
                # The task sends it before the next one.
                await asyncio.sleep(0)
            else:
                node.hub.broadcast(str(number), room=ROOM)
            if number % 5 == 0:
                # Answers arrive while later messages are under way.
                await asyncio.sleep(0)
            if number % 100 == 60:
                await node.hub.history(ROOM)
        positions = [published.position for published in await asyncio.gather(*publishing)]
        assert [position and position.offset for position in positions] == list(range(1, 1001, 7))
        await until(lambda: len(member.data) >= 1000)
        assert member.data == [str(number) for number in range(1000)]
        broker = node.hub.broker.stats()  # type: ignore[union-attr]
        assert not any(broker.dropped.values())
        assert broker.sent >= 1000


async def test_a_script_that_cannot_be_loaded_again_is_told(own_engine: RedisEngine) -> None:
    rights = ["on", ">pw", "&*", "~*", "+@all"]
    own_engine.command("ACL", "SETUSER", "hub", *rights)
    url = own_engine.url.replace("redis://", "redis://hub:pw@")
    async with history_node(RedisBroker(url)) as node, client_of(node) as member:
        await node.hub.publish("1", room=ROOM)
        own_engine.command("ACL", "SETUSER", "hub", "-script")
        own_engine.command("SCRIPT", "FLUSH")
        node.hub.broadcast("lost", room=ROOM)
        with pytest.raises(BrokerError, match="NOSCRIPT"):
            await node.hub.publish("lost", room=ROOM)
        with pytest.raises(BrokerUnavailable):
            await node.hub.history(ROOM)
        broker = node.hub.broker.stats()  # type: ignore[union-attr]
        assert broker.dropped["refused"] == 2
        own_engine.command("ACL", "SETUSER", "hub", "+script")
        await node.hub.publish("2", room=ROOM)
        await until(lambda: len(member.data) == 2)
        assert member.data == ["1", "2"]


async def test_a_connection_that_ends_while_scripts_are_loaded_ends_what_waits(own_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        async with history_node(RedisBroker(f"redis://127.0.0.1:{proxy.port}")) as node:
            await node.hub.publish("first", room=ROOM)
            calls = node.hub.broker._session.histories._calls  # type: ignore[union-attr]
            own_engine.command("SCRIPT", "FLUSH")
            proxy.to_client.clear()
            publishing = [asyncio.create_task(node.hub.publish(f"sent {number}", room=ROOM)) for number in range(3)]
            await asyncio.sleep(0)
            proxy.to_client.set()
            await until(lambda: calls.is_reloading or all(task.done() for task in publishing))
            publishing += [asyncio.create_task(node.hub.publish(f"held {number}", room=ROOM)) for number in range(3)]
            await asyncio.sleep(0)
            for connection in list(proxy.open_connections()):
                connection.reset()
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
            assert not calls._refused
            assert not calls._held
            await publish_at_last(node, "last")
            found = await node.hub.history(ROOM)
            stored = {entry.position: entry.data for entry in found.publications}
            for outcome in outcomes:
                if isinstance(outcome, BrokerUnavailable):
                    continue
                assert isinstance(outcome, BrokerUncertain) or outcome.position in stored
            broker = node.hub.broker.stats()  # type: ignore[union-attr]
            failed = [outcome for outcome in outcomes if isinstance(outcome, BrokerUnavailable)]
            assert broker.dropped["disconnected"] >= len(failed)


async def test_an_engine_that_does_not_allow_keys_says_so(own_engine: RedisEngine, caplog) -> None:
    own_engine.command("ACL", "SETUSER", "plain", "on", ">pw", "&*", "-@all", "+hello", "+ping", "+publish")
    own_engine.command("ACL", "SETUSER", "plain", "+subscribe", "+unsubscribe", "+pubsub")
    url = own_engine.url.replace("redis://", "redis://plain:pw@")
    async with Hub(broker=RedisBroker(url)) as hub:
        hub.configure_room(ROOM, history=HistoryConfig())
        await hub.broker_started()
        try:
            await hub.publish("1", room=ROOM)
        except BrokerError as error:
            assert "NOPERM" in str(error)
        else:
            raise AssertionError("the engine has allowed it")
        assert await hub.publish("1", room="plain") is not None


async def test_whatever_fails_every_client_gets_every_message_once_and_in_order(own_engine: RedisEngine) -> None:
    """Clients come and go at two nodes, while subscribers are killed, and connections reset, held and lost."""
    chance = random.Random(11)
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        brokers = [RedisBroker(own_engine.url), RedisBroker(f"redis://127.0.0.1:{proxy.port}")]
        async with history_node(brokers[0], LARGE) as one, history_node(brokers[1], LARGE) as two:
            nodes = (one, two)
            crowd = Crowd(chance, nodes, 4)
            await crowd.come()
            for step in range(60):
                for _ in range(chance.randrange(40)):
                    chance.choice(nodes).hub.broadcast(str(step), room=ROOM)
                fault = chance.randrange(6)
                if fault == 0:
                    own_engine.command("CLIENT", "KILL", "TYPE", "pubsub")
                elif fault == 1:
                    proxy.heal()
                    for connection in list(proxy.open_connections()):
                        connection.reset()
                elif fault == 2:
                    proxy.to_client.clear()
                elif fault == 3:
                    proxy.heal()
                else:
                    await crowd.cut_one_off()
                await asyncio.sleep(0.02)
            proxy.heal()
            last = await crowd.until_all_have_all()
            for client in crowd.clients:
                offsets = [offset for _, offset in client.offsets]
                assert offsets == list(range(offsets[0], last.offset + 1))
                assert not client.gaps
            await crowd.leave()


async def test_a_room_that_its_members_have_left_during_an_outage_is_not_read_any_more(
    own_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node:
        histories = node.hub._histories
        assert histories is not None
        async with client_of(node):
            own_engine.stop(signal.SIGKILL)
            await until(lambda: histories._failed)
        await until(lambda: not node.hub.room_size(ROOM))
        own_engine.start()
        await until(lambda: node.skip() or node.hub.health().ok)
        await until(lambda: not histories._failed and not histories._due and not histories._readers)
        async with client_of(node) as member:
            await publish_at_last(node, "for the new member")
            await until(lambda: member.data == ["for the new member"])
    assert "could not be read" not in caplog.text


async def test_a_history_of_before_is_not_read_when_the_room_has_members_again(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with history_node(RedisBroker(redis_engine.url, prefix=secrets.token_hex(4))) as node:
        histories, cluster = node.hub._histories, node.hub._cluster
        assert histories is not None
        assert cluster is not None
        async with client_of(node):
            before = histories.cursors[ROOM]
        async with connected(node.url):
            await until(lambda: not histories.cursors and node.hub.connection_count == 1)
            node.clock.skipped += 60
            cluster.sweep(node.hub.now())
            before.interrupt()
            next(iter(node.hub.connections)).join(ROOM)
            assert histories.cursors[ROOM] is not before
            await until(lambda: histories.cursors[ROOM].is_live)
    assert "could not be read" not in caplog.text


async def test_a_client_that_comes_back_before_the_node_has_noticed_a_loss_is_told_the_new_epoch(
    own_engine: RedisEngine,
) -> None:
    async with history_node(RedisBroker(own_engine.url)) as node, client_of(node) as member:
        for number in range(3):
            await publish_at_last(node, str(number))
        await until(lambda: len(member.data) == 3)
        own_engine.command("FLUSHALL")
        async with client_of(node, Position(1, member.offsets[0][0])) as late:
            assert late.gaps == ["epoch"]
            await publish_at_last(node, "anew")
            await until(lambda: member.data[-1:] == late.data[-1:] == ["anew"])
        assert member.gaps == ["epoch"]
