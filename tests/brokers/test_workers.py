"""How workers of one machine find one another, agree on their connections, and carry envelopes."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import stat
from pathlib import Path

import pytest

from tests.brokers.mesh import Node, mesh, sockets, until
from tests.brokers.raw_worker import (
    ENVELOPE,
    GOODBYE,
    HELLO,
    PING,
    PONG,
    SNAPSHOT,
    SNAPSHOT_END,
    SUBSCRIBE,
    RawListener,
    RawWorker,
    channels,
    record,
)
from tests.support.reactor import needs_reactor
from wshub.brokers.interface import ALL_NODES, Broker
from wshub.brokers.workers import WorkersBroker
from wshub.brokers.workers_directory import is_same_user
from wshub.errors import BrokerUnavailable, ConfigurationError, MisuseError


async def test_an_envelope_goes_only_to_nodes_that_have_subscribed(path) -> None:
    async with mesh(path, 4) as nodes:
        await nodes[1].join("room:a")
        await nodes[2].join("room:a", "room:b")
        assert nodes[0].broker.send("room:a", b"1")
        assert nodes[0].broker.send("room:b", b"2")
        assert nodes[0].broker.send("room:none", b"3")
        nodes[0].broker.send(ALL_NODES, b"end")
        await until(lambda: all(node.received[-1:] == [b"end"] for node in nodes[1:]))
        assert [node.received for node in nodes] == [[], [b"1", b"end"], [b"1", b"2", b"end"], [b"end"]]
        await until(lambda: nodes[0].broker.stats().sent == 6)
        assert nodes[3].broker.stats().received == 1


async def test_each_node_has_its_own_channel_and_that_of_all_from_the_start(path) -> None:
    async with mesh(path, 3) as nodes:
        for sender in nodes:
            for receiver in nodes:
                if sender is not receiver:
                    sender.broker.send(receiver.own_channel, b"one")
                    sender.broker.send(ALL_NODES, b"all")
        await until(lambda: all(len(node.received) == 6 for node in nodes))


async def test_envelopes_arrive_once_and_in_order_whatever_their_size(path) -> None:
    sizes = [0, 1, 63, 64, 2048, 65_535, 65_536, 65_537, 1 << 20, 3]
    envelopes = [bytes([number]) * size for number, size in enumerate(sizes)] * 5
    async with mesh(path, 2) as (first, second):
        await second.join("room:a")
        for envelope in envelopes:
            assert first.broker.send("room:a", envelope)
            await asyncio.sleep(0)
        await until(lambda: len(second.received) == len(envelopes))
        assert second.received == envelopes


async def test_subscribed_returns_when_every_node_sends_to_the_channel(path) -> None:
    async with mesh(path, 3) as nodes:
        for turn in range(20):
            channel = f"room:{turn}"
            await nodes[0].join(channel)
            assert nodes[1].broker.send(channel, b"%d" % turn)
            await nodes[2].broker.publish(channel, b"%d" % turn)
        await until(lambda: len(nodes[0].received) == 40)


async def test_subscribed_ends_with_its_channel(path) -> None:
    async with mesh(path, 2) as (node, _):
        with pytest.raises(BrokerUnavailable, match="left the channel"):
            await node.broker.subscribed("room:never")
        node.broker.subscribe("room:a")
        waiting = asyncio.create_task(node.broker.subscribed("room:a"))
        await asyncio.sleep(0)
        node.broker.unsubscribe("room:a")
        with pytest.raises(BrokerUnavailable, match="left the channel"):
            await waiting


async def test_names_of_channels_are_opaque(path) -> None:
    names = ["", " ", "*", ">", "{}", "a.b", "\0", "ü☃😀", "\ud800", "x" * 70_000]
    async with mesh(path, 2) as (first, second):
        for name in names:
            second.broker.subscribe(name)
        await second.broker.subscribed(names[0])
        for name in names:
            first.broker.send(name, name.encode("utf-8", "surrogatepass"))
        await until(lambda: len(second.received) == len(names))
        assert second.received == [name.encode("utf-8", "surrogatepass") for name in names]


async def test_a_channel_that_was_left_brings_nothing(path) -> None:
    async with mesh(path, 2) as (first, second):
        await second.join("room:a", "room:b")
        second.broker.unsubscribe("room:a")
        second.broker.unsubscribe("room:never")
        await second.broker.subscribed("room:b")
        first.broker.send("room:a", b"a")
        first.broker.send("room:b", b"b")
        await until(lambda: second.received)
        assert second.received == [b"b"]


async def test_a_node_that_comes_later_learns_all_subscriptions(path) -> None:
    async with mesh(path, 1) as (first,):
        names = [f"room:{number}" for number in range(20_000)]
        for name in names:
            first.broker.subscribe(name)
        second = await Node(path).start()
        try:
            # The end of the snapshot.
            await second.broker.subscribed(second.own_channel)
            assert (await second.broker.publish(names[0], b"0")).receivers == 1
            assert (await second.broker.publish(names[-1], b"1")).receivers == 1
            await until(lambda: first.received == [b"0", b"1"])
        finally:
            await second.close()


async def test_nodes_that_start_at_the_same_time_have_one_connection_for_each_pair(path) -> None:
    for _ in range(5):
        nodes = [Node(path) for _ in range(6)]
        try:
            await asyncio.gather(*(node.start() for node in nodes))
            assert all(node.peers == 5 for node in nodes)
            for node in nodes:
                await node.join("room:a")
            for node in nodes:
                node.broker.send("room:a", node.info.id.encode())
            await until(lambda: all(len(node.received) == 5 for node in nodes))  # noqa: B023
            assert all(len(node.session._connections) == 5 for node in nodes)
            assert all(("interrupted", "lost") not in node.log for node in nodes)
        finally:
            await asyncio.gather(*(node.close() for node in nodes))
        assert sockets(path) == []


@pytest.mark.parametrize("other", ["0" * 16, "f" * 16])
async def test_of_two_connections_that_of_the_smaller_id_is_kept(path, other) -> None:
    node = Node(path, node_id="8" * 16)
    await node.start()
    try:
        async with RawListener(path, node, other) as listener:
            node.broker.sweep(0)
            theirs = await listener.accepted.get()
            assert (await theirs.read())[0] == HELLO
            ours = await RawWorker.connect(node, other)
            ours.hello(1)
            if other < node.info.id:
                assert (await ours.read())[0] == HELLO
                assert await theirs.is_closed()
            else:
                assert await ours.is_closed()
                theirs.hello(2)
                assert (await theirs.read())[0] == SNAPSHOT
            await until(lambda: node.peers == 1)
            assert len(node.session._connections) == 1
            ours.close()
            theirs.close()
    finally:
        await node.close()


async def test_a_connection_that_was_made_before_the_one_that_is_up_is_ended(path) -> None:
    node = Node(path)
    await node.start()
    try:
        raw = await RawWorker.meet(node, "a" * 16, serial=5)
        older = await RawWorker.connect(node, "a" * 16)
        older.hello(4)
        assert await older.is_closed()
        raw.write(ENVELOPE, b"1")
        await until(lambda: node.received == [b"1"])
        assert node.peers == 1
        raw.close()
        older.close()
    finally:
        await node.close()


async def test_what_came_on_a_former_connection_is_delivered_before_what_comes_on_the_next(path) -> None:
    node = Node(path)
    await node.start()
    try:
        former = await RawWorker.meet(node, "a" * 16, serial=5)
        former.write(ENVELOPE, b"1")
        await until(lambda: node.received == [b"1"])
        later = await RawWorker.connect(node, "a" * 16)
        later.hello(6)
        later.write(ENVELOPE, b"3")
        await until(lambda: node.session._held)
        former.write(ENVELOPE, b"2")
        former.close()
        await later.answer_hello()
        await until(lambda: len(node.log) == 5)
        assert node.log == [b"1", b"2", ("interrupted", "lost"), b"3", ("restored",)]
        assert node.broker.stats().reconnects == 1
        later.close()
    finally:
        await node.close()


async def test_a_goodbye_interrupts_nothing_and_a_lost_connection_does(path) -> None:
    node = Node(path)
    await node.start()
    try:
        raw = await RawWorker.meet(node)
        raw.write(ENVELOPE, b"1")
        raw.write(GOODBYE)
        raw.close()
        await until(lambda: node.received and node.peers == 0)
        await until(lambda: not node.session._connections)
        assert node.log == [b"1"]
        raw = await RawWorker.meet(node)
        raw.write(ENVELOPE, b"2")
        raw.close()
        await until(lambda: len(node.log) == 3)
        assert node.log == [b"1", b"2", ("interrupted", "lost")]
        assert node.broker.health().state == "disconnected"
        # Its socket is not in the directory: the node has ended.
        node.broker.sweep(0)
        assert node.log[3:] == [("restored",)]
        assert node.broker.health().state == "connected"
        assert node.broker.stats().interruptions["lost"] == 1
    finally:
        await node.close()


async def test_what_was_queued_for_a_node_that_is_lost_is_counted_as_dropped(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node)
        raw.write(SUBSCRIBE, channels("room:a"))
        raw.write(PING, bytes(8))
        await raw.read_until(PONG)
        raw.writer.transport.pause_reading()
        taken = sum(node.broker.send("room:a", bytes(100_000)) for _ in range(60))
        assert taken == 60
        await until(lambda: node.broker.stats().sent > 0)
        raw.writer.transport.abort()
        await until(lambda: node.peers == 0)
        stats = node.broker.stats()
        assert 0 < stats.sent < 60
        assert stats.sent + stats.dropped["disconnected"] == 60
        node.broker.sweep(0)


@needs_reactor
async def test_what_a_node_had_sent_arrives_although_it_takes_no_more(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = RawWorker.blocking(node)
        raw.hello()
        raw.write(SUBSCRIBE, channels("room:a"))
        await until(lambda: node.session.mesh.send_to_each("room:a", b"")[1])
        # In one piece: the kernel has space for few small ones, and this socket would block.
        raw.writer.write(b"".join(record(ENVELOPE, b"%d" % number + bytes(1000)) for number in range(150)))
        raw.close()
        # This fails at the end of the first round, when 64 KiB have been read.
        assert node.broker.send("room:a", b"x")
        await until(lambda: node.peers == 0)
        assert len(node.received) == 150
        assert node.log[-1] == ("interrupted", "lost")
        assert node.broker.stats().dropped["disconnected"] >= 1


async def test_a_snapshot_names_every_channel_and_ends_no_other_before_its_end(path) -> None:
    async with mesh(path, 1) as (node,):
        node.broker.subscribe("room:a")
        raw = await RawWorker.connect(node)
        raw.hello()
        records = await raw.answer_hello()
        assert records[2:-2] == [(SUBSCRIBE, channels(ALL_NODES, node.own_channel, "room:a"))]

        async def receivers(channel: str) -> int | None:
            raw.write(PING, bytes(8))
            await raw.read_until(PONG)
            return (await node.broker.publish(channel, b"")).receivers

        raw.write(SUBSCRIBE, channels("room:x", "room:y"))
        raw.write(SNAPSHOT)
        raw.write(SUBSCRIBE, channels("room:y"))
        assert await receivers("room:x") == 1
        raw.write(SUBSCRIBE, channels("room:z"))
        raw.write(SNAPSHOT_END)
        assert await receivers("room:x") == 0
        assert await receivers(ALL_NODES) == 0
        assert await receivers("room:y") == await receivers("room:z") == 1
        raw.close()


async def test_restored_is_called_when_the_other_node_knows_the_subscriptions(path) -> None:
    async with mesh(path, 1) as (node,):
        raw = await RawWorker.meet(node, "a" * 16)
        raw.close()
        await until(lambda: node.log == [("interrupted", "lost")])
        raw = await RawWorker.connect(node, "a" * 16)
        raw.hello(2)
        records = await raw.read_until(PING)
        await until(lambda: node.peers == 1)
        assert node.log == [("interrupted", "lost")]
        raw.write(PONG, records[-1][1])
        await until(lambda: node.log[1:] == [("restored",)])
        raw.close()


async def test_hubs_of_other_names_are_not_joined(path) -> None:
    async with mesh(path, 2), mesh(path, 2, hub="other") as others:
        assert len({name[:8] for name in sockets(path)}) == 2
        assert all(node.peers == 1 for node in others)


async def test_a_broker_belongs_to_one_hub(path) -> None:
    async with mesh(path, 1) as (node,):
        with pytest.raises(MisuseError, match="a broker of its own"):
            await node.start()


def test_a_broker_starts_again_on_another_loop(path, run) -> None:
    lives = []

    async def live(broker: WorkersBroker | None) -> None:
        node = Node(path)
        if broker is not None:
            node.broker = broker
        node.broker.subscribe("room:a")
        await node.start()
        lives.append(node)
        other = await Node(path).start()
        await other.broker.subscribed(other.own_channel)
        assert (await other.broker.publish("room:a", b"1")).receivers == 1
        await until(lambda: node.received == [b"1"])
        await other.close()

    run(live(None))
    lives[0].reactor.close()
    assert lives[0].broker.health().state == "connected"
    run(live(lives[0].broker))
    assert len(sockets(path)) == 1
    lives[1].reactor.close()
    asyncio.run(lives[1].broker.close())
    assert sockets(path) == []


def test_a_broker_starts_again_on_the_same_loop(path, run) -> None:
    async def scenario() -> None:
        async with mesh(path, 1) as (other,):
            node = Node(path)
            for turn in range(3):
                node.info = Node(path).info
                await node.start()
                await node.join("room:a")
                assert (await other.broker.publish("room:a", b"%d" % turn)).receivers == 1
                await until(lambda: len(node.received) == turn + 1)  # noqa: B023
                await node.broker.close()
                assert node.broker.stats().peers == 0
                assert not node.broker.send("room:a", b"x")
                with pytest.raises(BrokerUnavailable):
                    await node.broker.subscribed("room:a")
            assert other.broker.stats().interruptions == {}
            node.reactor.close()

    run(scenario())


async def test_close_sends_what_waits_and_leaves_nothing(path) -> None:
    before = set(asyncio.all_tasks())
    # A loop opens some descriptors once and keeps them; and earlier tests may have left some.
    async with mesh(path, 2):
        gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    async with mesh(path, 2) as (first, second):
        await second.join("room:a")
        for number in range(1000):
            assert first.broker.send("room:a", b"%d" % number + bytes(1000))
        await first.broker.close()
        await until(lambda: len(second.received) == 1000)
        assert len(sockets(path)) == 1
        assert second.log[-1] == second.received[-1]
    assert sockets(path) == []
    assert set(asyncio.all_tasks()) == before
    await until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)


async def test_close_waits_a_second_at_most_for_a_node_that_does_not_read(path) -> None:
    node = await Node(path).start()
    raw = await RawWorker.meet(node)
    raw.write(SUBSCRIBE, channels("room:a"))
    raw.write(PING, bytes(8))
    await raw.read_until(PONG)
    raw.writer.transport.pause_reading()
    for _ in range(100):
        node.broker.send("room:a", bytes(100_000))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await node.close()
    assert 0.5 < loop.time() - began < 5
    assert node.broker.stats().dropped["disconnected"] > 0
    raw.close()


async def test_a_socket_that_nobody_listens_on_is_removed(path) -> None:
    async with mesh(path, 1) as (node,):
        name = sockets(path)[0].replace(node.info.id, "b" * 16)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path / name))
        node.broker.sweep(0)
        assert name not in sockets(path)


async def test_a_socket_that_was_removed_by_others_is_made_again(path) -> None:
    async with mesh(path, 1) as (node,):
        (path / sockets(path)[0]).unlink()
        node.broker.sweep(0)
        other = await Node(path).start()
        assert other.peers == 1
        await other.close()


async def test_a_directory_is_made_for_the_user_alone(socket_directory) -> None:
    path = socket_directory / "a" / "b"
    async with mesh(path, 1):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o755)
    node = Node(path)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        await node.start()
    await node.close()
    (socket_directory / "file").touch()
    node = Node(socket_directory / "file")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await node.start()
    await node.close()


async def test_programs_of_other_users_are_refused(path, monkeypatch, caplog) -> None:
    async with mesh(path, 1) as (node,):
        monkeypatch.setattr("wshub.brokers.workers_session.is_same_user", lambda connected: False)
        monkeypatch.setattr("wshub.brokers.workers_doorway.is_same_user", lambda connected: False)
        raw = await RawWorker.connect(node)
        raw.hello()
        assert await raw.is_closed()
        raw.close()
        other = await Node(path).start()
        for now in range(3):
            other.broker.sweep(now)
        assert other.peers == node.peers == 0
        assert sum("another user" in line.getMessage() for line in caplog.records) == 1
        await other.close()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the platform does not tell the user of a peer")
def test_the_user_at_the_other_end_is_known(monkeypatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        assert is_same_user(here)
        monkeypatch.setattr("os.geteuid", lambda: 12345)
        assert not is_same_user(there)


def test_a_path_that_is_too_long_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="shorter path"):
        WorkersBroker("/tmp/" + "x" * 72)
    assert isinstance(WorkersBroker("/tmp/" + "x" * 71), Broker)
    with pytest.raises(ConfigurationError, match="empty"):
        WorkersBroker("")


async def test_the_longest_path_works(tmp_path) -> None:
    path = Path("/tmp") / secrets.token_hex(100)[:71]
    try:
        async with mesh(path, 2) as (first, second):
            await second.join("room:a")
            assert (await first.broker.publish("room:a", b"1")).receivers == 1
    finally:
        path.rmdir()


async def test_start_waits_for_no_node_that_does_not_answer(path) -> None:
    async with mesh(path, 1) as (node,), RawListener(path, node, "c" * 16) as listener:
        loop = asyncio.get_running_loop()
        began = loop.time()
        later = await Node(path).start()
        assert 1.5 < loop.time() - began < 5
        assert later.peers == 1
        # It comes up when it answers.
        silent = await listener.accepted.get()
        silent.hello()
        await until(lambda: later.peers == 2)
        silent.close()
        await later.close()


async def test_a_channel_subscribed_to_before_start_is_known_afterwards(path) -> None:
    async with mesh(path, 1) as (first,):
        second = Node(path)
        second.broker.subscribe("room:a")
        second.broker.subscribe("room:b")
        second.broker.unsubscribe("room:b")
        assert second.broker.send(ALL_NODES, b"x") is False
        assert second.broker.health().state == "starting"
        await second.start()
        await second.broker.subscribed("room:a")
        assert (await first.broker.publish("room:a", b"1")).receivers == 1
        assert (await first.broker.publish("room:b", b"1")).receivers == 0
        await second.close()
        assert second.broker.health().state == "disconnected"
