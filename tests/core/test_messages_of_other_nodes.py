"""A hub gives envelopes of other nodes to its own members, or counts each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.broker_node import joined, until
from tests.support.cluster_nodes import HubNode, all_know, member, serving_node
from tests.support.nats_engine import running_nats
from tests.support.raw_peers import REQUEST, RawPeer, raw_peer
from tests.support.redis_engine import running_engine
from tests.support.serving_hub import Clock
from wshub import Opcode
from wshub.brokers.envelope import encode_envelope, encode_stored
from wshub.brokers.interface import Broker, room_channel
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker

SIZE = 4000
MEMBERS = 1000
DEFLATE = b"permessage-deflate; client_max_window_bits"
TEXT = json.dumps([{"name": f"row {number}", "value": number * 17} for number in range(40)])
FLAGS = 2


@contextlib.asynccontextmanager
async def two_nodes(**settings: object) -> AsyncIterator[tuple[HubNode, HubNode]]:
    """Serve two hubs. The settings are those of the second one."""
    engine = MemoryEngine()
    async with (
        serving_node(MemoryBroker(engine)) as one,
        # Many of the clients never answer a close frame.
        serving_node(MemoryBroker(engine), close_timeout_ms=50, **settings) as two,
    ):
        await all_know(one, two)
        yield one, two


async def join_all(node: HubNode, count: int = 1) -> None:
    """Have all clients of a node, once there are so many, join the room."""
    await until(lambda: node.hub.connection_count == count)
    for connection in list(node.hub.connections):
        connection.join("room")
    await node.hub.subscribed("room")


async def fill(node: HubNode) -> None:
    """Send to the only client of a node until a message waits."""
    (connection,) = node.hub.connections
    while not connection.buffered:
        connection.send("x" * SIZE)
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("policy", "counted"), [("latest", "replaced"), ("drop_newest", "newest"), ("drop_oldest", "oldest"), ("close", "")]
)
async def test_the_policy_of_a_message_holds_for_slow_members_of_other_nodes(policy: str, counted: str) -> None:
    usual = "drop_newest" if policy != "drop_newest" else "close"
    async with (
        two_nodes(slow_consumer=usual, max_send_buffer=16 * SIZE) as (one, two),
        raw_peer(two.url()) as peer,
    ):
        peer.writer.transport.pause_reading()
        await join_all(two)
        await fill(two)
        for number in range(100):
            one.hub.broadcast(f"{number} ".ljust(SIZE), room="room", slow_consumer=policy, key="price")
        if policy == "close":
            await until(lambda: 1013 in two.hub.stats().closes)
            return
        await until(lambda: two.hub.stats(room="room").messages_accepted == 100)
        dropped = two.hub.stats(room="room").dropped
        assert getattr(dropped, counted) == dropped.total > 50
        if policy == "latest":
            # All others had the same key.
            assert dropped.replaced == 99


async def test_whether_a_message_is_compressed_is_said_by_its_sender_on_another_node() -> None:
    async with two_nodes(enable_compression=True) as (one, two), raw_peer(two.url(), extensions=DEFLATE) as peer:
        await join_all(two)
        for data, compress in ((TEXT, None), (TEXT, False), (TEXT, True), ("a" * 50, None), ("a" * 50, True)):
            one.hub.broadcast(data, room="room", compress=compress)
        found = [await text_frame(peer) for _ in range(5)]
        assert found == [True, False, True, False, True]


async def text_frame(peer: RawPeer) -> bool:
    """Return whether the next message to a client is compressed."""
    frame = await peer.frame()
    assert frame.opcode is Opcode.TEXT
    return frame.rsv1


@pytest.fixture
def clients() -> Iterator[Callable[[int, int, bytes], list[socket.socket]]]:
    """A function that connects clients to a port, with extensions. They read nothing."""
    with contextlib.ExitStack() as stack:

        def connect(port: int, count: int, extensions: bytes = b"") -> list[socket.socket]:
            field = b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b""
            made = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
            for each in made:
                each.sendall(REQUEST[:-2] + field + b"\r\n")
            return made

        yield connect


async def test_a_message_of_another_node_is_compressed_once_for_a_thousand_members(clients) -> None:
    async with two_nodes(enable_compression=True) as (one, two):
        peers: list[socket.socket] = []
        # The queue of a listener takes as many at once.
        for count in range(50, MEMBERS + 1, 50):
            peers += clients(two.port, 50, DEFLATE)
            await until(lambda count=count: two.hub.connection_count == count)
        await join_all(two, MEMBERS)
        one.hub.broadcast(TEXT, room="room")
        await until(lambda: two.hub.stats(room="room").messages_delivered == MEMBERS)
        assert two.hub.stats().compression.compressions == 1
        payloads = {peer.recv(65536).partition(b"\r\n\r\n")[2] for peer in peers}
        assert len(payloads) == 1
        assert len(payloads.pop()) < len(TEXT) / 2


async def test_members_share_the_frame_of_a_message_of_another_node(clients) -> None:
    """Each queue refers to the same frame: the queued bytes are many times the memory in use."""
    async with two_nodes(max_send_buffer=1 << 30) as (_, two):
        clients(two.port, 20)
        await join_all(two, 20)
        # Fill the kernel's buffers first.
        for _ in range(10):
            two.hub.broadcast(bytes(1 << 20), room="room")
            await asyncio.sleep(0)
        envelope = encode_envelope("room", "room", bytes(1 << 20), is_binary=True)
        before = two.hub.stats(room="room").messages_pending
        tracemalloc.start()
        for _ in range(10):
            two.hub._cluster.receive(envelope)  # type: ignore[union-attr]
        queued, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert two.hub.stats(room="room").messages_pending - before == 20 * 10
        assert queued < 12 << 20


class Recorder(MemoryBroker):
    """Records which channels the hub subscribes to and leaves."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.calls: list[str] = []
        """The first two are those of the node itself."""

    def subscribe(self, channel: str) -> None:
        self.calls.append("+" + channel)
        super().subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        self.calls.append("-" + channel)
        super().unsubscribe(channel)


