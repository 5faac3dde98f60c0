"""Hubs that NATS servers join: who hears whom, logins, TLS, and what publish() says."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers.test_nats_failures import probed
from tests.support.broker_node import BrokerNode, joined, until, until_in_time_of
from tests.support.certificate import Certificate
from tests.support.cluster_nodes import serving_node
from tests.support.free_ports import free_port
from tests.support.nats_engine import NatsEngine, nats_engine_of, running_jetstream, running_nats
from tests.support.programs import environment
from tests.support.serving_hub import connected
from wshub.brokers.interface import ALL_NODES, Broker
from wshub.brokers.nats import NatsBroker
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, ConfigurationError, MisuseError
from wshub.publisher import AsyncPublisher


async def test_envelopes_reach_the_nodes_that_have_subscribed(nats_engine: NatsEngine) -> None:
    async with (
        joined(NatsBroker(nats_engine.url)) as first,
        joined(NatsBroker(nats_engine.url), "room:a") as second,
        joined(NatsBroker(nats_engine.url), "room:b") as third,
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
        assert (stats.sent, stats.dropped["full"], stats.peers, stats.subscriptions) == (4, 0, 1, 2)
        assert stats.bytes_sent > 600_000
        assert second.broker.stats().bytes_received > 600_000


@pytest.mark.parametrize("other", ["prefix", "hub", "dot"])
async def test_hubs_are_apart(nats_engine: NatsEngine, other: str) -> None:
    prefix = "other" if other == "prefix" else "wshub"
    # Without an escape, the hub "hub.room" would hear the room "all" of the hub "hub" on its channel of all nodes.
    hub = {"hub": "another", "dot": "hub.room"}.get(other, "hub")
    async with (
        joined(NatsBroker(nats_engine.url), "room:all") as first,
        joined(NatsBroker(nats_engine.url, prefix=prefix), "room:all", hub=hub) as second,
    ):
        for sender, receiver in ((first, second), (second, first)):
            sender.broker.send("room:all", b"own")
            sender.broker.send(ALL_NODES, b"own")
            await until(lambda node=sender: len(node.received) >= 2)
            assert receiver.received == ([] if receiver is second else [b"own", b"own"])


async def test_hubs_and_publishers_use_it_by_its_url(nats_engine: NatsEngine) -> None:
    async with (
        serving_node(nats_engine.url) as one,
        serving_node(NatsBroker(nats_engine.url)) as other,
        connected(one.url("chat.7")) as client,
        connected(other.url("chat.7")) as sender,
        AsyncPublisher(nats_engine.url) as publisher,
    ):
        for node in (one, other):
            await node.hub.broker_started()
            await until(lambda node=node: node.hub.room_size("chat.7") == 1)
            await node.hub.subscribed("chat.7")
        await sender.send("from a client")
        assert await client.recv() == "from a client"
        assert (await publisher.publish("from another program", room="chat.7")).receivers is None
        assert await client.recv() == "from another program"
        assert await one.hub.room_count("chat.7") == 2


@pytest.mark.parametrize("way", ["--broker", "WSHUB_BROKER"])
async def test_replicas_in_the_url_are_asked_for(nats_engine: NatsEngine, way: str) -> None:
    """A server that is alone refuses them, so they have reached it."""
    with running_jetstream(nats_engine.kind) as engine:
        url = f"{engine.url}?replicas=3"
        command = [sys.executable, "-m", "wshub", "publish", "--history", "size=5", "room", "hello"]
        if way == "--broker":
            command[4:4] = ["--broker", url]
        variables = environment(**({way: url} if way == "WSHUB_BROKER" else {}))
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, timeout=30, env=variables, check=False
        )
    assert done.returncode == 1
    assert b"replicas > 1 not supported in non-clustered mode" in done.stderr


# Logins and TLS

USERS = """
authorization {
    users = [
        {user: hub, password: "p@ss:w,rd", permissions: {publish: "wshub.>", subscribe: "wshub.>"}}
        {user: deaf, password: pw, permissions: {publish: "wshub.>", subscribe: "other.>"}}
        {user: mute, password: pw, permissions: {publish: "wshub.hub.probe.>", subscribe: "wshub.>"}}
    ]
}
"""


async def test_a_user_needs_the_subjects_of_the_prefix_only(nats_engine: NatsEngine) -> None:
    with running_nats(nats_engine.kind, USERS) as engine:
        broker = NatsBroker(f"nats://hub:p%40ss%3Aw%2Crd@127.0.0.1:{engine.port}")
        async with joined(broker, "room:a") as node:
            await broker.publish("room:a", b"1")
            await until(lambda: node.received == [b"1"] and broker.health().probe_ms is not None)
            assert broker.health().ok


@pytest.mark.parametrize("credentials", ["", "hub:wrong@", "wrong@"])
async def test_wrong_credentials_are_a_configuration_error(nats_engine: NatsEngine, credentials: str) -> None:
    with running_nats(nats_engine.kind, USERS) as engine:
        broker = NatsBroker(f"nats://{credentials}127.0.0.1:{engine.port}")
        with pytest.raises(ConfigurationError, match="credentials"):
            async with joined(broker):
                pass
        assert broker.health().state == "disconnected"
        assert broker.stats().peers == 0


async def test_a_token_logs_in(nats_engine: NatsEngine) -> None:
    with running_nats(nats_engine.kind, 'authorization { token: "s3cret" }') as engine:
        async with joined(NatsBroker(f"nats://s3cret@127.0.0.1:{engine.port}")) as node:
            assert node.broker.health().ok


async def test_a_file_of_credentials_that_is_not_there_is_a_configuration_error(
    nats_engine: NatsEngine, tmp_path: Path
) -> None:
    with running_nats(nats_engine.kind, USERS) as engine, pytest.raises(ConfigurationError, match="credentials"):
        async with joined(NatsBroker(f"nats://127.0.0.1:{engine.port}?credentials={tmp_path / 'none'}")):
            pass


async def test_a_user_that_may_not_subscribe_is_a_configuration_error(nats_engine: NatsEngine) -> None:
    with running_nats(nats_engine.kind, USERS) as engine:
        broker = NatsBroker(f"nats://deaf:pw@127.0.0.1:{engine.port}")
        with pytest.raises(ConfigurationError, match="permissions violation"):
            async with joined(broker):
                pass
        assert broker.stats().peers == 0


async def test_a_message_that_the_engine_refuses_is_an_error_and_counted(
    nats_engine: NatsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with running_nats(nats_engine.kind, USERS) as engine:
        broker = NatsBroker(f"nats://mute:pw@127.0.0.1:{engine.port}")
        other = NatsBroker(f"nats://hub:p%40ss%3Aw%2Crd@127.0.0.1:{engine.port}")
        async with joined(broker, "room:a") as node, joined(other):
            with pytest.raises(BrokerError, match="permissions violation") as caught:
                await broker.publish("room:a", b"1")
            assert not isinstance(caught.value, BrokerUnavailable | BrokerUncertain)
            for _ in range(10):
                assert broker.send("room:a", b"2")
            await until(lambda: broker.stats().dropped["refused"] == 11)
            assert broker.stats().sent == 0
            # It still hears. That the tests of its subscriptions are refused too means nothing.
            for _ in range(5):
                node.skip(3)
                await probed(node)
            other.send("room:a", b"3")
            await until(lambda: node.received == [b"3"])
            assert node.interruptions == []
    assert len([record for record in caplog.records if "refuses messages" in record.getMessage()]) == 1


async def test_a_message_is_refused_while_the_subscription_to_its_channel_is_tested(nats_engine: NatsEngine) -> None:
    with running_nats(nats_engine.kind, USERS) as engine:
        broker = NatsBroker(f"nats://mute:pw@127.0.0.1:{engine.port}")
        async with joined(broker, "room:a") as node:
            for count in range(1, 6):
                publishing = asyncio.create_task(broker.publish("room:a", b"1"))
                # It was sent, and the engine has not answered.
                await asyncio.sleep(0)
                node.skip(3)
                broker.sweep(node.now())
                with pytest.raises(BrokerError, match="permissions violation"):
                    await publishing
                await until(lambda count=count: broker.stats().dropped["refused"] == count)


async def test_tls_needs_a_certificate_that_is_trusted(
    nats_engine: NatsEngine, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with running_nats(nats_engine.kind, certificate=certificate) as engine:
        url = f"tls://localhost:{engine.port}"
        context = certificate.client_context()
        async with (
            joined(NatsBroker(url, ssl=context), "room:a") as first,
            joined(NatsBroker(url, ssl=context)) as second,
        ):
            for number in range(1000):
                second.broker.send("room:a", b"%d" % number)
            assert first.broker.send(ALL_NODES, b"x" * 1_000_000)
            await until(lambda: len(first.received) == 1001 and len(second.received) == 1)
            assert [one for one in first.received if len(one) < 10] == [b"%d" % number for number in range(1000)]
        with caplog.at_level(logging.WARNING, "wshub.broker"):
            caplog.clear()
            await ends_with_reason(NatsBroker(url), "CERTIFICATE_VERIFY_FAILED")
        assert caplog.records


async def test_a_server_without_tls_gets_no_password(nats_engine: NatsEngine) -> None:
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"auth_required":true}\r\n')
        seen.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await ends_with_reason(NatsBroker(f"tls://ann:secret@127.0.0.1:{port}"), "TLS")
    assert seen == b""


async def ends_with_reason(broker: NatsBroker, reason: str) -> None:
    """Start a broker that cannot connect, and close it when its health has the reason."""
    node = BrokerNode(broker, "hub")
    starting = asyncio.create_task(node.start())
    await until(lambda: reason in broker.health().reason)
    assert broker.health().state == "starting"
    await node.close()
    with pytest.raises(BrokerUnavailable):
        await starting


# Limits and misuse


async def test_a_message_above_the_limit_of_the_engine_is_dropped_and_counted(
    nats_engine: NatsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with running_nats(nats_engine.kind, "max_payload: 1000") as engine:
        async with joined(NatsBroker(engine.url), "room:a") as node:
            assert node.broker.send("room:a", bytes(1000))
            for _ in range(3):
                assert not node.broker.send("room:a", bytes(1001))
            with pytest.raises(BrokerUnavailable, match="max_payload"):
                await node.broker.publish("room:a", bytes(1001))
            await until(lambda: node.received == [bytes(1000)])
            assert node.broker.stats().dropped["too_large"] == 4
            assert node.interruptions == []
            assert node.broker.health().ok
    assert len([record for record in caplog.records if "max_payload" in record.getMessage()]) == 1


async def test_a_broker_belongs_to_one_hub(nats_engine: NatsEngine) -> None:
    broker = NatsBroker(nats_engine.url)
    async with joined(broker) as node:
        with pytest.raises(MisuseError, match="one hub"):
            await broker.start(node.info, node)
        with pytest.raises(MisuseError, match="subscribe"):
            await broker.subscribed("room:never")


async def test_start_waits_for_an_engine_that_comes_later(
    nats_engine: NatsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with nats_engine_of(nats_engine.kind) as engine:
        broker = NatsBroker(engine.url)
        node = BrokerNode(broker, "hub")
        starting = asyncio.create_task(node.start())
        await until(lambda: caplog.records)
        broker.subscribe("room:a")
        assert not broker.send("room:a", b"lost")
        engine.start()
        await until_in_time_of(node, starting.done)
        await starting
        await broker.subscribed("room:a")
        await broker.publish("room:a", b"1")
        await until(lambda: node.received == [b"1"])
        await node.close()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_the_first_server_that_answers_is_taken(nats_engine: NatsEngine) -> None:
    url = f"nats://127.0.0.1:{free_port()},127.0.0.1:{free_port()},127.0.0.1:{nats_engine.port}"
    async with joined(NatsBroker(url)) as node:
        assert node.broker.health().ok


async def test_many_channels_are_subscribed_to_and_left(nats_engine: NatsEngine) -> None:
    broker = NatsBroker(nats_engine.url)
    channels = [f"room:{number}" for number in range(5_000)]
    async with joined(broker) as node:
        for channel in channels:
            broker.subscribe(channel)
        await broker.subscribed(channels[-1])
        assert broker.stats().subscriptions == 5_002
        for number in range(0, 5_000, 50):
            broker.send(f"room:{number}", b"%d" % number)
        await until(lambda: len(node.received) == 100)
        for channel in channels:
            broker.unsubscribe(channel)
        await broker.publish("room:5", b"late")
        await broker.publish(ALL_NODES, b"end")
        await until(lambda: b"end" in node.received)
        # All have left in order, so the one before the end is left too.
        broker.send("room:5", b"later")
        await broker.publish(ALL_NODES, b"end")
        await until(lambda: node.received.count(b"end") == 2)
        assert b"later" not in node.received
