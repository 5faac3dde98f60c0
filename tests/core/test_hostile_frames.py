"""Known failures of other WebSocket servers, caused by frames that no other test sends.

SECURITY.md says where each of them happened. test_hostile_handshakes.py covers handshakes; tests/asgi/test_limits.py
covers the limits on each link.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import time
import tracemalloc
import zlib

import pytest

from tests.support.deflated import TAIL
from tests.support.raw_peers import MASK, REQUEST, RawPeer, masked, port_of, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import serving
from wshub import CompressionConfig, EventHandler, Frame, Hub, HubConfig, InvalidMessageError, Opcode, RateLimits
from wshub.errors import ProtocolError
from wshub.protocol.parser import FrameParser

MIB = 1 << 20
NO_RATES = RateLimits(control_frames=0)


@pytest.fixture(params=[pytest.param(True, id="reactor", marks=needs_reactor), pytest.param(False, id="transports")])
def reactor(request: pytest.FixtureRequest) -> bool:
    return request.param


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


async def until_empty(hub: Hub) -> None:
    while hub.connection_count or hub.bind().connection_count:
        await asyncio.sleep(0)


def header(first: int, length: int) -> bytes:
    """Return the header of a client's frame that declares that many bytes, in the longest encoding."""
    return bytes([first, 0xFF]) + length.to_bytes(8, "big") + MASK


def logged(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Return the levels of the log records above INFO, without the loop's warnings about failed writes."""
    records = [record for record in caplog.records if record.levelno > logging.INFO]
    return [record.levelno for record in records if record.name != "asyncio" or record.levelno > logging.WARNING]


# Lengths and fragments


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (1 << 62, 1009),
        ((1 << 63) - 1, 1009),
        (1 << 63, 1002),
        ((1 << 64) - 1, 1002),
    ],
)
def test_a_length_that_nothing_can_hold_is_an_end_whatever_the_limit(length: int, code: int) -> None:
    for first in (0x81, 0x82, 0x01, 0x02):
        ((name, error),) = FrameParser((1 << 62) - 1).feed(header(first, length))
        assert name == "failure"
        assert isinstance(error, ProtocolError)
        assert error.code == code


@pytest.mark.parametrize("length", [1000, 1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1000, (1 << 63) - 1])
def test_a_length_that_would_overflow_the_sum_of_the_fragments_allocates_nothing(length: int) -> None:
    parser = FrameParser(1000)
    parser.feed(masked(Frame(Opcode.BINARY, b"x", fin=False)))
    last = b"\x80\xfe" + length.to_bytes(2, "big") + MASK if length < 1 << 16 else header(0x80, length)
    tracemalloc.start()
    try:
        ((_, error),) = parser.feed(last)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, ProtocolError)
    assert error.code == 1009
    assert peak < 10_000


@pytest.mark.parametrize("byte", [b"", b"x"], ids=["empty", "one byte"])
def test_more_than_a_million_fragments_are_bounded_in_memory_and_linear_in_time(byte: bytes) -> None:
    many = masked(Frame(Opcode.CONTINUATION, byte, fin=False)) * 100_000
    parser = FrameParser(1 << 30)
    took = []
    tracemalloc.start()
    try:
        parser.feed(masked(Frame(Opcode.BINARY, b"", fin=False)))
        blocks = sys.getallocatedblocks()
        for _ in range(11):
            started = time.process_time()
            assert parser.feed(many) == []
            took.append(time.process_time() - started)
        _, peak = tracemalloc.get_traced_memory()
        assert sys.getallocatedblocks() - blocks < 100
    finally:
        tracemalloc.stop()
    # At most twice the message.
    assert peak < 2 * 1_100_000 * len(byte) + 10_000
    assert min(took[5:]) < 10 * max(min(took[:5]), 0.001)
    ((_, message),) = parser.feed(masked(Frame(Opcode.CONTINUATION, b"")))
    assert len(message.data) == 1_100_000 * len(byte)


def test_a_message_in_segments_of_one_byte_costs_its_memory_and_no_object_for_each() -> None:
    parser = FrameParser(MIB)
    frame = masked(Frame.binary(bytes(MIB)))
    gc.collect()
    tracemalloc.start()
    try:
        parser.feed(frame[:1])
        blocks = sys.getallocatedblocks()
        for index in range(1, len(frame) - 1):
            parser.feed(frame[index : index + 1])
        assert sys.getallocatedblocks() - blocks < 100
        _, peak = tracemalloc.get_traced_memory()
        ((name, _),) = parser.feed(frame[-1:])
    finally:
        tracemalloc.stop()
    assert name == "message"
    assert peak < 2 * MIB