async def test_a_room_that_gets_members_again_within_a_second_was_not_left(clock: Clock) -> None:
    broker = Recorder(MemoryEngine())
    async with serving_node(broker, clock=clock) as node, member(node, "room"):
        (connection,) = node.hub.connections
        for _ in range(5):
            connection.leave("room")
            await asyncio.sleep(0)
            clock.now += 0.9
            node.sweep()
            connection.join("room")
            await asyncio.sleep(0)
            clock.now += 5
            node.sweep()
        assert broker.calls[2:] == ["+room:room"]
        connection.leave("room")
        await asyncio.sleep(0)
        clock.now += 1
        node.sweep()
        assert broker.calls[2:] == ["+room:room", "-room:room"]


ENVELOPE = encode_envelope("room", "room", b"unreadable", node=7, number=1)


def with_flag(bit: int) -> bytes:
    flags = int.from_bytes(ENVELOPE[FLAGS : FLAGS + 2], "little") | 1 << bit
    return ENVELOPE[:FLAGS] + flags.to_bytes(2, "little") + ENVELOPE[FLAGS + 2 :]


@pytest.mark.parametrize(
    "envelope",
    [
        bytes((ENVELOPE[0] + 1,)) + ENVELOPE[1:],
        ENVELOPE[:1] + bytes((5,)) + ENVELOPE[2:],
        ENVELOPE[:1] + bytes((255,)) + ENVELOPE[2:],
        *map(with_flag, range(12, 16)),
    ],
    ids=["version", "kind 5", "kind 255", "flag 12", "flag 13", "flag 14", "flag 15"],
)
async def test_what_a_later_version_has_sent_is_dropped_and_counted(envelope: bytes) -> None:
    engine = MemoryEngine()
    async with (
        serving_node(MemoryBroker(engine)) as node,
        member(node, "room") as client,
        joined(MemoryBroker(engine)) as other,
    ):
        other.broker.send(room_channel("room"), envelope)
        other.broker.send(room_channel("room"), encode_envelope("room", "room", b"readable"))
        assert await client.recv() == "readable"
        assert node.stats.ignored.unreadable == node.stats.ignored.total == 1
        assert node.stats.received == node.stats.delivered + 1


