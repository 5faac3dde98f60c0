"""permessage-deflate on a hub: the bytes on the wire, the number of compressions, and bombs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import threading
import tracemalloc
import zlib
from typing import Any

import pytest
import websockets

from tests.support.deflated import TAIL, deflated, dynamic_blocks
from tests.support.raw_peers import REQUEST, RawPeer, masked, port_of, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import (
    CompressionConfig,
    ConfigurationError,
    EventHandler,
    Frame,
    Hub,
    HubConfig,
    Message,
    MisuseError,
    Opcode,
)

OFFER = b"permessage-deflate; client_max_window_bits"
FORGETS = b"permessage-deflate; server_no_context_takeover"
TEXT = json.dumps([{"name": f"row {i}", "value": i * 17} for i in range(40)])


class Inbox:
    """Read the messages that a peer receives, with a window that lasts across messages."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.window = zlib.decompressobj(-15)
        self.wire_bytes = 0

    async def next(self) -> tuple[str, bool]:
        """Return the next text, and whether it was compressed."""
        frame = await self.peer.frame()
        assert frame.opcode is Opcode.TEXT, frame
        self.wire_bytes += len(frame.payload)
        payload = self.window.decompress(frame.payload + TAIL) if frame.rsv1 else frame.payload
        return payload.decode(), frame.rsv1


@contextlib.asynccontextmanager
async def inboxes(url: str, *offers: bytes):
    async with contextlib.AsyncExitStack() as stack:
        yield [Inbox(await stack.enter_async_context(raw_peer(url, extensions=offer))) for offer in offers]


def joining(room: str = "all") -> EventHandler:
    return EventHandler(on_open=lambda connection: connection.join(room), on_message=lambda connection, message: None)


async def members(hub: Hub, count: int, room: str = "all") -> None:
    while hub.room_size(room) < count:
        await asyncio.sleep(0)


async def test_nothing_is_negotiated_unless_it_is_enabled() -> None:
    async with serving(joining()) as (hub, url), raw_peer(url, handshake=False) as peer:
        assert b"extensions" not in (await peer.handshake(OFFER)).lower()
        await members(hub, 1)
        assert hub.room_members("all")[0].compression is None


async def test_what_was_agreed_is_there_to_be_seen() -> None:
    async with (
        serving(joining(), enable_compression=True) as (hub, url),
        connected(url, compression="deflate") as client,
    ):
        assert client.response is not None
        answer = "permessage-deflate; client_no_context_takeover"
        assert client.response.headers["Sec-WebSocket-Extensions"] == answer
        await members(hub, 1)
        agreed = hub.room_members("all")[0].compression
        assert agreed is not None
        assert agreed.response == answer


def test_a_config_enables_it_and_the_short_form_stands_for_the_defaults() -> None:
    assert HubConfig(enable_compression=True).compression == CompressionConfig()
    assert HubConfig(compression=CompressionConfig(level=9)).enable_compression
    assert HubConfig().compression is None
    with pytest.raises(ConfigurationError):
        HubConfig(compression={"level": 9})  # type: ignore[arg-type]


async def test_messages_below_the_threshold_and_those_that_gain_nothing_go_plain() -> None:
    config = CompressionConfig(threshold=100)
    async with serving(joining(), compression=config) as (hub, url), inboxes(url, OFFER) as (inbox,):
        await members(hub, 1)
        connection = hub.room_members("all")[0]
        noise = "".join(random.Random(1).choices([chr(c) for c in range(33, 127)], k=100))
        for text in ("a" * 99, "a" * 100, noise, "", "b" * 5000):
            connection.send(text)
        found = [await inbox.next() for _ in range(5)]
        assert found == [("a" * 99, False), ("a" * 100, True), (noise, False), ("", False), ("b" * 5000, True)]


async def test_the_application_decides_for_a_message() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, OFFER) as (inbox,):
        await members(hub, 1)
        connection = hub.room_members("all")[0]
        for send in (
            lambda **how: connection.send(TEXT, **how),
            lambda **how: connection.send_text(TEXT, **how),
            lambda **how: connection.send_json(json.loads(TEXT), **how),
            lambda **how: hub.broadcast(TEXT, **how),
            lambda **how: hub.broadcast_to_room("all", TEXT, **how),
            lambda **how: hub.broadcast_except(TEXT, 0, **how),
            lambda **how: hub.broadcast_to_room_except("all", TEXT, 0, **how),
        ):
            send()
            send(compress=False)
            assert [(await inbox.next())[1] for _ in range(2)] == [True, False]
        connection.send("a" * 50, compress=True)
        assert await inbox.next() == ("a" * 50, True)


