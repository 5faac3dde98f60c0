"""Messages for a peer that does not read, under each policy of a hub, a room and a message."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from tests.support.raw_peers import REQUEST, RawPeer, masked, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import (
    CompressionConfig,
    ConfigurationError,
    Connection,
    ConnectionState,
    EventHandler,
    Frame,
    Hub,
    HubConfig,
    Message,
    MisuseError,
    Opcode,
    RoomConfig,
)

POLICIES = ("close", "drop_newest", "drop_oldest", "latest")
SIZE = 4000
PADDING = "x" * SIZE


def check(counts: dict) -> None:
    dropped = counts.dropped.total
    assert counts.messages_accepted == counts.messages_delivered + dropped + counts.messages_pending


class Stalled:
    """A peer that does not read, and its connection, which has queued messages."""

    def __init__(self, hub: Hub, peer: RawPeer, connection: Connection) -> None:
        self.hub = hub
        self.peer = peer
        self.connection = connection

    async def catch_up(self) -> list[int]:
        """Resume reading; return the numbers of all messages."""
        self.peer.writer.transport.resume_reading()
        received = asyncio.create_task(self._read_numbers())
        await self.connection.drain()
        self.connection.send(message(-1))
        return await received

    async def _read_numbers(self) -> list[int]:
        """Return the numbers of all messages before -1."""
        numbers = []
        while True:
            frame = await self.peer.frame()
            if frame.opcode is not Opcode.TEXT:
                continue
            number = json.loads(frame.payload)[0]
            if number == -1:
                return numbers
            numbers.append(number)


def message(number: int) -> str:
    return json.dumps([number, PADDING])


@contextlib.asynccontextmanager
async def stalled(**settings) -> AsyncIterator[Stalled]:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_open(connection: Connection) -> None:
        connection.join("room")
        if not opened.done():
            opened.set_result(connection)

    handler = EventHandler(on_open=on_open)
    async with serving(handler, max_send_buffer=64 * 1024, **settings) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        yield Stalled(hub, peer, connection)


async def fill(scene: Stalled, first: int = 0) -> int:
    """Send until a message waits for the peer; return the number of the next message."""
    number = first
    while not scene.connection.buffered:
        scene.connection.send(message(number))
        number += 1
        await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("level", ["hub", "room", "message"])
async def test_a_policy_keeps_the_connection_and_bounds_what_waits(policy, level) -> None:
    async with stalled(slow_consumer=policy if level == "hub" else "close") as scene:
        hub = scene.hub
        if level == "room":
            hub.configure_room("room", slow_consumer=policy)
        first = await fill(scene)
        for number in range(first, first + 200):
            if level == "message":
                hub.broadcast(message(number), room="room", slow_consumer=policy, key=f"{number}")
            else:
                hub.broadcast_to_room("room", message(number), key=f"{number}")
            assert scene.connection.buffered <= 64 * 1024 + SIZE + 100
            if number % 20 == 0:
                await asyncio.sleep(0)
            check(hub.stats())
            check(hub.stats(room="room"))
        counts = hub.stats(room="room")
        assert counts.messages_accepted == 200
        name = "newest" if policy == "drop_newest" else "oldest"
        assert getattr(counts.dropped, name) > 100
        # The last message of fill() may have been dropped too; it does not belong to the room.
        dropped = getattr(hub.stats().dropped, name)
        assert dropped - getattr(counts.dropped, name) in (0, 1)
        assert counts.dropped.total == getattr(counts.dropped, name)
        numbers = await scene.catch_up()
        assert len(numbers) == first + 200 - dropped
        assert numbers == sorted(numbers)
        if policy == "drop_newest":
            assert numbers == list(range(len(numbers)))
        else:
            assert numbers[-10:] == list(range(first + 190, first + 200))
            assert numbers[: first - 2] == list(range(first - 2))
        counts = hub.stats(room="room")
        assert counts.messages_pending == 0
        check(counts)


async def test_close_is_1013_and_counts_every_message() -> None:
    async with stalled() as scene:
        number = 0
        while not scene.hub.stats().dropped.slow:
            scene.hub.broadcast(message(number), room="room")
            number += 1
            check(scene.hub.stats())
            await asyncio.sleep(0)
        assert scene.hub.room_size("room") == 0
        assert scene.hub.stats().messages_accepted == number
        scene.peer.writer.transport.resume_reading()
        assert await scene.peer.close_code() == 1013


@pytest.mark.parametrize("use_reactor", [True, False])
@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
async def test_what_is_sent_with_close_is_never_dropped_for_what_is_sent_otherwise(policy, use_reactor) -> None:
    async with stalled(slow_consumer="close", use_reactor=use_reactor) as scene:
        hub, connection = scene.hub, scene.connection
        hub.configure_room("room", slow_consumer=policy)
        first = await fill(scene)
        shared = Message(json.dumps([1000]))
        connection.send(shared)
        connection.send(json.dumps([1001]), key="one")
        for number in range(2000, 2200):
            hub.broadcast(message(number), room="room", key=f"{number}")
        # The same message under another policy is queued as a separate frame.
        connection.send(shared, slow_consumer=policy)
        connection.send(json.dumps([1002]), slow_consumer=policy, key="one")
        for number in range(2200, 2400):
            hub.broadcast(message(number), room="room", key=f"{number}")
        assert hub.stats().dropped.oldest > 350
        assert hub.stats(room="room").dropped.oldest == hub.stats().dropped.oldest - 2
        numbers = await scene.catch_up()
        assert numbers[: first + 2] == [*range(first), 1000, 1001]
        assert numbers[first + 2 :] == list(range(2400 - len(numbers[first + 2 :]), 2400))


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_where_what_may_be_dropped_would_not_make_room_the_new_message_is(use_reactor) -> None:
    async with stalled(slow_consumer="close", use_reactor=use_reactor) as scene:
        hub, connection = scene.hub, scene.connection
        first = await fill(scene)
        connection.send(json.dumps([500]), slow_consumer="drop_oldest")
        number = 1000
        while connection.buffered < 58 * 1024:
            connection.send(message(number))
            number += 1
        # Everything above the limit now exceeds what may be dropped.
        connection.send(json.dumps([number, PADDING * 4]))
        number += 1
        for policy in ("drop_oldest", "latest"):
            assert hub.broadcast(message(9000), room="room", slow_consumer=policy) == 0
        dropped = hub.stats().dropped
        assert dropped.newest == 2
        assert dropped.oldest == dropped.slow == 0
        assert connection.state is ConnectionState.OPEN
        check(hub.stats(room="room"))
        assert await scene.catch_up() == [*range(first), 500, *range(1000, number)]
        scene.peer.writer.transport.pause_reading()
        while connection.state is ConnectionState.OPEN:
            connection.send(message(0))
            await asyncio.sleep(0)
        scene.peer.writer.transport.resume_reading()
        assert await scene.peer.close_code() == 1013


async def test_the_latest_of_each_key_takes_the_place_of_the_one_that_waits() -> None:
    async with stalled(slow_consumer="latest") as scene:
        first = await fill(scene)
        hub = scene.hub
        for number in range(1000, 4000):
            hub.broadcast(json.dumps([number]), room="room", key=f"price {number % 3}")
        hub.broadcast(json.dumps([4000]), room="room", key="price 1")
        # A message without a key is never replaced.
        scene.connection.send(json.dumps([5000]))
        scene.connection.send(json.dumps([5001]))
        counts = hub.stats(room="room")
        assert counts.dropped.replaced == 2998
        assert counts.messages_pending == 3
        assert await scene.catch_up() == [*range(first), 4000, 3998, 3999, 5000, 5001]
        check(hub.stats())
        check(hub.stats(room="room"))


async def test_the_latest_comes_last_also_if_several_of_its_key_wait() -> None:
    """Several are queued if they were sent in one iteration, before the hub knew that the peer does not read."""

    async with stalled(slow_consumer="latest") as scene:
        number = 1
        while not scene.connection.buffered:
            for _ in range(30):
                scene.connection.send(message(number), key="price")
                number += 1
            await asyncio.sleep(0)
        scene.connection.send(message(1_000_000), key="price")
        numbers = await scene.catch_up()
        assert numbers == sorted(numbers)
        assert numbers[-1] == 1_000_000


@pytest.mark.parametrize("name", ["room", "ro*"])
async def test_the_latest_of_a_room_is_that_of_the_room_if_no_key_is_given(name) -> None:
    async with stalled() as scene:
        scene.hub.configure_room(name, slow_consumer="latest")
        first = await fill(scene)
        for number in range(1000, 1100):
            scene.hub.broadcast(json.dumps([number]), room="room")
        assert await scene.catch_up() == [*range(first), 1099]


async def test_the_policy_of_a_pattern_holds_in_a_room_that_is_opened_later() -> None:
    async with stalled(slow_consumer="drop_newest") as scene:
        scene.hub.configure_room("late*", slow_consumer="latest")
        scene.connection.join("later")
        first = await fill(scene)
        for number in range(1000, 1100):
            scene.hub.broadcast(json.dumps([number]), room="later")
        assert await scene.catch_up() == [*range(first), 1099]


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_a_key_of_a_room_is_not_that_of_another_nor_of_all_connections_nor_of_one(use_reactor) -> None:
    async with stalled(slow_consumer="latest", use_reactor=use_reactor) as scene:
        first = await fill(scene)
        hub, connection = scene.hub, scene.connection
        connection.join("other")
        for number in (0, 4):
            hub.broadcast(json.dumps([number]), room="room", key="BTC")
            hub.broadcast(json.dumps([number + 1]), room="other", key="BTC")
            hub.broadcast(json.dumps([number + 2]), key="BTC")
            connection.send(json.dumps([number + 3]), key="BTC")
            if number == 0:
                assert hub.stats().dropped.replaced == 0
        assert hub.stats().dropped.replaced == 4
        assert await scene.catch_up() == [*range(first), 4, 5, 6, 7]


async def test_keys_that_a_queue_has_the_same_tag_for_are_told_apart() -> None:
    async with stalled(slow_consumer="latest") as scene:
        first = await fill(scene)
        connection = scene.connection
        connection.send(json.dumps([1000]), key="one")
        # Keys are numbered in order. A tag has 16 bits, and three of its values are reserved.
        for number in range((1 << 16) - 4):
            scene.hub.broadcast("for nobody", room="empty", key=f"{number}")
        connection.send(json.dumps([1001]), key="another")
        assert scene.hub.stats().dropped.replaced == 0
        connection.send(json.dumps([1002]), key="one")
        assert scene.hub.stats().dropped.replaced == 1
        assert await scene.catch_up() == [*range(first), 1002, 1001]


async def test_names_of_keys_cost_bounded_memory() -> None:
    async with Hub() as hub:
        tracemalloc.start()
        for count, length in ((100_000, 1), (40, 1 << 20)):
            for number in range(count):
                hub.broadcast("x", key=f"{number}".rjust(length))
            held, _ = tracemalloc.get_traced_memory()
            assert held < 16 << 20
        tracemalloc.stop()


async def test_one_message_under_two_keys_and_in_two_rooms_is_counted_in_each() -> None:
    async with stalled(slow_consumer="latest") as scene:
        first = await fill(scene)
        hub = scene.hub
        scene.connection.join("other")
        shared = Message(json.dumps([7]))
        hub.broadcast(shared, room="room", key="a")
        hub.broadcast(shared, room="other", key="b")
        scene.connection.send(shared)
        hub.broadcast(json.dumps([8]), room="room", key="a")
        assert hub.stats(room="room").dropped.replaced == 1
        assert hub.stats(room="other").messages_pending == 1
        assert await scene.catch_up() == [*range(first), 8, 7, 7]
        assert hub.stats(room="other").messages_delivered == 1


def test_a_reader_that_keeps_up_gets_everything_whatever_the_policy(run) -> None:
    async def scenario(policy: str) -> None:
        async with serving(EventHandler(on_open=lambda connection: connection.join("room")), slow_consumer=policy) as (
            hub,
            url,
        ):
            async with connected(url) as client:
                for number in range(3000):
                    hub.broadcast(f"{number}", room="room", key="one")
                    if number % 50 == 0:
                        await asyncio.sleep(0)
                assert [await client.recv() for _ in range(3000)] == [str(number) for number in range(3000)]
            assert not hub.stats().dropped.total

    for policy in POLICIES:
        run(scenario(policy))


@pytest.mark.one_loop
@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize("window", ["message", "shared"])
async def test_what_is_dropped_never_breaks_the_decompressor_of_the_peer(policy, takeover, window) -> None:
    """A client of the websockets package stalls and misses messages, and can decompress every later one."""

    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_open(connection: Connection) -> None:
        connection.join("room")
        opened.set_result(connection)

    compression = CompressionConfig(threshold=1, server_context_takeover=takeover)
    settings = {"slow_consumer": policy, "compression": compression, "max_send_buffer": 16 * 1024}
    async with serving(EventHandler(on_open=on_open), **settings) as (hub, url):
        hub.configure_room("room", compression=window, restart_interval=16)
        async with connected(url, compression="deflate", max_queue=1) as client:
            connection = await opened
            for number in range(40):
                hub.broadcast(json.dumps([number, "the same again"]), room="room")
                connection.send(json.dumps([number, "the same again"]))
            noise = random.Random(0)
            number = 40
            while not hub.stats().dropped.total:
                text = json.dumps([number, noise.randbytes(9000).hex()])
                hub.broadcast(text, room="room", key=f"{number % 5}")
                connection.send(text, key=f"{number % 5}")
                number += 1
                await asyncio.sleep(0)
            for following in range(number, number + 300):
                hub.broadcast(json.dumps([following, "the same again"]), room="room", key=f"{following % 5}")
                connection.send(json.dumps([following, "the same again"]), key=f"{following % 5}")
            received = [json.loads(await client.recv())]
            while connection.buffered:
                received.append(json.loads(await client.recv()))
            for last in range(1_000_000, 1_000_040):
                hub.broadcast(json.dumps([last, "the same again"]), room="room")
                connection.send(json.dumps([last, "the same again"]))
            while received[-1][0] != 1_000_039 or received[-2][0] != 1_000_039:
                received.append(json.loads(await client.recv()))
            counts = hub.stats()
            check(counts)
            assert len(received) == counts.messages_delivered
            for key in range(5):
                # A message takes the position of the one that it replaces, which may precede that of another key.
                numbers = [number for number, _ in received if policy != "latest" or number % 5 == key]
                assert numbers == sorted(numbers)


async def test_a_stalled_reader_costs_the_others_no_message() -> None:
    async with stalled(slow_consumer="drop_oldest") as scene:
        url = f"ws://127.0.0.1:{scene.peer.writer.get_extra_info('peername')[1]}/"
        await fill(scene)
        async with raw_peer(url) as other:
            scene.hub.broadcast("[0]")
            assert (await other.frame()).payload == b"[0]"
            for number in range(1000):
                scene.hub.broadcast(message(number))
                assert (await other.frame()).payload == message(number).encode()


def test_a_policy_or_a_key_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="slow_consumer"):
        HubConfig(slow_consumer="block")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="slow_consumer"):
        RoomConfig(slow_consumer=["close"])  # type: ignore[arg-type]
    hub = Hub()
    with pytest.raises(MisuseError, match="slow_consumer"):
        hub.broadcast("x", slow_consumer="block")  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="slow_consumer"):
        hub.broadcast("x", slow_consumer=["close"])  # type: ignore[arg-type,list-item]
    with pytest.raises(MisuseError, match="key"):
        hub.broadcast("x", key=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", ["own", "shared"])
async def test_no_compressed_message_comes_between_another_and_one_that_refers_to_it(window) -> None:
    """In the position of a plain message it would shift the back-references of the later message."""

    compression = CompressionConfig(server_context_takeover=window == "own")
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_open(connection: Connection) -> None:
        connection.join("room")
        opened.set_result(connection)

    settings = {"compression": compression, "max_send_buffer": 1 << 24}
    async with serving(EventHandler(on_open=on_open), **settings) as (hub, url):
        hub.configure_room("room", compression="shared" if window == "shared" else "message")
        async with connected(url, compression="deflate", max_queue=1, max_size=None) as client:
            connection = await opened
            while not connection.buffered:
                connection.send(bytes(100_000), compress=False)
                await asyncio.sleep(0)

            def send(text: str) -> None:
                if window == "shared":
                    hub.broadcast(text, room="room")
                else:
                    connection.send(text)

            first, second = (f"{number} the quick brown fox jumps over the lazy dog " * 8 for number in (1, 2))
            send(first)
            connection.send("plain", slow_consumer="latest", key="key")
            send(second)
            latest = "unrelated to all of them " * 800
            connection.send(latest, slow_consumer="latest", key="key")
            connection.send("end")
            assert hub.stats().dropped.replaced == 1
            received = []
            while (message := await client.recv()) != "end":
                received.append(message)
            assert [message for message in received if message != bytes(100_000)] == [first, second, latest]
            check(hub.stats())


async def test_what_a_peer_sends_is_handled_though_more_is_sent_to_it_than_it_takes() -> None:
    """The policy drops what exceeds the queue. So the hub can read on, and learn that the peer wants less."""

    handled = asyncio.Event()

    def on_message(connection: Connection, message: Message) -> None:
        handled.set()

    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_message=on_message)
    settings = {"slow_consumer": "drop_oldest", "max_send_buffer": 64 * 1024}
    async with serving(handler, **settings) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        peer.writer.transport.pause_reading()
        while not hub.stats().dropped.oldest:
            connection.send(PADDING)
            await asyncio.sleep(0)
        peer.send(Frame.text("unsubscribe"))
        await handled.wait()
        assert connection.buffered >= 64 * 1024


async def test_very_short_messages_count_for_the_memory_that_they_take() -> None:
    async with stalled(slow_consumer="drop_newest") as scene:
        await fill(scene)
        waiting = scene.connection.buffered
        for _ in range(10_000):
            scene.connection.send(b"")
        assert scene.connection.buffered - 64 < 64 * 1024
        queued = (scene.connection.buffered - waiting) // 64
        assert queued > 100
        assert queued <= scene.hub.stats().messages_pending <= queued + waiting // SIZE + 1
        check(scene.hub.stats())


@pytest.mark.parametrize("use_reactor", [True, False])
@pytest.mark.parametrize("policy", POLICIES[1:])
async def test_a_slow_reader_gets_its_pong_and_drain_returns_while_more_is_queued(policy, use_reactor) -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    settings = {"max_send_buffer": 1 << 18, "slow_consumer": policy, "use_reactor": use_reactor}
    hub = Hub(HubConfig(**settings))
    listener = socket.create_server(("127.0.0.1", 0))
    # Keep the kernel from accepting the whole queue at once.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
    async with hub.serve(sock=listener, handler=EventHandler(on_open=opened.set_result)) as server:
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            peer.connect(("127.0.0.1", server.port))
            peer.sendall(REQUEST)
            connection = await opened
            while not hub.stats().dropped.total:
                hub.broadcast(bytes(1000))
                await asyncio.sleep(0)
            peer.sendall(masked(Frame.ping(b"are you there?")))
            draining = asyncio.create_task(connection.drain())
            received = bytearray()
            for _ in range(200):
                received += peer.recv(1 << 13)
                if b"are you there?" in received and draining.done():
                    break
                for _ in range(4):
                    await asyncio.sleep(0)
                    assert connection.buffered
                    while connection.buffered < 1 << 18:
                        hub.broadcast(bytes(1000))
            assert draining.done()
            assert b"are you there?" in received
            check(hub.stats())


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_a_slow_reader_has_one_pong_waiting_and_gets_the_latest_behind_it(use_reactor) -> None:
    pinged: list[bytes] = []
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_ping=lambda connection, payload: pinged.append(payload))
    async with (
        serving(handler, max_send_buffer=1 << 25, use_reactor=use_reactor) as (_, url),
        raw_peer(url) as peer,
    ):
        peer.writer.transport.pause_reading()
        connection = await opened
        connection.send(bytes(16_000_000))
        for _ in range(20):
            await asyncio.sleep(0)
        before = connection.buffered
        for number in range(100):
            peer.send(Frame.ping(b"%d" % number))
        while len(pinged) < 100:
            await asyncio.sleep(0)
        assert connection.buffered <= before + 64
        peer.writer.transport.resume_reading()
        pongs = []
        while not pongs or pongs[-1] != b"99":
            frame = await peer.frame()
            if frame.opcode is Opcode.PONG:
                pongs.append(frame.payload)
        assert pongs == [b"0", b"99"]