async def test_a_hub_keeps_no_object_for_each_segment_it_reads(reactor) -> None:
    size = 6000

    async with serving(echo(), use_reactor=reactor) as (hub, url):
        with socket.create_connection(("127.0.0.1", port_of(url))) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(REQUEST)
            while not hub.connection_count:
                await asyncio.sleep(0)
            frame = masked(Frame.binary(bytes(size)))
            before = hub.stats().bytes_received

            async def send(start: int, end: int) -> None:
                for index in range(start, end):
                    peer.send(frame[index : index + 1])
                    while hub.stats().bytes_received - before <= index:
                        await asyncio.sleep(0)

            await send(0, 500)
            gc.collect()
            blocks = sys.getallocatedblocks()
            await send(500, len(frame) - 1)
            gc.collect()
            assert sys.getallocatedblocks() - blocks < 500
            await send(len(frame) - 1, len(frame))
            assert hub.stats().messages_received == 1


# Floods


async def test_endless_messages_of_one_byte_wait_in_the_kernel_while_nothing_is_received(reactor) -> None:
    ended = asyncio.Event()

    async def endpoint(connection) -> None:
        await ended.wait()

    async with serving(endpoint, close_timeout_ms=100, use_reactor=reactor) as (hub, url), raw_peer(url) as peer:
        peer.write(masked(Frame.text("x")) * 1_000_000)
        seen = -1
        while hub.stats().bytes_received != seen or not hub.stats().messages_received:
            seen = hub.stats().bytes_received
            for _ in range(50):
                await asyncio.sleep(0)
        assert hub.stats().messages_received <= 100
        assert hub.stats().bytes_received < MIB
        ended.set()


async def test_at_most_one_pong_waits_for_a_peer_that_does_not_read(reactor) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with (
        serving(handler, rates=NO_RATES, use_reactor=reactor) as (hub, url),
        raw_peer(url, limit=1024) as peer,
    ):
        peer.writer.transport.pause_reading()
        connection = await opened
        # Send pings until the kernel accepts no more pongs.
        waiting = -1
        while not connection.buffered or connection.buffered != waiting:
            waiting = connection.buffered
            peer.write(masked(Frame.ping(b"p" * 125)) * 500)
            await peer.writer.drain()
            for _ in range(20):
                await asyncio.sleep(0)
        assert waiting < 256 * 1024
        before = hub.stats().bytes_received
        peer.write(masked(Frame.ping(b"q" * 125)) * 20_000 + masked(Frame.ping(b"the last")))
        while hub.stats().bytes_received - before < 20_000 * 131 + 14:
            assert connection.buffered <= waiting
            await asyncio.sleep(0)
        peer.writer.transport.resume_reading()
        while (frame := await peer.frame()).payload == b"p" * 125:
            pass
        # The link was blocked for the later pings; only the last of them is answered.
        assert (frame.opcode, frame.payload) == (Opcode.PONG, b"the last")


async def test_pongs_that_nobody_asked_for_are_not_answered_and_have_a_rate(reactor) -> None:
    async with serving(echo(), close_timeout_ms=100, use_reactor=reactor) as (hub, url), raw_peer(url) as peer:
        peer.send(Frame.text("before"))
        peer.write(masked(Frame.pong(b"p" * 125)) * 1000)
        peer.send(Frame.text("after"))
        assert (await peer.frame()).payload == b"before"
        while not hub.stats().rates_exceeded:
            await asyncio.sleep(0)
        assert hub.stats().messages_received == 1
    async with serving(echo(), rates=NO_RATES, use_reactor=reactor) as (hub, url), raw_peer(url) as peer:
        peer.write(masked(Frame.pong(b"p" * 125)) * 1000)
        peer.send(Frame.text("after"))
        assert (await peer.frame()).payload == b"after"


# After a failure

VIOLATIONS = {
    "no mask": (b"\x81\x02hi", 1002),
    "RSV1": (b"\xc1\x80" + MASK, 1002),
    "RSV2": (b"\xa1\x80" + MASK, 1002),
    "RSV3": (b"\x91\x80" + MASK, 1002),
    "reserved data opcode": (b"\x83\x80" + MASK, 1002),
    "reserved control opcode": (b"\x8f\x80" + MASK, 1002),
    "fragmented ping": (b"\x09\x80" + MASK, 1002),
    "long ping": (b"\x89\xfe\x00\x7e" + MASK, 1002),
    "continuation of nothing": (b"\x80\x80" + MASK, 1002),
    "message within another": (masked(Frame(Opcode.TEXT, b"a", fin=False)) + masked(Frame.text("b")), 1002),
    "long form": (b"\x82\xfe\x00\x7d" + MASK, 1002),
    "top bit": (header(0x82, 1 << 63), 1002),
    "too large": (header(0x82, 1 << 40), 1009),
    "too large in sum": (masked(Frame(Opcode.BINARY, bytes(60_000), fin=False)) + b"\x80\xfe\xea\x60" + MASK, 1009),
    "not UTF-8": (masked(Frame(Opcode.TEXT, b"\xff")), 1007),
    "half a character": (masked(Frame(Opcode.TEXT, b"\xe2\x82")), 1007),
    "half a close code": (masked(Frame(Opcode.CLOSE, b"\x03")), 1002),
    "close code 1005": (masked(Frame(Opcode.CLOSE, b"\x03\xed")), 1002),
    "close reason": (masked(Frame(Opcode.CLOSE, b"\x03\xe8\xff")), 1007),
}
MORE = [
    masked(Frame.text("more")) * 100,
    masked(Frame.ping(b"more")) * 100,
    masked(Frame.close(1000, "more")),
    bytes(100_000),
    b"\xff" * 100_000,
    *(bytes([byte]) for byte in masked(Frame.text("a byte at a time"))),
]