async def test_compression_for_a_message_holds_from_another_thread() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, OFFER) as (inbox,):
        await members(hub, 1)
        connection = hub.room_members("all")[0]

        def calls() -> None:
            connection.send(TEXT, compress=False)
            hub.broadcast(TEXT, compress=False)
            hub.broadcast(TEXT, room="all")

        thread = threading.Thread(target=calls)
        thread.start()
        assert [await inbox.next() for _ in range(3)] == [(TEXT, False), (TEXT, False), (TEXT, True)]
        thread.join()


async def test_a_broadcast_is_compressed_once_however_many_receive_it() -> None:
    async with (
        serving(joining(), enable_compression=True) as (hub, url),
        inboxes(url, *[OFFER] * 40, *[FORGETS] * 10, *[b""] * 10) as receivers,
    ):
        await members(hub, 60)
        assert hub.broadcast(TEXT) == 60
        assert hub.stats().compression.compressions == 1
        for index, receiver in enumerate(receivers):
            assert await receiver.next() == (TEXT, index < 50)
        message = Message(TEXT)
        for _ in range(5):
            hub.broadcast(message, room="all")
        assert hub.stats().compression.compressions == 2


async def test_a_broadcast_is_compressed_once_for_each_size_of_window_that_matters() -> None:
    offers = [b"permessage-deflate; server_max_window_bits=%d" % bits for bits in range(8, 16)]
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, *offers * 3) as receivers:
        await members(hub, 24)
        for text, different in ((TEXT[:300], 2), (TEXT[:1000], 3), (TEXT * 3, 5)):
            before = hub.stats().compression.compressions
            assert hub.broadcast(text) == 24
            assert hub.stats().compression.compressions - before == different
            for receiver in receivers:
                assert await receiver.next() == (text, True)


async def test_a_receiver_with_its_own_history_gets_the_shared_form_and_stays_right() -> None:
    config = CompressionConfig(server_context_takeover=True, threshold=0)
    async with serving(joining(), compression=config) as (hub, url), inboxes(url, *[OFFER] * 2) as (one, two):
        await members(hub, 2)
        first, _ = hub.room_members("all")
        texts = []
        source = random.Random(3)
        for step in range(60):
            text = TEXT[: source.randrange(1, 600)] + str(step)
            texts.append((text, source.random() < 0.5))
            if texts[-1][1]:
                hub.broadcast(text)
            else:
                first.send(text)
        for text, to_all in texts:
            assert (await one.next())[0] == text
            if to_all:
                assert (await two.next())[0] == text


async def test_a_history_of_its_own_makes_repeated_messages_small() -> None:
    config = CompressionConfig(server_context_takeover=True)
    async with serving(joining(), compression=config) as (hub, url), inboxes(url, OFFER, FORGETS) as (one, two):
        await members(hub, 2)
        for connection in hub.room_members("all"):
            connection.send(TEXT)
            connection.send(TEXT)
        for inbox in (one, two):
            assert await inbox.next() == (TEXT, True)
        before = one.wire_bytes, two.wire_bytes
        for inbox in (one, two):
            assert await inbox.next() == (TEXT, True)
        assert one.wire_bytes - before[0] < 40
        # For this client, the hub agreed to use no context takeover.
        assert two.wire_bytes == 2 * before[1]


async def test_clients_may_refer_to_earlier_messages_where_it_was_agreed() -> None:
    received = []
    handler = EventHandler(on_message=lambda connection, message: received.append(message.data))
    config = CompressionConfig(client_context_takeover=True)
    async with serving(handler, compression=config) as (_, url), connected(url, compression="deflate") as client:
        texts = [TEXT[i:] for i in range(30)]
        for text in texts:
            await client.send(text)
        await client.close()
        assert received == texts


