"""A broker whose NATS server fails, or the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.broker_node import BrokerNode, joined, until, until_in_time_of
from tests.support.free_ports import free_port
from tests.support.nats_engine import NatsEngine, nats_engine_of, running_nats
from tests.support.tcp_proxy import TcpProxy, proxy_to
from wshub.brokers.interface import ALL_NODES
from wshub.brokers.nats import NatsBroker
from wshub.errors import BrokerUnavailable, BrokerUncertain


@pytest.fixture
def own_engine(nats_engine: NatsEngine) -> Iterator[NatsEngine]:
    """A server that the test may stop, of the same kind as the shared one."""
    with running_nats(nats_engine.kind) as engine:
        yield engine


@contextlib.asynccontextmanager
async def behind(proxy: TcpProxy, *channels: str) -> AsyncIterator[BrokerNode]:
    async with joined(NatsBroker(f"nats://127.0.0.1:{proxy.port}"), *channels) as node:
        yield node


def numbers(node: BrokerNode) -> list[int]:
    return [int(envelope.split()[0]) for envelope in node.received]


def check_gaps(node: BrokerNode) -> None:
    """Check that envelopes came in order, and that each gap has an interruption before the envelope after it."""
    last = -1
    interrupted = False
    for event in node.log:
        if event[0] == "interrupted":
            interrupted = True
        elif event[0] == "received":
            number = int(event[1].split()[0])
            assert number > last
            assert number == last + 1 or interrupted, f"{number} came after {last} without an interruption"
            last, interrupted = number, False


async def probed(node: BrokerNode) -> None:
    """Have a broker sweep, and return when each of its barriers has come back."""
    node.broker.sweep(node.now())
    await until(lambda: not node.broker._session._barriers._sent)  # type: ignore[attr-defined]


async def recovers(node: BrokerNode) -> None:
    """Let time pass until the broker is connected again and has told its hub."""
    while not node.broker.health().ok or [event[0] for event in node.log if event[0] != "received"][-1:] != [
        "restored"
    ]:
        node.skip(0.25)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
async def test_a_black_hole_is_noticed_within_ten_seconds(nats_engine: NatsEngine, direction: str) -> None:
    with proxy_to("127.0.0.1", nats_engine.port) as proxy:
        async with behind(proxy, "room:a") as node, joined(NatsBroker(nats_engine.url)) as other:
            # The worst moment: a probe has just come back.
            node.skip(2.1)
            probe = node.broker.health().probe_ms
            await until(lambda: node.broker.health().probe_ms != probe)
            (connection,) = proxy.open_connections()
            getattr(connection, direction).is_black_hole = True
            passed = 0.0
            while not node.interruptions:
                node.skip(0.2)
                passed += 0.2
                node.broker.sweep(node.now())
                await asyncio.sleep(0.01)
                # Other messages do not hide it.
                other.broker.send("room:a", b"0")
            assert passed < 10
            assert node.interruptions == [(None, "deaf")]
            await recovers(node)
            assert {"room:a", ALL_NODES} <= node.restored_channels
            assert node.broker.stats().interruptions == {"deaf": 1}
            assert node.broker.stats().reconnects == 1


async def test_a_quiet_connection_is_left_alone(nats_engine: NatsEngine) -> None:
    async with joined(NatsBroker(nats_engine.url), "room:a") as node:
        for _ in range(30):
            node.skip(4)
            await probed(node)
        assert node.log == []
        assert node.broker.stats().reconnects == 0


async def test_a_barrier_that_is_late_says_nothing_of_the_subscriptions_that_are_tested_after_it(
    nats_engine: NatsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(NatsBroker(nats_engine.url), "room:a") as node:
        session = node.broker._session  # type: ignore[attr-defined]
        barriers, late = session._barriers, []
        with monkeypatch.context() as holding:
            holding.setattr(barriers, "heard", late.append)
            node.skip(3)
            node.broker.sweep(node.now())
            await until(lambda: len(late) == len(barriers._sent) and not session._tested)
            node.skip(2)
            node.broker.sweep(node.now())
        for payload in late:
            barriers.heard(payload)
        assert node.interruptions == []
        # The next ones are tested once it has come back.
        node.skip(3)
        node.broker.sweep(node.now())
        assert session._tested


async def test_a_restarted_server_is_a_gap_that_is_told(own_engine: NatsEngine) -> None:
    channels = [f"room:{number}" for number in range(500)]
    async with (
        joined(NatsBroker(own_engine.url), "room:a", *channels) as node,
        joined(NatsBroker(own_engine.url)) as sender,
    ):
        for number in range(3000):
            sender.broker.send("room:a", b"%d" % number)
            if number == 1000:
                own_engine.stop(signal.SIGKILL)
            if number == 2000:
                await until(lambda: not sender.broker.health().ok and not node.broker.health().ok)
                own_engine.start()
                await recovers(sender)
                await recovers(node)
                await until(lambda: {"room:a", *channels} <= node.restored_channels)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: numbers(node)[-1:] == [2999])
        check_gaps(node)
        assert node.interruptions == [(None, "disconnected")]
        # Nothing was kept for later while there was no connection.
        received = set(numbers(node))
        assert not received.intersection(range(1500, 2000))
        assert sender.broker.stats().dropped["disconnected"] >= 500
        # Its own channels come first.
        first = next(event for event in node.log if event[0] == "restored")
        assert {ALL_NODES, f"node:{node.info.id}"} <= set(first[1])


async def test_a_slow_consumer_is_cut_off_and_told(nats_engine: NatsEngine) -> None:
    with (
        running_nats(nats_engine.kind, 'max_payload: 100000\nmax_pending: 1000000\nwrite_deadline: "500ms"') as engine,
        proxy_to("127.0.0.1", engine.port) as proxy,
    ):
        async with behind(proxy, "room:a") as node, joined(NatsBroker(engine.url)) as sender:
            proxy.to_client.clear()
            number = 0
            while "Slow Consumer" not in engine.log:
                sender.broker.send("room:a", b"%d " % number + bytes(50_000))
                number += 1
                await asyncio.sleep(0.001)
            proxy.heal()
            await until(lambda: node.interruptions)
            await recovers(node)
            await node.broker.subscribed("room:a")
            sender.broker.send("room:a", b"%d" % number)
            await until(lambda: numbers(node)[-1:] == [number])
            check_gaps(node)
            assert node.interruptions == [(None, "disconnected")]


async def test_another_server_of_the_cluster_takes_over(nats_engine: NatsEngine) -> None:
    ports = [free_port(), free_port()]

    def settings(own: int, other: int) -> str:
        routes = f'routes: ["nats-route://127.0.0.1:{ports[other]}"]'
        return f'cluster {{ name: "both", listen: "127.0.0.1:{ports[own]}", {routes} }}'

    with running_nats(nats_engine.kind, settings(0, 1)) as one, running_nats(nats_engine.kind, settings(1, 0)) as other:
        # The URL names one server only; that one tells of the other.
        while f"127.0.0.1:{other.port}" not in str(one.info().get("connect_urls")):
            await asyncio.sleep(0.02)
        async with joined(NatsBroker(one.url), "room:a") as node, joined(NatsBroker(other.url)) as sender:
            await arrives(sender, node, b"1")
            one.stop(signal.SIGKILL)
            await until(lambda: node.interruptions)
            await until(lambda: node.broker.health().ok)
            await node.broker.subscribed("room:a")
            await arrives(sender, node, b"2")
            assert node.interruptions == [(None, "disconnected")]
            assert sender.interruptions == []


async def arrives(sender: BrokerNode, receiver: BrokerNode, envelope: bytes) -> None:
    """Send an envelope until it arrives: another server of a cluster learns of a subscription a moment later."""
    while envelope not in receiver.received:
        sender.broker.send("room:a", envelope)
        await asyncio.sleep(0.01)


async def test_publish_says_that_it_does_not_know(own_engine: NatsEngine) -> None:
    async with joined(NatsBroker(own_engine.url), "room:a") as node:
        own_engine.pause()
        publishing = [asyncio.create_task(node.broker.publish("room:a", b"%d" % number)) for number in range(5)]
        node.broker.subscribe("room:b")
        subscribing = asyncio.create_task(node.broker.subscribed("room:b"))
        await asyncio.sleep(0.05)
        own_engine.stop(signal.SIGKILL)
        results = await asyncio.gather(*publishing, subscribing, return_exceptions=True)
        assert [type(result) for result in results] == [BrokerUncertain] * 5 + [BrokerUnavailable]
        with pytest.raises(BrokerUnavailable):
            await node.broker.publish("room:a", b"6")
        assert len({id(result) for result in results}) == 6
        stats = node.broker.stats()
        assert (stats.sent, stats.dropped["unanswered"], stats.dropped["disconnected"]) == (0, 5, 1)


async def test_a_frozen_server_is_replaced_and_publish_ends(own_engine: NatsEngine) -> None:
    async with joined(NatsBroker(own_engine.url), "room:a") as node:
        own_engine.pause()
        publishing = asyncio.create_task(node.broker.publish("room:a", b"1"))
        await asyncio.sleep(0)
        for _ in range(20):
            node.skip(1)
            await asyncio.sleep(0.06)
        with pytest.raises(BrokerUncertain):
            await publishing
        assert node.broker.health().state == "deaf"
        own_engine.resume()
        await recovers(node)
        await node.broker.publish("room:a", b"2")
        await until(lambda: b"2" in node.received)


async def test_a_full_queue_drops_the_newest_and_empties_again(own_engine: NatsEngine) -> None:
    broker = NatsBroker(own_engine.url, max_pending=1_000_000)
    async with joined(broker) as node:
        own_engine.pause()
        taken = 0
        for _ in range(2000):
            taken += broker.send("room:a", bytes(50_000))
            if taken % 10 == 0:
                await asyncio.sleep(0)
        assert broker.stats().dropped["full"] == 2000 - taken > 0
        assert 1_000_000 <= broker.health().pending_bytes < 1_200_000
        with pytest.raises(BrokerUnavailable, match="too many bytes"):
            await broker.publish("room:a", b"")
        own_engine.resume()
        await until(lambda: broker.health().pending_bytes == 0)
        await broker.publish("room:a", b"")
        assert broker.stats().sent == taken + 1
        assert node.interruptions == []


@pytest.mark.parametrize("garbage", [b"MSG room\r\n", b"-ERR 'Maximum Subscriptions Exceeded'\r\n", b"\x00" * 5000])
async def test_garbage_ends_the_connection_and_another_one_takes_its_place(
    nats_engine: NatsEngine, garbage: bytes
) -> None:
    with proxy_to("127.0.0.1", nats_engine.port) as proxy:
        async with behind(proxy, "room:a") as node:
            await until(lambda: len(list(proxy.open_connections())) == 1)
            (connection,) = proxy.open_connections()
            connection.send_to_client(garbage)
            await recovers(node)
            await node.broker.subscribed("room:a")
            await node.broker.publish("room:a", b"1")
            await until(lambda: b"1" in node.received)
            assert len(node.interruptions) == 1


async def test_connections_that_were_lost_leave_nothing(nats_engine: NatsEngine) -> None:
    with proxy_to("127.0.0.1", nats_engine.port) as proxy:
        async with behind(proxy, "room:a") as node:
            before = await traces()
            for _ in range(20):
                known = node.broker.stats().reconnects
                for connection in proxy.open_connections():
                    connection.reset()
                await until_in_time_of(
                    node, lambda known=known: node.broker.stats().reconnects > known and node.broker.health().ok
                )
            assert await traces() <= before + 1


async def traces() -> int:
    """Return the number of tasks, once those that are ending have ended."""
    for _ in range(5):
        await asyncio.sleep(0.01)
    gc.collect()
    return len(asyncio.all_tasks())


async def test_it_closes_while_the_server_is_away() -> None:
    with nats_engine_of("current") as engine:
        node = BrokerNode(NatsBroker(engine.url), "hub")
        starting = asyncio.create_task(node.start())
        await until(lambda: "111" in node.broker.health().reason)
        async with asyncio.timeout(1):
            await node.close()
        with pytest.raises(BrokerUnavailable):
            await starting


@pytest.mark.parametrize("answer", [b"PONG\r\n", b""], ids=["answers", "ends the connection"])
async def test_it_closes_in_the_moment_in_which_the_server(answer: bytes) -> None:
    """wait_for() of Python 3.11 loses a cancellation in that moment."""
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n')
        await reader.readuntil(b"PING\r\n")
        if answer:
            writer.write(answer)
        else:
            writer.close()
        answered.set()
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for iterations in range(8):
            answered.clear()
            node = BrokerNode(NatsBroker(f"nats://127.0.0.1:{port}"), "hub")
            starting = asyncio.create_task(node.start())
            await answered.wait()
            for _ in range(iterations):
                await asyncio.sleep(0)
            async with asyncio.timeout(3):
                await node.close()
            with pytest.raises(BrokerUnavailable):
                await starting


async def test_a_server_that_ends_the_connection_after_the_login_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        node = BrokerNode(NatsBroker(f"nats://127.0.0.1:{port}"), "hub")
        starting = asyncio.create_task(node.start())
        while attempts < 3:
            node.skip(1)
            await asyncio.sleep(0.02)
        assert node.broker.stats().reconnects == 0
        assert node.broker.health().state == "starting"
        await node.close()
        with pytest.raises(BrokerUnavailable):
            await starting
    assert [record.levelname for record in caplog.records] == ["WARNING"]