@pytest.mark.parametrize("kind", [*VIOLATIONS, "close"])
def test_a_parser_does_nothing_more_after_any_end(kind: str) -> None:
    ending = masked(Frame.close(1000)) if kind == "close" else VIOLATIONS[kind][0]
    parser = FrameParser(100_000)
    assert len(parser.feed(ending)) == 1
    blocks = sys.getallocatedblocks()
    tracemalloc.start()
    try:
        for _ in range(3):
            for data in MORE:
                assert parser.feed(data) == []
                assert parser.feed_directly(data) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10_000
    assert sys.getallocatedblocks() - blocks < 100


@pytest.mark.parametrize("kind", [*VIOLATIONS, "close", "application closes", "handler fails", "rate"])
def test_a_hub_does_nothing_more_after_any_end(run, reactor, kind, caplog) -> None:
    ending, code = VIOLATIONS.get(kind, (masked(Frame.close(4000)), 4000))
    if kind not in VIOLATIONS and kind != "close":
        ending = masked(Frame.text(kind)) * 20
        code = {"application closes": 4001, "handler fails": 1011, "rate": 1008}[kind]

    async def scenario() -> None:
        calls: list[object] = []
        closed = asyncio.Event()

        def on_message(connection, message) -> None:
            calls.append(message.data)
            if message.data == "application closes":
                connection.close(4001)
            elif message.data == "handler fails":
                raise RuntimeError("asked to fail")

        def on_close(connection, code, reason) -> None:
            calls.append("closed")
            closed.set()

        def on_control(connection, payload) -> None:
            calls.append(payload)

        handler = EventHandler(on_message=on_message, on_close=on_close, on_ping=on_control, on_pong=on_control)
        rates = RateLimits(messages=1, excess="close") if kind == "rate" else NO_RATES
        async with serving(handler, rates=rates, use_reactor=reactor) as (hub, url), raw_peer(url) as peer:
            peer.write(ending)
            assert await peer.close_code() == code
            if kind in VIOLATIONS or kind in ("close", "rate"):
                # In the other cases the hub waits for the peer's close frame.
                with pytest.raises(EOFError):
                    await peer.frame()
            before = list(calls)
            received = hub.stats().bytes_received
            for data in MORE:
                peer.write(data)
            peer.writer.write_eof()
            await until_empty(hub)
            await closed.wait()
            assert calls in (before, [*before, "closed"])
            assert calls.count("closed") == 1
            assert hub.stats().bytes_received - received <= sum(map(len, MORE))
            assert hub.stats().bytes_sent < 1000

    run(scenario())
    # A limit that is reached is a warning.
    reaches_limit = kind in ("rate", "too large", "too large in sum")
    assert logged(caplog) == (
        [logging.ERROR] if kind == "handler fails" else [logging.WARNING] if reaches_limit else []
    )


FIRST = masked(Frame.text("hé")) + masked(Frame.ping(b"p")) + masked(Frame(Opcode.BINARY, b"x", fin=False))


@pytest.mark.parametrize("damage", ["reserved bits", "garbage", "end", "reset"])
def test_no_damage_to_the_first_bytes_is_worth_a_line_in_the_log(run, reactor, damage, caplog) -> None:
    """Engine.io crashed here, because its error handler was not yet set. The hub logs nothing and frees everything."""
    stream = REQUEST + FIRST

    async def scenario() -> None:
        messages: list[object] = []
        handler = EventHandler(on_message=lambda connection, message: messages.append(message.data))
        async with serving(handler, use_reactor=reactor) as (hub, url):
            # Damage every byte of the frames, and some bytes of the request.
            for index in [*range(0, len(REQUEST), 9), *range(len(REQUEST), len(stream))]:
                damaged = bytearray(stream)
                if damage == "reserved bits":
                    damaged[index] ^= 0x70
                elif damage == "garbage":
                    damaged[index:] = bytes(range(255, 127, -1))
                else:
                    del damaged[index:]
                async with raw_peer(url, handshake=False) as peer:
                    peer.write(bytes(damaged))
                    if damage == "reset":
                        peer.reset()
                        continue
                    peer.writer.write_eof()
                    while await peer.reader.read(1000):
                        pass
            await until_empty(hub)
            assert set(map(type, messages)) <= {str, bytes}
            async with raw_peer(url) as peer:
                peer.send(Frame.ping(b"alive"))
                assert (await peer.frame()).payload == b"alive"

    caplog.set_level(logging.DEBUG)
    run(scenario())
    assert logged(caplog) == []