@pytest.mark.parametrize("sizes", [[], [1000] * 20], ids=["one frame", "fragments"])
async def test_a_bomb_is_refused_with_1009(sizes) -> None:
    bomb = deflated(bytes(32 << 20))
    async with (
        serving(joining(), enable_compression=True) as (_, url),
        raw_peer(url, extensions=OFFER) as peer,
    ):
        first = True
        for size in sizes:
            piece, bomb = bomb[:size], bomb[size:]
            peer.send(Frame(Opcode.BINARY if first else Opcode.CONTINUATION, piece, fin=False, rsv1=first))
            first = False
        peer.send(Frame(Opcode.BINARY if first else Opcode.CONTINUATION, bomb, rsv1=first))
        assert await peer.close_code() == 1009


async def test_many_small_bombs_do_not_keep_others_waiting() -> None:
    order = []
    handler = EventHandler(on_message=lambda connection, message: order.append(len(message)))
    # Each bomb is within the limit. Together they are some hundred KiB on the wire and 400 MiB decompressed.
    bomb = Frame(Opcode.BINARY, deflated(bytes(1 << 20)), rsv1=True)
    async with (
        serving(handler, enable_compression=True, max_message_size=1 << 20) as (hub, url),
        raw_peer(url, extensions=OFFER) as attacker,
        raw_peer(url) as other,
    ):
        for _ in range(400):
            attacker.send(bomb)
        await attacker.writer.drain()
        while not order:
            await asyncio.sleep(0)
        other.send(Frame.text("x"))
        while 1 not in order:
            await asyncio.sleep(0)
        assert order.index(1) < 100
        while len(order) < 401:
            await asyncio.sleep(0)
        assert hub.connection_count == 2


async def test_messages_of_empty_blocks_do_not_keep_others_waiting() -> None:
    order = []
    handler = EventHandler(on_message=lambda connection, message: order.append(len(message)))
    # Each message is within the limit on blocks, and takes as long as 400,000 bytes.
    frame = Frame(Opcode.BINARY, dynamic_blocks(200), rsv1=True)
    async with (
        serving(handler, enable_compression=True) as (_, url),
        raw_peer(url, extensions=OFFER) as attacker,
    ):
        for _ in range(200):
            attacker.send(frame)
        most = 0
        while len(order) < 200:
            before = len(order)
            await asyncio.sleep(0)
            most = max(most, len(order) - before)
        assert most <= 6


async def test_a_bomb_that_is_received_in_its_place_ends_the_turn_too() -> None:
    turn = 0
    turns: list[int] = []
    handler = EventHandler(on_message=lambda connection, message: turns.append(turn))
    payload = deflated(random.Random(6).randbytes(30_000) + bytes(4 << 20))
    bomb = masked(Frame(Opcode.BINARY, payload, rsv1=True))
    async with (
        serving(handler, enable_compression=True, max_message_size=8 << 20) as (hub, url),
        raw_peer(url, extensions=OFFER) as peer,
    ):
        before = hub.stats().bytes_received
        peer.write(bomb[:10_000])
        while hub.stats().bytes_received - before < 10_000:
            await asyncio.sleep(0)
        peer.write(bomb[10_000:] + masked(Frame.text("next")))
        while len(turns) < 2:
            turn += 1
            await asyncio.sleep(0)
        assert turns[0] < turns[1]


@pytest.mark.parametrize("payload", [b"\xff\xff", deflated(b"x" * 500)[:-3]])
async def test_data_that_cannot_be_decompressed_closes_with_1007(payload) -> None:
    async with serving(joining(), enable_compression=True) as (_, url), raw_peer(url, extensions=OFFER) as peer:
        peer.send(Frame(Opcode.BINARY, payload, rsv1=True))
        assert await peer.close_code() == 1007


async def test_rsv1_from_a_client_that_negotiated_nothing_closes_with_1002() -> None:
    async with serving(joining(), enable_compression=True) as (_, url), raw_peer(url) as peer:
        peer.send(Frame(Opcode.BINARY, deflated(b"x"), rsv1=True))
        assert await peer.close_code() == 1002


async def test_one_client_cannot_refer_to_what_another_has_sent() -> None:
    secret = random.Random(5).randbytes(300).hex()
    guess = deflated(secret.encode(), history=secret.encode())
    async with (
        serving(joining(), enable_compression=True) as (_, url),
        connected(url, compression="deflate") as victim,
        raw_peer(url, extensions=OFFER) as attacker,
    ):
        await victim.send(secret)
        await (await victim.ping())
        attacker.send(Frame(Opcode.BINARY, guess, rsv1=True))
        assert await attacker.close_code() == 1007


# Rooms with a shared window