@pytest.mark.parametrize("bit", [9, 10, 11])
async def test_a_flag_that_may_be_ignored_is_ignored(bit: int) -> None:
    engine = MemoryEngine()
    async with (
        serving_node(MemoryBroker(engine)) as node,
        member(node, "room") as client,
        joined(MemoryBroker(engine)) as other,
    ):
        other.broker.send(room_channel("room"), with_flag(bit))
        assert await client.recv() == "unreadable"
        assert node.stats.ignored.total == 0


@pytest.fixture(params=["memory", "workers", "redis", "nats"])
def create_broker(request: pytest.FixtureRequest, socket_directory: Path) -> Iterator[Callable[[], Broker]]:
    """A function that returns a broker for each node."""
    if request.param == "memory":
        engine = MemoryEngine()
        yield lambda: MemoryBroker(engine)
    elif request.param == "workers":
        yield lambda: WorkersBroker(socket_directory, several_in_process=True)
    elif request.param == "redis":
        with running_engine("redis") as redis:
            yield lambda: RedisBroker(redis.url)
    else:
        with running_nats("2.9") as nats:
            yield lambda: NatsBroker(nats.url)


def damaged(chance: random.Random) -> Iterator[bytes]:
    """Yield envelopes of every kind that were cut, changed and lengthened at random, and random bytes."""
    plain = [
        encode_envelope("room", "room", b"text", node=7, number=1, key="key", excluded=1, slow_consumer="latest"),
        encode_envelope("user", "ann", b"\xff\x00", is_binary=True, node=7, number=2, publisher="bob"),
        encode_envelope("all", "", b"x" * 300, node=7, number=3, compress=True),
        encode_envelope("control", "", b'{"do": "heartbeat", "id": 1}', node=7),
    ]
    plain.append(encode_stored(plain[0], offset=3, previous=2, epoch="abcdefgh"))
    while True:
        envelope = bytearray(chance.choice(plain))
        if chance.random() < 0.1:
            envelope = bytearray(chance.randbytes(chance.randrange(80)))
        for _ in range(chance.randrange(4)):
            envelope[chance.randrange(len(envelope) or 1) : chance.randrange(len(envelope) + 1)] = chance.randbytes(
                chance.randrange(3)
            )
        for _ in range(chance.randrange(4) if envelope else 0):
            envelope[chance.randrange(len(envelope))] = chance.choice((0, 1, 127, 128, 255))
        yield bytes(envelope)


async def test_damaged_envelopes_are_counted_and_harm_nothing(
    create_broker: Callable[[], Broker], caplog: pytest.LogCaptureFixture
) -> None:
    envelopes = damaged(random.Random(5))
    async with (
        serving_node(create_broker()) as node,
        member(node, "room") as client,
        joined(create_broker()) as other,
    ):
        before = node.stats
        for number in range(3000):
            assert other.broker.send(room_channel("room"), next(envelopes))
            if number % 50 == 0:
                await asyncio.sleep(0)
        other.broker.send(room_channel("room"), encode_envelope("room", "room", b"the last one"))
        while await client.recv() != "the last one":
            pass
        stats = node.stats
        assert stats.received - before.received >= 3001
        assert stats.received == stats.delivered + stats.ignored.total
        assert stats.ignored.unreadable > 500
        assert stats.ignored.failed == 0
        assert [record for record in caplog.records if record.exc_info] == []
        assert node.hub.health().ok