# Bytes on the wire

LENGTHS = [*range(131), *range(65_530, 65_541)]


def framed(first: int, payload: bytes) -> bytes:
    """Return a server's frame, encoded by hand."""
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    if len(payload) < 1 << 16:
        return bytes([first, 126]) + len(payload).to_bytes(2, "big") + payload
    return bytes([first, 127]) + len(payload).to_bytes(8, "big") + payload


async def expect(peer: RawPeer, expected: bytes) -> None:
    assert await peer.reader.readexactly(len(expected)) == expected


async def test_messages_pings_and_pongs_of_every_length_have_exactly_their_bytes(reactor) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_message=lambda connection, message: connection.send(message))
    settings = {"max_message_size": MIB, "rates": NO_RATES, "use_reactor": reactor}
    async with serving(handler, **settings) as (_, url), raw_peer(url) as peer:
        connection = await opened
        for length in LENGTHS:
            payload = (bytes(range(1, 128)) * (length // 127 + 1))[:length]
            peer.send(Frame(Opcode.TEXT, payload))
            await expect(peer, framed(0x81, payload))
            connection.send(payload)
            await expect(peer, framed(0x82, payload))
            if length <= 125:
                peer.send(Frame.ping(payload))
                await expect(peer, framed(0x8A, payload))
                connection.send_ping(payload)
                connection.send_pong(payload)
                await expect(peer, framed(0x89, payload) + framed(0x8A, payload))


async def test_closes_of_every_length_and_of_every_violation_have_exactly_their_bytes(reactor) -> None:
    handler = EventHandler(on_message=lambda connection, message: connection.close(4001, message.data))
    async with serving(handler, use_reactor=reactor) as (_, url):
        for length in range(124):
            async with raw_peer(url) as peer:
                peer.send(Frame.text("r" * length))
                await expect(peer, framed(0x88, b"\x0f\xa1" + b"r" * length))
                peer.send(Frame.close(4001))
                assert await peer.reader.read() == b""
            # The hub echoes the code and the reason of a close.
            async with raw_peer(url) as peer:
                peer.send(Frame.close(4002, "q" * length))
                assert await peer.reader.read() == framed(0x88, b"\x0f\xa2" + b"q" * length)
        async with raw_peer(url) as peer:
            peer.send(Frame(Opcode.CLOSE))
            assert await peer.reader.read() == b"\x88\x00"
        for violation, code in VIOLATIONS.values():
            async with raw_peer(url) as peer:
                peer.write(violation)
                answer = await peer.reader.read()
                assert answer == framed(0x88, answer[2:])
                assert answer[2:4] == code.to_bytes(2, "big")
                assert answer[4:].decode("ascii").isprintable()


# Compression


async def test_a_send_that_raises_or_is_cancelled_leaves_the_window_of_its_peer_in_sync(reactor) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    compression = CompressionConfig(server_context_takeover=True, threshold=1)
    hub = Hub(HubConfig(compression=compression, use_reactor=reactor))
    async with hub.serve("127.0.0.1", 0, handler) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url, extensions=b"permessage-deflate") as peer:
            connection = await opened
            connection.join("room")
            expected = []

            async def send(text: str) -> None:
                connection.send(text)
                expected.append(text)
                await connection.drain()
                await asyncio.Event().wait()

            for number in range(30):
                text = f"the same words again, number {number} " * 5
                tasks = [asyncio.create_task(send(f"{text} of {task}")) for task in range(3)]
                tasks[1].cancel()
                await asyncio.sleep(0)
                with pytest.raises(InvalidMessageError):
                    connection.send(f"{text} \ud800")
                with pytest.raises(TypeError):
                    connection.send([text])
                connection.send_ping(b"between")
                hub.broadcast(f"{text} for all", room="room")
                expected.append(f"{text} for all")
                connection.send(text)
                expected.append(text)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            window = zlib.decompressobj(-15)
            received, compressed = [], 0
            while len(received) < len(expected):
                frame = await peer.frame()
                if frame.opcode is Opcode.TEXT:
                    compressed += frame.rsv1
                    plain = window.decompress(frame.payload + TAIL) if frame.rsv1 else frame.payload
                    received.append(plain.decode())
            assert received == expected
            assert compressed > len(expected) // 2