def ticks(count: int) -> list[str]:
    source = random.Random(11)
    price = 1000.0
    found = []
    for i in range(count):
        price += source.uniform(-1, 1)
        tick = {"type": "tick", "symbol": "BTCUSD", "bid": round(price, 2), "ask": round(price + 0.5, 2), "seq": i}
        found.append(json.dumps(tick | {"time": 1_700_000_000_000 + 250 * i, "venue": "XNAS"}))
    return found


async def test_a_shared_window_makes_messages_of_a_room_much_smaller() -> None:
    config = CompressionConfig(threshold=0)
    async with serving(joining(), compression=config) as (hub, url), inboxes(url, *[OFFER] * 3) as receivers:
        await members(hub, 3)
        sizes = []
        for compression in ("message", "shared"):
            hub.configure_room("all", compression=compression)
            before = receivers[0].wire_bytes
            for tick in ticks(300):
                assert hub.broadcast(tick, room="all") == 3
                for receiver in receivers:
                    assert await receiver.next() == (tick, True)
            sizes.append(receivers[0].wire_bytes - before)
        assert sizes[1] <= 0.35 * sizes[0]
        # No member joined in between, so every message was compressed once.
        assert hub.stats().compression.compressions == 600


async def test_a_member_that_comes_later_is_in_sync_after_a_restart() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, OFFER) as (first,):
        hub.configure_room("all", compression="shared", restart_interval=5)
        await members(hub, 1)
        hub.broadcast("tick 0", room="all")
        async with inboxes(url, OFFER, FORGETS, b"") as later:
            await members(hub, 4)
            for i in range(1, 12):
                hub.broadcast(f"tick {i}", room="all")
            assert [await first.next() for _ in range(12)] == [(f"tick {i}", True) for i in range(12)]
            found = [await later[0].next() for _ in range(11)]
            assert [text for text, _ in found] == [f"tick {i}" for i in range(1, 12)]
            compressed = [is_compressed for _, is_compressed in found]
            assert compressed == sorted(compressed)
            # The window restarts after one missed message for each member that can be in sync; here there are two.
            assert compressed.count(False) == 2
            for receiver in later[1:]:
                assert [await receiver.next() for _ in range(11)] == [(f"tick {i}", False) for i in range(1, 12)]


async def test_a_private_message_leaves_a_member_in_sync_unless_it_is_long() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, *[OFFER] * 9) as receivers:
        hub.configure_room("all", compression="shared")
        await members(hub, 9)
        one = hub.room_members("all")[0]
        expected = []
        for text, private, compressed in (
            ("tick", False, True),
            (TEXT, True, False),
            ("tick", False, True),
            (TEXT * 9, True, True),
            ("tick", False, False),
        ):
            if private:
                one.send(text)
            else:
                hub.broadcast(text, room="all")
            expected.append((text, compressed))
        assert [await receivers[0].next() for _ in expected] == expected
        assert [await receivers[1].next() for _ in range(3)] == [("tick", True)] * 3


async def test_a_member_that_is_left_out_or_comes_back_is_out_of_step() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, *[OFFER] * 9) as receivers:
        hub.configure_room("all", compression="shared")
        await members(hub, 9)
        left_out, returning, *_ = hub.room_members("all")
        hub.broadcast("tick 1", room="all")
        hub.broadcast("tick 2", room="all", exclude=left_out)
        returning.leave("all")
        hub.broadcast("tick 3", room="all")
        returning.join("all")
        hub.broadcast("tick 4", room="all")
        assert [await receivers[0].next() for _ in range(3)] == [
            ("tick 1", True),
            ("tick 3", False),
            ("tick 4", False),
        ]
        found = [await receivers[1].next() for _ in range(3)]
        assert found == [("tick 1", True), ("tick 2", True), ("tick 4", False)]


async def test_the_settings_of_a_room_last_while_nobody_is_in_it_and_can_be_changed() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url):
        hub.configure_room("all", compression="shared")
        for _ in range(2):
            async with inboxes(url, OFFER) as (inbox,):
                await members(hub, 1)
                hub.broadcast("tick", room="all")
                assert await inbox.next() == ("tick", True)
                hub.configure_room("all")
                hub.broadcast("tick", room="all")
                assert await inbox.next() == ("tick", False)
                hub.configure_room("all", compression="shared")
            while hub.room_size("all"):
                await asyncio.sleep(0)


