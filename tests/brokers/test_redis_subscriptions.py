"""Subscriptions at a Redis engine: many, refused, taken away."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.broker_node import joined, until
from tests.support.redis_engine import RedisEngine
from tests.support.tcp_proxy import ProxiedConnection, TcpProxy, proxy_to
from wshub.brokers.redis import RedisBroker
from wshub.brokers.redis_commands import pack_command
from wshub.brokers.redis_subscription_count import SubscriptionCount
from wshub.errors import BrokerUnavailable


def subscribers(engine: RedisEngine, channel: str) -> int:
    """Return the number of connections that have subscribed to a channel of the hub ``hub``."""
    return engine.command("PUBSUB", "NUMSUB", f"wshub:hub:{channel}")[1]


async def connection_of(proxy: TcpProxy, role: str) -> ProxiedConnection:
    """Return the open connection of a broker that subscribes, or that publishes, once there is one."""
    await until(lambda: list(proxy.open_connections(f":{role}".encode())))
    (connection,) = proxy.open_connections(f":{role}".encode())
    return connection


def user_with_channels(engine: RedisEngine, *channels: str) -> str:
    """Return the URL of a user that may use these channels of the hub only."""
    engine.command(
        *("ACL", "SETUSER", "some", "reset", "on", ">pw", "+@all"),
        *(f"&wshub:hub:{channel}" for channel in ("all", "node:*", "probe:*", *channels)),
    )
    return f"redis://some:pw@127.0.0.1:{engine.port}"


@pytest.mark.one_loop
async def test_a_hundred_thousand_channels_cost_a_node_less_than_five_seconds(redis_engine: RedisEngine) -> None:
    before = redis_engine.command("INFO", "commandstats")
    broker = RedisBroker(redis_engine.url)
    async with joined(broker) as node:
        channels = [f"room:{number}" for number in range(100_000)]
        began = time.process_time()
        for channel in channels:
            broker.subscribe(channel)
        await broker.subscribed(channels[-1])
        await asyncio.gather(*(broker.subscribed(channel) for channel in channels[::100]))
        while len(redis_engine.command("PUBSUB", "CHANNELS", "wshub:hub:room:*")) < 100_000:
            await asyncio.sleep(0.01)
        assert time.process_time() - began < 5
        assert broker.stats().subscriptions == 100_002
        assert calls(redis_engine.command("INFO", "commandstats"), "subscribe") - calls(before, "subscribe") <= 210
        # Each of them works, and all can be left.
        for number in range(0, 100_000, 1000):
            broker.send(f"room:{number}", b"%d" % number)
        await until(lambda: len(node.received) == 100)
        for channel in channels:
            broker.unsubscribe(channel)
        while redis_engine.command("PUBSUB", "CHANNELS", "wshub:hub:room:*"):
            await asyncio.sleep(0.01)


def calls(statistics: str, command: str) -> int:
    """Return how often the engine has carried out a command."""
    for line in statistics.splitlines():
        if line.startswith(f"cmdstat_{command}:calls="):
            return int(line.split("=")[1].split(",")[0])
    return 0


async def test_changes_of_one_iteration_leave_together(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url)) as node:
        before = redis_engine.command("INFO", "commandstats")
        for number in range(300):
            node.broker.subscribe(f"room:{number}")
        for number in range(200):
            # They were never sent.
            node.broker.unsubscribe(f"room:{number}")
        await node.broker.subscribed("room:299")
        after = redis_engine.command("INFO", "commandstats")
        assert calls(after, "subscribe") - calls(before, "subscribe") == 1
        assert calls(after, "unsubscribe") == calls(before, "unsubscribe")
        assert subscribers(redis_engine, "room:199") == 0
        assert subscribers(redis_engine, "room:200") == 1


async def test_a_refused_channel_is_tried_again_and_heals(redis_engine: RedisEngine) -> None:
    broker = RedisBroker(user_with_channels(redis_engine, "room:good*"))
    async with joined(broker, "room:good") as node:
        # The engine refuses the whole command for the sake of one channel.
        channels = [f"room:good{number}" for number in range(300)]
        for channel in [*channels[:150], "room:bad", *channels[150:]]:
            broker.subscribe(channel)
        with pytest.raises(BrokerUnavailable, match="NOPERM"):
            await broker.subscribed("room:bad")
        await asyncio.gather(*(broker.subscribed(channel) for channel in channels))
        # It is known by now.
        with pytest.raises(BrokerUnavailable, match="NOPERM"):
            await broker.subscribed("room:bad")
        assert broker.health().ok
        node.skip(1)
        while redis_engine.command("ACL", "LOG", "1") == []:
            await asyncio.sleep(0.01)
        redis_engine.command("ACL", "SETUSER", "some", "&wshub:hub:room:bad")
        node.skip(60)
        await until(lambda: subscribers(redis_engine, "room:bad") == 1)
        await broker.subscribed("room:bad")
        # The hub was told once, however often it was tried.
        assert node.interruptions == [(["room:bad"], "refused")]
        assert broker.stats().interruptions == {"refused": 1}
        await until(lambda: node.restored_channels == {"room:bad"})


async def test_a_refused_channel_can_be_left(redis_engine: RedisEngine) -> None:
    broker = RedisBroker(user_with_channels(redis_engine))
    async with joined(broker) as node:
        broker.subscribe("room:bad")
        with pytest.raises(BrokerUnavailable, match="NOPERM"):
            await broker.subscribed("room:bad")
        broker.unsubscribe("room:bad")
        redis_engine.command("ACL", "SETUSER", "some", "allchannels")
        node.skip(100)
        await node.join("room:next")
        assert subscribers(redis_engine, "room:bad") == 0


async def test_an_engine_that_refuses_to_unsubscribe_is_logged_once(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    redis_engine.command("ACL", "SETUSER", "stays", "reset", "on", ">pw", "+@all", "-unsubscribe", "allchannels")
    broker = RedisBroker(f"redis://stays:pw@127.0.0.1:{redis_engine.port}")
    async with joined(broker, "room:a", "room:b") as node:
        for channel in ("room:a", "room:b"):
            broker.unsubscribe(channel)
            await node.join("room:c" + channel)
        broker.subscribe("room:a")
        await broker.subscribed("room:a")
        assert len([record for record in caplog.records if "refuses to unsubscribe" in record.getMessage()]) == 1
        assert broker.health().ok


async def test_a_subscription_that_the_engine_takes_away_is_made_again(redis_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a", "room:b") as node, joined(RedisBroker(redis_engine.url)) as other:
            connection = await connection_of(proxy, "subscriber")
            connection.send_to_server(b"*2\r\n$11\r\nUNSUBSCRIBE\r\n$16\r\nwshub:hub:room:a\r\n")
            await until(lambda: "room:a" in node.restored_channels)
            assert node.interruptions == [(["room:a"], "unsubscribed")]
            assert broker.stats().interruptions == {"unsubscribed": 1}
            other.broker.send("room:a", b"1")
            await until(lambda: node.received == [b"1"])
            # All at once, those of the node itself too.
            connection.send_to_server(b"*1\r\n$11\r\nUNSUBSCRIBE\r\n")
            await until(lambda: {"room:a", "room:b", "all", f"node:{node.info.id}"} <= node.restored_channels)
            for channel in ("room:a", "room:b", "all", f"node:{node.info.id}"):
                assert subscribers(redis_engine, channel) >= 1
            node.skip(6)
            await until(lambda: broker.health().ok)


async def lose(proxy: TcpProxy, *rooms: str) -> None:
    """Have the engine lose the subscriptions of the broker behind a proxy to some rooms, without a word."""
    connection = await connection_of(proxy, "subscriber")
    connection.to_client.is_black_hole = True
    names = [f"wshub:hub:room:{room}".encode() for room in rooms]
    expected = connection.to_client.bytes_seen + sum(len(name) + 30 for name in names)
    connection.send_to_server(pack_command(b"UNSUBSCRIBE", *names))
    await until(lambda: connection.to_client.bytes_seen >= expected)
    connection.to_client.is_black_hole = False


async def test_subscriptions_that_are_lost_without_a_word_are_found_at_the_next_probe(
    redis_engine: RedisEngine,
) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with (
            joined(broker, *(f"room:{number}" for number in range(2000))) as node,
            joined(RedisBroker(redis_engine.url), "room:7") as other,
        ):
            for lost in ({"7"}, {"0", "7", "1999"}):
                known = len(node.log)
                await lose(proxy, *lost)
                other.broker.send("room:7", b"lost")
                node.skip(5)
                await until(lambda lost=lost: {f"room:{room}" for room in lost} <= node.restored_channels)
                other.broker.send("room:7", b"%d" % len(lost))
                await until(lambda lost=lost: node.received[-1:] == [b"%d" % len(lost)])
                # Only those that were lost are told, and before anything of them arrives again.
                events = node.log[known:]
                told = {channel for event in events if event[0] == "interrupted" for channel in event[1]}
                assert told == {f"room:{room}" for room in lost}
                assert ("received", b"lost") not in events
                assert events[-1][0] == "received"
                node.log.clear()
            assert broker.stats().reconnects == 0
            assert broker.health().ok


async def test_a_lost_subscription_is_found_while_others_come_and_go(redis_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            await lose(proxy, "a")
            node.skip(5)
            number = 0
            while not node.interruptions:
                broker.subscribe(f"room:{number}")
                broker.unsubscribe(f"room:{number - 3}")
                number += 1
                await asyncio.sleep(0)
            assert node.interruptions == [(["room:a"], "unsubscribed")]
            await until(lambda: subscribers(redis_engine, "room:a") == 1)


async def test_an_engine_whose_numbers_are_wrong_is_asked_for_single_subscriptions(
    redis_engine: RedisEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SubscriptionCount, "must_search", lambda self: False)
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        broker = RedisBroker(f"redis://127.0.0.1:{proxy.port}")
        async with joined(broker, "room:a") as node:
            answers = (await connection_of(proxy, "publisher")).to_client
            asked = calls(redis_engine.command("INFO", "commandstats"), "pubsub|numsub")
            await lose(proxy, "a")
            while not node.interruptions:
                seen = len(answers.seen)
                node.skip(6)
                await until(lambda known=seen: node.interruptions or len(answers.seen) > known + 20)
            assert node.interruptions == [(["room:a"], "unsubscribed")]
            # A single answer may have crossed a change.
            assert calls(redis_engine.command("INFO", "commandstats"), "pubsub|numsub") >= asked + 2
            await until(lambda: subscribers(redis_engine, "room:a") == 1)
            await until(lambda: "room:a" in node.restored_channels)
            assert broker.stats().reconnects == 0


def test_a_number_that_searches_do_not_explain_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wshub.broker")
    count = SubscriptionCount()
    count.held = 5
    count.take(5)
    assert not count.must_search()
    count.take(4)
    assert count.must_search()
    # One was found, and another one was lost meanwhile.
    assert count.take(5)
    count.note_found()
    count.take(4)
    assert [count.must_search() for _ in range(5)] == [True, True, True, False, False]
    assert len(caplog.records) == 1
    # No engine says this. It tells nothing.
    other = SubscriptionCount()
    other.held = 5
    assert not other.take(b"3")
    assert not other.must_search()


async def test_a_subscription_of_this_moment_is_not_taken_for_a_lost_one(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url)) as node:
        for _ in range(50):
            node.skip(6)
            for number in range(20):
                node.broker.subscribe(f"room:{number}")
            await node.broker.subscribed("room:19")
            for number in range(20):
                node.broker.unsubscribe(f"room:{number}")
            await asyncio.sleep(0.02)
        assert node.interruptions == []


async def test_subscribed_ends_with_the_connection(redis_engine: RedisEngine) -> None:
    with proxy_to("127.0.0.1", redis_engine.port) as proxy:
        async with joined(RedisBroker(f"redis://127.0.0.1:{proxy.port}")) as node:
            connection = await connection_of(proxy, "subscriber")
            connection.to_server.is_black_hole = True
            node.broker.subscribe("room:a")
            waiting = asyncio.create_task(node.broker.subscribed("room:a"))
            await until(lambda: b"room:a" in connection.to_server.seen)
            connection.reset()
            with pytest.raises(BrokerUnavailable):
                await waiting
            # It is not forgotten.
            await until(lambda: subscribers(redis_engine, "room:a") == 1)
