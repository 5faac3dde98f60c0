"""Peers that vanish, stall, flood and send garbage, in every state of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import textwrap
import weakref

import pytest

from tests.support.raw_peers import MASK, REQUEST, masked, port_of, raw_peer
from tests.support.reactor import HAS_REACTOR, needs_reactor
from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Frame, Hub, HubConfig, Opcode, RateLimits


class Recorder(EventHandler):
    """Echo messages, and record the events."""

    def __init__(self) -> None:
        self.opened: list[object] = []
        self.closed: list[tuple[int, str]] = []
        self.closing = asyncio.Event()

    def on_open(self, connection) -> None:
        self.opened.append(connection)

    def on_message(self, connection, message) -> None:
        connection.send(message)

    def on_close(self, connection, code, reason) -> None:
        self.closed.append((code, reason))
        self.closing.set()


async def until_empty(hub) -> None:
    while hub.connection_count:
        await asyncio.sleep(0)


async def test_a_peer_that_resets_at_any_byte_leaves_nothing_behind() -> None:
    stream = REQUEST + masked(Frame.text("hello")) + masked(Frame(Opcode.BINARY, b"x" * 200, fin=False))

    handler = Recorder()
    async with serving(handler) as (hub, url):
        for length in range(0, len(stream), 3):
            async with raw_peer(url, handshake=False) as peer:
                peer.write(stream[:length])
                peer.reset()
        # A complete exchange shows that the hub has handled everything before it.
        async with raw_peer(url) as peer:
            peer.send(Frame.text("alive"))
            assert (await peer.frame()).payload == b"alive"
        await until_empty(hub)
        assert len(handler.closed) == len(handler.opened)
        assert {code for code, _ in handler.closed} == {1006}
        assert hub.bind().connection_count == 0


async def test_one_byte_at_a_time_is_a_conversation_too() -> None:
    async with serving(Recorder()) as (_, url), raw_peer(url, handshake=False) as peer:
        for byte in REQUEST + masked(Frame.text("héllo")) + masked(Frame.close(1000)):
            peer.write(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert (await peer.frame()).payload == "héllo".encode()
        assert await peer.close_code() == 1000


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(b"\x81\x02hi", 1002, id="no mask"),
        pytest.param(b"\xf1\x80" + MASK, 1002, id="reserved bits"),
        pytest.param(b"\x83\x80" + MASK, 1002, id="reserved opcode"),
        pytest.param(b"\x00\x80" + MASK, 1002, id="continuation of nothing"),
        pytest.param(masked(Frame(Opcode.TEXT, b"\xff")), 1007, id="not UTF-8"),
        pytest.param(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + MASK, 1009, id="too big"),
        pytest.param(b"\x82\xff" + (1 << 63).to_bytes(8, "big") + MASK, 1002, id="length with its top bit"),
        pytest.param(masked(Frame(Opcode.CLOSE, b"\x03\xed")), 1002, id="close code 1005"),
    ],
)
async def test_a_violation_is_answered_with_its_code_and_the_earlier_echo_still_arrives(raw, code) -> None:
    handler = Recorder()
    async with serving(handler) as (hub, url), raw_peer(url) as peer:
        peer.write(masked(Frame.text("before")) + raw)
        # After a failure the hub reads and ignores further data, so that no reset destroys the close frame.
        peer.write(masked(Frame.text("after")) * 1000)
        assert (await peer.frame()).payload == b"before"
        assert await peer.close_code() == code
        peer.writer.write_eof()
        await handler.closing.wait()
        assert handler.closed[0][0] == code
        await until_empty(hub)


async def test_a_half_closed_peer_gets_what_was_queued_and_is_1006() -> None:
    handler = Recorder()
    async with serving(handler) as (_, url), raw_peer(url) as peer:
        peer.send(Frame.text("last words"))
        peer.writer.write_eof()
        assert (await peer.frame()).payload == b"last words"
        with pytest.raises(EOFError):
            await peer.frame()
        await handler.closing.wait()
        assert handler.closed == [(1006, "")]


async def test_a_peer_that_never_answers_a_close_is_given_up_after_the_timeout() -> None:
    handler = Recorder()
    async with serving(handler, close_timeout_ms=50) as (hub, url), raw_peer(url) as peer:
        handler.opened[0].close(4000, "go")
        assert await peer.close_code() == 4000
        await handler.closing.wait()
        assert handler.closed == [(1006, "")]
        await until_empty(hub)


async def test_a_peer_that_never_hangs_up_after_the_closing_handshake_is_hung_up_on() -> None:
    handler = Recorder()
    async with serving(handler, close_timeout_ms=50) as (hub, url), raw_peer(url) as peer:
        peer.send(Frame.close(4001, "bye"))
        assert await peer.close_code() == 4001
        await handler.closing.wait()
        assert handler.closed == [(4001, "bye")]
        await until_empty(hub)


async def test_one_flooding_connection_does_not_starve_the_rest() -> None:
    """The hub handles at most 1,024 messages of a connection before it serves the other ready connections."""
    most = 1024
    flood = masked(Frame.binary(bytes(50)))

    order: list[str] = []
    handler = EventHandler(on_message=lambda connection, message: order.append(connection.path))
    async with serving(handler) as (hub, url):
        peers = []
        for path in (b"/flood", b"/polite"):
            peer = socket.create_connection(("127.0.0.1", port_of(url)))
            peer.sendall(REQUEST.replace(b"GET /", b"GET " + path))
            peers.append(peer)
        while hub.connection_count < 2:
            await asyncio.sleep(0)
        flooding, polite = peers
        flooding.setblocking(False)
        polite.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = flood * 50_000
        sent = 0
        for turn in range(1, 11):
            # The loop does not run in between, so the reactor finds all the data at once.
            with contextlib.suppress(BlockingIOError):
                while sent < len(stream):
                    sent += flooding.send(stream[sent : sent + 100_000])
            polite.sendall(masked(Frame.text("please")))
            before = len(order)
            while order.count("/polite") < turn:
                await asyncio.sleep(0)
            assert order[before:].index("/polite") <= 2 * most + 1
        assert len(order) > 1_000
        for peer in peers:
            peer.close()


async def test_pings_from_a_peer_that_does_not_read_queue_a_bounded_number_of_pongs() -> None:
    handler = Recorder()
    # The rate limit is off; the number of queued pongs has its own limit.
    settings = {"rates": RateLimits(control_frames=0), "close_timeout_ms": 50}
    pings = masked(Frame.ping(b"p" * 100)) * 2000
    async with serving(handler, **settings) as (hub, url):
        async with raw_peer(url, limit=1024) as peer:
            peer.writer.transport.pause_reading()
            connection = handler.opened[0]
            largest = 0
            # The kernel holds far less than all the pongs, and the hub still reads on.
            while hub.stats().bytes_received < 64 << 20:
                peer.write(pings)
                try:
                    await asyncio.wait_for(peer.writer.drain(), 5)
                except TimeoutError:
                    # uvloop's transport passes on so much data at once that its pongs reach the queue limit.
                    assert not HAS_REACTOR
                    break
                largest = max(largest, connection.buffered)
            assert hub.stats().bytes_sent < 32 << 20
            assert 0 < largest < 512 * 1024
        await until_empty(hub)


async def test_a_fragmented_message_and_a_large_one_survive_any_chunking() -> None:
    async def _write_in_chunks(peer, stream: bytes) -> None:
        for start in range(0, len(stream), 9973):
            peer.write(stream[start : start + 9973])
            await peer.writer.drain()

    async with serving(Recorder(), max_message_size=1 << 22) as (_, url), raw_peer(url) as peer:
        payload = os.urandom(1 << 20)
        stream = b"".join(
            masked(Frame(Opcode.BINARY if start == 0 else Opcode.CONTINUATION, part, fin=start + 70_001 >= 1 << 20))
            + masked(Frame.ping(b"between"))
            for start in range(0, 1 << 20, 70_001)
            for part in [payload[start : start + 70_001]]
        )
        writing = asyncio.create_task(_write_in_chunks(peer, stream))
        while (frame := await peer.frame()).opcode is Opcode.PONG:
            assert frame.payload == b"between"
        assert frame.payload == payload
        await writing


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000, 431),
        (REQUEST.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400),
        (REQUEST.replace(b"Host: a\r\n", b"Host: a\r\nHost: b\r\n"), 400),
        (REQUEST.replace(b"Host: a\r\n", b"Host: a\r\nContent-Length: 5\r\n"), 400),
        (REQUEST.replace(b"GET / ", b"GET http://b/ "), 400),
        (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    ],
)
async def test_what_is_no_handshake_is_answered_with_its_status_and_hung_up_on(raw, status) -> None:
    async with serving(Recorder()) as (hub, url), raw_peer(url, handshake=False) as peer:
        peer.write(raw)
        answer = await peer.reader.read()
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        peer.writer.write_eof()
        assert hub.stats().refused == {status: 1}
        while hub.bind().connection_count:
            await asyncio.sleep(0)


@pytest.mark.parametrize("asks", [True, False], ids=["on_upgrade", "nothing"])
async def test_what_waits_with_a_request_for_on_upgrade_is_bounded(asks) -> None:
    """An asyncio transport reads up to 256 KiB at once. Without ``on_upgrade`` the hub handles that at once too."""

    async def decide(request) -> None:
        await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    early = masked(Frame.binary(bytes(2000)))
    handler = Recorder()
    hub = Hub(HubConfig(use_reactor=False), on_upgrade=decide if asks else None)
    async with hub.serve("127.0.0.1", 0, handler) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.setblocking(False)
            # The loop does not run in between, so one read returns all that the kernel accepts.
            assert peer.send(REQUEST + early * 60) > 100_000
            assert (await loop.sock_recv(peer, 13)) == (b"HTTP/1.1 400 " if asks else b"HTTP/1.1 101 ")
        assert hub.stats().refused == ({400: 1} if asks else {})


async def test_a_handshake_that_takes_too_long_gets_408_while_others_are_served() -> None:
    async with (
        serving(Recorder(), handshake_timeout_ms=100) as (hub, url),
        raw_peer(url, handshake=False) as slow,
        raw_peer(url) as quick,
    ):
        slow.write(REQUEST[:50])
        quick.send(Frame.text("hello"))
        assert (await quick.frame()).payload == b"hello"
        assert (await slow.reader.read()).startswith(b"HTTP/1.1 408 ")
        assert hub.stats().refused == {408: 1}


async def test_cancelling_the_closing_of_a_hub_does_not_stop_it() -> None:
    handler = Recorder()
    async with serving(handler, close_timeout_ms=100) as (hub, url), raw_peer(url) as peer:
        closing = asyncio.create_task(hub.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await peer.close_code() == 1001
        await hub.close()
        assert hub.connection_count == 0
        assert len(handler.closed) == 1


def test_a_loop_that_ends_while_a_hub_is_closing_leaves_no_crash() -> None:
    program = textwrap.dedent(
        """
        import asyncio, socket
        from wshub import EventHandler, Hub

        async def main():
            hub = Hub()
            server = await hub.serve("127.0.0.1", 0, EventHandler()).__aenter__()
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(REQUEST)
            while not hub.connection_count:
                await asyncio.sleep(0)
            closing = asyncio.create_task(hub.close())
            await asyncio.sleep(0)
            return client

        asyncio.run(main())
        print("survived")
        """
    ).replace("REQUEST", repr(REQUEST))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "survived\n", result.stderr


async def test_connections_are_collected_once_they_are_closed() -> None:
    references = []

    def on_open(connection) -> None:
        references.append(weakref.ref(connection))
        connection.join("room")
        connection.metadata["self"] = connection.id

    async with serving(EventHandler(on_open=on_open)) as (hub, url):
        for _ in range(20):
            async with connected(url) as client:
                await client.send("x")
        await until_empty(hub)
        await asyncio.sleep(0)
        gc.collect()
        assert [reference for reference in references if reference() is not None] == []


@needs_reactor
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_connection_with_an_endpoint_is_gone_without_the_garbage_collector(end) -> None:
    references = []

    async def endpoint(connection) -> None:
        references.append(weakref.ref(connection))
        async for _ in connection:
            pass

    gc.collect()
    gc.disable()
    try:
        async with serving(endpoint) as (hub, url):
            for _ in range(5):
                async with raw_peer(url) as peer:
                    if end == "close":
                        peer.send(Frame.close(1000))
                    else:
                        peer.reset()
                await until_empty(hub)
            for _ in range(10):
                await asyncio.sleep(0)
            assert [reference for reference in references if reference() is not None] == []
            assert len(references) == 5
    finally:
        gc.enable()


def test_descriptors_run_out_and_come_back() -> None:
    """Run in a separate process with a lower limit on open files."""
    program = textwrap.dedent(
        """
        import asyncio, resource, socket
        from wshub import EventHandler, Hub, HubConfig

        async def main():
            hub = Hub(HubConfig(close_timeout_ms=200))
            handler = EventHandler(on_message=lambda connection, message: connection.send(message))
            async with hub.serve("127.0.0.1", 0, handler) as server:
                resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
                clients = []
                try:
                    while True:
                        clients.append(socket.create_connection(("127.0.0.1", server.port)))
                        await asyncio.sleep(0)
                except OSError:
                    pass
                clients.pop().close()
                # The kernel accepts a connection that this process has no descriptor for.
                waiting = clients.pop()
                for client in clients:
                    client.close()
                import websockets
                async with websockets.connect(f"ws://127.0.0.1:{server.port}", proxy=None) as client:
                    await client.send("back again")
                    assert await client.recv() == "back again"
            print("recovered")

        asyncio.run(asyncio.wait_for(main(), 30))
        """
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "recovered\n", result.stderr


def test_a_loop_that_is_closed_without_the_hub_leaves_no_crash() -> None:
    program = textwrap.dedent(
        """
        import asyncio, gc, socket
        from wshub import EventHandler, Hub

        hub = Hub()
        loop = asyncio.new_event_loop()
        opened = loop.create_future()

        async def start():
            server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.set_result)).__aenter__()
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(REQUEST)
            connection = await opened
            connection.join("room")
            return client, connection

        client, connection = loop.run_until_complete(start())
        loop.close()
        connection.send("nobody will send this")
        connection.close()
        del connection, hub
        gc.collect()
        print("survived")
        """
    ).replace("REQUEST", repr(REQUEST))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "survived\n", result.stderr


def test_a_client_that_is_gone_before_its_refusal_leaves_nothing_in_the_log(run, caplog) -> None:
    async def scenario() -> None:
        async with serving(Recorder()) as (hub, url):
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", port_of(url))) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.sleep(0)
            while hub.stats().refused.get(426, 0) < 50 or hub.bind().connection_count:
                await asyncio.sleep(0)

    run(scenario())
    assert caplog.records == []