async def test_what_is_sent_after_a_room_has_given_up_its_window_is_compressed_as_ever() -> None:
    """Messages are compressed although their members were last in sync with a window that is gone."""

    for compression in ("message", "shared"):
        async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, OFFER) as (inbox,):
            hub.configure_room("all", compression="shared")
            await members(hub, 1)
            (member,) = hub.room_members("all")
            hub.broadcast("tick", room="all")
            assert await inbox.next() == ("tick", True)
            hub.configure_room("all", compression=compression)
            member.send(TEXT)
            hub.broadcast(TEXT, room="all")
            member.leave("all")
            member.send(TEXT)
            assert [await inbox.next() for _ in range(3)] == [(TEXT, True)] * 3


async def test_a_member_that_is_left_out_when_a_window_restarts_is_in_sync_with_none() -> None:
    async with serving(joining(), enable_compression=True) as (hub, url), inboxes(url, OFFER, OFFER) as receivers:
        hub.configure_room("all", compression="shared", restart_interval=1)
        await members(hub, 2)
        left_out, _ = hub.room_members("all")
        hub.broadcast("tick 1", room="all")
        hub.broadcast("tick 2", room="all", exclude=left_out)
        left_out.send(TEXT)
        assert [await receivers[0].next() for _ in range(2)] == [("tick 1", True), (TEXT, True)]
        assert [await receivers[1].next() for _ in range(2)] == [("tick 1", True), ("tick 2", True)]


def test_a_room_cannot_be_configured_as_what_it_cannot_be() -> None:
    with pytest.raises(MisuseError):
        Hub().configure_room("all", compression="shared")
    hub = Hub(HubConfig(enable_compression=True))
    for settings in ({"compression": "zip"}, {"restart_interval": 0}, {"restart_interval": "1"}):
        with pytest.raises(ConfigurationError):
            hub.configure_room("all", **settings)


async def test_an_interrupted_send_does_not_break_the_window() -> None:
    # In aiohttp, a cancelled or overtaken send left the compressor broken.
    async def endpoint(connection) -> None:
        async for message in connection:

            async def answer(text=message.data) -> None:
                connection.send(text)
                await connection.drain()

            tasks = [asyncio.create_task(answer()) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    config = CompressionConfig(server_context_takeover=True, client_context_takeover=True)
    async with serving(endpoint, compression=config) as (_, url), websockets.connect(url, proxy=None) as client:
        for i in range(20):
            text = TEXT[i:]
            await client.send(text)
            assert [await client.recv() for _ in range(3)] == [text] * 3


async def test_broadcast_frames_a_message_once_for_all() -> None:
    """Each receiver's queue refers to the same frame: the queued bytes are many times the memory in use."""

    async with serving(EventHandler(), max_send_buffer=1 << 30) as (hub, url):
        stalled = []
        for _ in range(20):
            peer = socket.create_connection(("127.0.0.1", port_of(url)))
            peer.sendall(REQUEST)
            stalled.append(peer)
        while hub.connection_count < 20:
            await asyncio.sleep(0)
        # Fill the kernel's buffers first.
        for _ in range(10):
            hub.broadcast(bytes(1 << 20))
            await asyncio.sleep(0)
        tracemalloc.start()
        for _ in range(10):
            hub.broadcast(bytes(1 << 20))
        queued, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert queued < 12 << 20
        for peer in stalled:
            peer.close()


DEFLATE = b"permessage-deflate"


async def test_nothing_is_compressed_below_the_threshold_or_where_a_message_says_so() -> None:
    opened: asyncio.Queue[Any] = asyncio.Queue()
    handler = EventHandler(on_open=opened.put_nowait)
    compression = CompressionConfig(threshold=100)
    async with serving(handler, compression=compression) as (hub, url), raw_peer(url, extensions=DEFLATE) as peer:
        connection = await opened.get()
        connection.send("a" * 1000)
        connection.send("a" * 1000, compress=False)
        hub.broadcast("a" * 1000, compress=False)
        connection.send("a" * 99)
        connection.send("a" * 99, compress=True)
        assert [(await peer.frame()).rsv1 for _ in range(5)] == [True, False, False, False, True]
    async with serving(handler) as (_, url), raw_peer(url, extensions=DEFLATE) as peer:
        connection = await opened.get()
        connection.send("a" * 1000, compress=True)
        assert not (await peer.frame()).rsv1
