"""Hubs that a Redis or Valkey engine joins: who hears whom, logins, TLS, and what publish() says."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.certificate import Certificate
from tests.support.free_ports import free_port
from tests.support.redis_engine import RedisEngine, engine_of, running_engine
from wshub.brokers.interface import ALL_NODES, Broker
from wshub.brokers.redis import RedisBroker
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, ConfigurationError, MisuseError


async def test_envelopes_reach_the_nodes_that_have_subscribed(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(redis_engine.url)) as first,
        joined(RedisBroker(redis_engine.url), "room:a") as second,
        joined(RedisBroker(redis_engine.url), "room:b") as third,
    ):
        assert isinstance(first.broker, Broker)
        assert first.broker.send("room:a", b"\x00 \r\n to a")
        assert first.broker.send("room:b", b"")
        assert first.broker.send(ALL_NODES, b"to all" * 100_000)
        assert first.broker.send("node:" + third.info.id, b"to one")
        await until(lambda: len(second.received) == 2 and len(third.received) == 3)
        assert second.received == [b"\x00 \r\n to a", b"to all" * 100_000]
        assert third.received == [b"", b"to all" * 100_000, b"to one"]
        # A node hears itself on channels that it has.
        await until(lambda: first.received == [b"to all" * 100_000])
        assert first.interruptions == second.interruptions == []
        stats = first.broker.stats()
        assert (stats.sent, stats.dropped["full"], stats.peers, stats.subscriptions) == (4, 0, 2, 2)


async def test_a_unix_socket_leads_to_the_same_engine(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(f"unix://{redis_engine.path}"), "room:a") as first,
        joined(RedisBroker(redis_engine.url)) as second,
    ):
        second.broker.send("room:a", b"1")
        await until(lambda: first.received == [b"1"])


@pytest.mark.parametrize("other", ["database", "prefix", "hub", "colon"])
async def test_hubs_are_apart(redis_engine: RedisEngine, other: str) -> None:
    url = redis_engine.url + ("/1" if other == "database" else "")
    prefix = "other" if other == "prefix" else "wshub"
    hub = {"hub": "another", "colon": "hub:room"}.get(other, "hub")
    # Without an escape, the hub "hub:room" would hear the room "all" of the hub "hub" on its channel of all nodes.
    async with (
        joined(RedisBroker(redis_engine.url), "room:all") as first,
        joined(RedisBroker(url, prefix=prefix), "room:all", hub=hub) as second,
    ):
        for sender, receiver in ((first, second), (second, first)):
            sender.broker.send("room:all", b"own")
            sender.broker.send(ALL_NODES, b"own")
            await until(lambda node=sender: len(node.received) >= 2)
            assert receiver.received == ([] if receiver is second else [b"own", b"own"])


async def test_the_database_is_part_of_a_unix_url(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(f"unix://{redis_engine.path}?db=3"), "room:a") as first,
        joined(RedisBroker(f"{redis_engine.url}/3")) as second,
    ):
        second.broker.send("room:a", b"1")
        await until(lambda: first.received == [b"1"])


async def test_an_acl_user_needs_few_rights(redis_engine: RedisEngine) -> None:
    redis_engine.command(
        *("ACL", "SETUSER", "hub", "on", ">p@ss:word", "resetchannels", "&wshub:*"),
        *("-@all", "+hello", "+ping", "+publish", "+subscribe", "+unsubscribe", "+pubsub"),
    )
    broker = RedisBroker(f"redis://hub:p%40ss%3Aword@127.0.0.1:{redis_engine.port}")
    async with joined(broker, "room:a") as node:
        assert (await broker.publish("room:a", b"1")).receivers == 1
        node.skip(6)
        await until(lambda: node.received == [b"1"] and broker.health().probe_ms is not None)
        assert broker.health().ok
        broker.unsubscribe("room:a")
        await until(lambda: redis_engine.command("PUBSUB", "NUMSUB", "wshub:hub:room:a")[1] == 0)


async def test_a_user_that_may_not_subscribe_is_a_configuration_error(redis_engine: RedisEngine) -> None:
    redis_engine.command("ACL", "SETUSER", "mute", "on", ">pw", "resetchannels", "&other:*", "+@all")
    broker = RedisBroker(f"redis://mute:pw@127.0.0.1:{redis_engine.port}")
    with pytest.raises(ConfigurationError, match="NOPERM"):
        async with joined(broker):
            pass
    assert broker.health().state == "disconnected"
    assert broker.stats().peers == 0


async def test_a_message_that_the_engine_refuses_is_an_error_and_counted(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    redis_engine.command(
        *("ACL", "SETUSER", "listener", "on", ">pw", "resetchannels", "&wshub:*", "-@all"),
        *("+hello", "+subscribe", "+unsubscribe"),
    )
    broker = RedisBroker(f"redis://listener:pw@127.0.0.1:{redis_engine.port}")
    async with joined(broker, "room:a") as node, joined(RedisBroker(redis_engine.url)) as other:
        with pytest.raises(BrokerError, match="NOPERM") as caught:
            await broker.publish("room:a", b"1")
        assert not isinstance(caught.value, BrokerUnavailable | BrokerUncertain)
        for _ in range(10):
            assert broker.send("room:a", b"2")
        await until(lambda: broker.stats().dropped["refused"] == 11)
        assert broker.stats().sent == 0
        # It still hears, and says that it cannot speak.
        other.broker.send("room:a", b"3")
        node.skip(30)
        await until(lambda: node.received == [b"3"])
        assert not broker.health().ok
        assert "NOPERM" in broker.health().reason
        assert node.interruptions == []
    refusals = [record for record in caplog.records if "refuses messages" in record.getMessage()]
    assert len(refusals) == 1


@pytest.mark.parametrize("credentials", ["", "user:wrong@", ":wrong@"])
async def test_wrong_credentials_are_a_configuration_error(redis_engine: RedisEngine, credentials: str) -> None:
    with running_engine(redis_engine.kind, "--requirepass", "right") as engine_with_password:
        port = engine_with_password.port
        with pytest.raises(ConfigurationError, match="credentials"):
            async with joined(RedisBroker(f"redis://{credentials}127.0.0.1:{port}")):
                pass
        async with joined(RedisBroker(f"redis://:right@127.0.0.1:{port}")) as node:
            assert node.broker.health().ok


async def test_an_engine_without_resp3_is_a_configuration_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConfigurationError, match="RESP3"):
            async with joined(RedisBroker(f"redis://127.0.0.1:{port}")):
                pass


async def test_a_replica_is_no_engine_for_now(redis_engine: RedisEngine) -> None:
    with running_engine(redis_engine.kind, "--replicaof", "127.0.0.1", str(redis_engine.port)) as replica:
        node = BrokerNode(RedisBroker(replica.url), "hub")
        starting = asyncio.create_task(node.start())
        await until(lambda: "replica" in node.broker.health().reason)
        assert node.broker.health().state == "starting"
        replica.command("REPLICAOF", "NO", "ONE")
        await starting
        await node.close()


async def test_tls_needs_a_certificate_that_is_trusted(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with running_engine("redis", certificate=certificate) as engine:
        url = f"rediss://localhost:{engine.tls_port}"
        async with (
            joined(RedisBroker(url, ssl=certificate.client_context()), "room:a") as first,
            joined(RedisBroker(engine.url)) as second,
        ):
            for number in range(1000):
                second.broker.send("room:a", b"%d" % number)
            assert first.broker.send(ALL_NODES, b"x" * 1_000_000)
            await until(lambda: len(first.received) == 1001 and len(second.received) == 1)
            assert [one for one in first.received if len(one) < 10] == [b"%d" % number for number in range(1000)]
        with caplog.at_level(logging.WARNING, "wshub.broker"):
            caplog.clear()
            node = BrokerNode(RedisBroker(url), "hub")
            starting = asyncio.create_task(node.start())
            await until(lambda: "CERTIFICATE_VERIFY_FAILED" in node.broker.health().reason)
            await node.close()
            with pytest.raises(BrokerUnavailable):
                await starting
        assert caplog.records


async def test_start_waits_for_an_engine_that_comes_later(
    redis_engine: RedisEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_of(redis_engine.kind) as engine:
        await start_before(engine, caplog)


async def start_before(engine: RedisEngine, caplog: pytest.LogCaptureFixture) -> None:
    broker = RedisBroker(f"unix://{engine.path}")
    node = BrokerNode(broker, "hub")
    starting = asyncio.create_task(node.start())
    await until(lambda: caplog.records)
    broker.subscribe("room:a")
    assert broker.health().state == "starting"
    assert not broker.send("room:a", b"lost")
    with pytest.raises(BrokerUnavailable):
        await broker.publish("room:a", b"lost")
    with pytest.raises(BrokerUnavailable):
        await broker.subscribed("room:a")
    assert broker.stats().dropped["disconnected"] == 2
    engine.start()
    await starting
    assert broker.health().ok
    await broker.subscribed("room:a")
    assert (await broker.publish("room:a", b"1")).receivers == 1
    await until(lambda: node.received == [b"1"])
    # One line when it failed, and one when it has worked.
    assert len(caplog.records) <= 2
    assert node.interruptions == []
    await node.close()


async def test_publish_tells_how_many_nodes_have_received(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(redis_engine.url), "room:a") as first,
        joined(RedisBroker(redis_engine.url), "room:a") as second,
    ):
        assert (await first.broker.publish("room:a", b"1")).receivers == 2
        assert (await first.broker.publish("room:b", b"1")).receivers == 0
        second.broker.unsubscribe("room:a")
        published = [first.broker.publish("room:a", b"%d" % number) for number in range(100)]
        await asyncio.gather(*published)
        await until(lambda: len(first.received) == 101)
        assert first.received == [b"1", *(b"%d" % number for number in range(100))]


async def test_send_and_publish_keep_their_order(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(redis_engine.url)) as first,
        joined(RedisBroker(redis_engine.url), "room:a") as second,
    ):
        published = []
        for number in range(3000):
            if number % 3:
                assert first.broker.send("room:a", b"%d" % number)
            else:
                published.append(asyncio.ensure_future(first.broker.publish("room:a", b"%d" % number)))
                await asyncio.sleep(0)
        await asyncio.gather(*published)
        await until(lambda: len(second.received) == 3000)
        assert second.received == [b"%d" % number for number in range(3000)]


async def test_more_than_max_pending_bytes_never_wait(redis_engine: RedisEngine) -> None:
    broker = RedisBroker(redis_engine.url, max_pending=100_000)
    async with joined(broker) as first, joined(RedisBroker(redis_engine.url), "room:a") as second:
        taken = sum(broker.send("room:a", b"x" * 1000) for _ in range(1000))
        assert broker.health().pending_bytes < 102_000
        with pytest.raises(BrokerUnavailable):
            await broker.publish("room:a", b"x")
        assert 90 <= taken <= 100
        assert broker.stats().dropped["full"] == 1001 - taken
        await until(lambda: len(second.received) == taken and broker.health().pending_bytes == 0)
        assert first.broker.stats().sent == taken
        await broker.publish("room:a", b"again")


async def test_a_message_that_would_cut_off_every_subscriber_is_dropped(redis_engine: RedisEngine) -> None:
    async with (
        joined(RedisBroker(redis_engine.url, max_pending=1 << 30)) as first,
        joined(RedisBroker(redis_engine.url), "room:a") as second,
    ):
        assert first.broker.send("room:a", bytes(16 << 20))
        assert not first.broker.send("room:a", bytes((16 << 20) + 1))
        with pytest.raises(BrokerUnavailable):
            await first.broker.publish("room:a", bytes(33_000_000))
        await until(lambda: [len(envelope) for envelope in second.received] == [16 << 20])
        assert second.interruptions == []
        assert first.broker.stats().dropped["too_large"] == 2


async def test_a_broker_is_started_once(redis_engine: RedisEngine) -> None:
    async with joined(RedisBroker(redis_engine.url)) as node:
        with pytest.raises(MisuseError):
            await node.broker.start(node.info, node)
        with pytest.raises(MisuseError):
            await node.broker.subscribed("room:never")
        assert node.broker.health().ok


async def test_a_host_without_a_listener_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    node = BrokerNode(RedisBroker(f"redis://localhost:{free_port()}"), "hub")
    starting = asyncio.create_task(node.start())
    await until(lambda: caplog.records)
    node.skip(1000)
    await asyncio.sleep(0.5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await node.close()
