"""What users of other WebSocket libraries suffer from: each a test that it is not so here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import websockets

import wshub
from tests.deflated import deflated
from tests.hub.conftest import Clock, connected, serving
from tests.hub.peers import REQUEST, port_of, raw_peer
from wshub import CompressionConfig, ConnectionClosed, ConnectionLost, EventHandler, Frame, MisuseError, Opcode

ROOT = Path(__file__).resolve().parents[2]
DEFLATE = b"permessage-deflate"


async def test_memory_an_idle_connection_holds_no_buffers_and_membership_ends_with_it() -> None:
    connections = []

    def on_open(connection) -> None:
        connection.join("room")
        connections.append(connection)
        raise RuntimeError("whatever handlers do")

    async with serving(EventHandler(on_open=on_open)) as (hub, url):
        async with connected(url):
            pass
        while hub.connection_count:
            await asyncio.sleep(0)
        assert connections[0].buffered == 0
        assert hub.rooms == frozenset()


def test_memory_an_idle_connection_keeps_no_deflate_state(run) -> None:
    """What each connection that has echoed a compressed message keeps, its client's buffers included."""

    async def octets_of_each(compression: CompressionConfig) -> float:
        handler = EventHandler(on_message=lambda connection, message: connection.send(message))
        async with serving(handler, compression=compression) as (_, url), contextlib.AsyncExitStack() as stack:
            kept = []
            for _ in range(21):
                kept.append(tracemalloc.get_traced_memory()[0])
                peer = await stack.enter_async_context(raw_peer(url, extensions=DEFLATE))
                peer.send(Frame(Opcode.TEXT, deflated(b"compressed " * 100), rsv1=True))
                assert (await peer.frame()).rsv1
            return (kept[20] - kept[1]) / 19

    tracemalloc.start()
    try:
        # That the measurement would see it is shown by connections that are to keep their state.
        asked_for = CompressionConfig(server_context_takeover=True, client_context_takeover=True)
        assert run(octets_of_each(asked_for)) > 40_000
        assert run(octets_of_each(CompressionConfig())) < 16_000
    finally:
        tracemalloc.stop()


async def test_one_stalled_reader_does_not_stop_a_broadcast_to_the_others() -> None:
    async with serving(EventHandler(), close_timeout_ms=100) as (hub, url), connected(url, max_size=None) as reader:
        with socket.create_connection(("127.0.0.1", port_of(url))) as stalled:
            stalled.sendall(REQUEST)
            while hub.connection_count < 2:
                await asyncio.sleep(0)
            for index in range(200):
                message = b"%8d" % index + bytes(50_000)
                hub.broadcast(message)
                assert await reader.recv() == message
            while hub.connection_count > 1:
                await asyncio.sleep(0)
        assert list(hub.stats()["closes"]) == [1013]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ping_interval_ms": 2**31}, "the peer takes nothing of what is sent to it"),
        ({"send_timeout_ms": 0}, "no answer to a ping"),
    ],
)
async def test_one_stalled_reader_is_ended_without_waiting_for_what_it_does_not_read(
    clock: Clock, settings: dict[str, int], reason: str
) -> None:
    opened = asyncio.get_running_loop().create_future()
    closes = []
    handler = EventHandler(on_open=opened.set_result, on_close=lambda _, *close: closes.append(close))
    bounds = {"max_send_buffer": 1 << 30, **settings}
    async with serving(handler, clock=clock, **bounds) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        connection.join("room")
        for _ in range(50):
            connection.send(bytes(1_000_000))
        passed = 0
        while hub.connection_count:
            assert passed < 60
            passed += 1
            clock.pass_for(1, hub)
            for _ in range(10):
                await asyncio.sleep(0)
        await connection.wait_closed()
        assert closes == [(1006, reason)]
        assert (connection.buffered, hub.rooms) == (0, frozenset())
        assert hub.stats()["dropped"]["closed"] > 0
        peer.writer.transport.resume_reading()
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await peer.reader.read(1 << 20):
                received += len(data)
        assert received < 50_000_000


async def test_not_noticing_a_disconnect_a_program_that_only_sends_is_told() -> None:
    told = asyncio.get_running_loop().create_future()

    async def ticker(connection) -> None:
        try:
            while True:
                connection.send("tick")
                await asyncio.sleep(0)
        except ConnectionClosed as closed:
            told.set_result((closed.code, closed.reason))

    async with serving(ticker) as (_, url):
        async with connected(url) as client:
            await client.recv()
            await client.close(4003, "enough ticks")
        assert await told == (4003, "enough ticks")


async def test_cancellation_loses_no_message_and_cuts_no_frame() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url) as client:
        connection = await opened
        received = []
        for index in range(100):
            receiving = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)
            await client.send(str(index))
            if index % 3 == 0:
                receiving.cancel()
            (result,) = await asyncio.gather(receiving, return_exceptions=True)
            if not isinstance(result, BaseException):
                received.append(result.data)
        while len(received) < 100:
            received.append((await connection.receive(timeout=5)).data)
        assert received == [str(index) for index in range(100)]


async def test_cancellation_a_second_reader_is_told_who_the_first_is() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        first = asyncio.create_task(connection.receive(), name="first-reader")
        await asyncio.sleep(0)
        with pytest.raises(MisuseError, match="first-reader"):
            await connection.receive()
        first.cancel()


async def test_sending_after_a_close_is_one_exception_and_closing_twice_is_fine() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        connection.close(1000, "done")
        connection.close(1000, "done again")
        for send in (connection.send, connection.send_text, connection.send_json):
            with pytest.raises(ConnectionClosed):
                send("late")
        with pytest.raises(ConnectionClosed):
            connection.send_binary(b"late")
        with pytest.raises(ConnectionClosed):
            connection.send_ping()
        with pytest.raises(ConnectionClosed):
            connection.join("room")
        await connection.wait_closed()
        connection.close()
        with pytest.raises(ConnectionClosed) as caught:
            connection.send("later")
        assert caught.value.code == 1000


async def test_shutdown_is_bounded_when_a_client_never_answers() -> None:
    async with serving(EventHandler(), close_timeout_ms=100) as (hub, url), raw_peer(url) as peer:
        async with asyncio.timeout(5):
            await hub.close()
        assert await peer.close_code() == 1001


@pytest.mark.parametrize(("code", "reason"), [(1001, "shutdown"), (1012, "reload")])
async def test_shutdown_and_reload_send_what_is_queued_and_then_end_who_does_not_read_it(code, reason) -> None:
    opened: list[Any] = []
    settings: dict[str, Any] = {"close_timeout_ms": 200, "max_send_buffer": 1 << 30}
    handler = EventHandler(on_open=opened.append)
    async with (
        serving(handler, **settings) as (hub, url),
        connected(url) as client,
        raw_peer(url) as stalled,
    ):
        stalled.writer.transport.pause_reading()
        while len(opened) < 2:
            await asyncio.sleep(0)
        for connection in opened:
            connection.send("queued")
        opened[1].send(bytes(50_000_000))
        async with asyncio.timeout(10):
            await hub.close(code, reason)
        assert await client.recv() == "queued"
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (code, reason)
        assert [connection.close_code for connection in opened] == [code, 1006]


async def test_broadcast_frames_a_message_once_for_all() -> None:
    """Each receiver's queue refers to the same frame: the octets queued are many times the memory."""

    async with serving(EventHandler(), max_send_buffer=1 << 30) as (hub, url):
        stalled = []
        for _ in range(20):
            peer = socket.create_connection(("127.0.0.1", port_of(url)))
            peer.sendall(REQUEST)
            stalled.append(peer)
        while hub.connection_count < 20:
            await asyncio.sleep(0)
        # First fill what the kernel takes.
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


async def test_compression_eats_no_cpu_below_its_threshold_and_is_turned_off_for_a_message() -> None:
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


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",), ("127.0.0.0/8", "10.0.0.0/8"), ("10.0.0.0/8",)])
async def test_proxies_are_trusted_as_in_uvicorn(trusted: tuple[str, ...]) -> None:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    forwarded = "203.0.113.9, 192.0.2.7, 10.1.2.3"

    addresses = []

    async def application(scope: Any, *_: Any) -> None:
        addresses.append(scope["client"][0])

    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope: Any = {"type": "websocket", "client": ("127.0.0.1", 1), "headers": headers}
    await ProxyHeadersMiddleware(application, list(trusted))(scope, None, None)  # type: ignore[arg-type]
    handler = EventHandler(on_open=lambda connection: addresses.append(connection.remote_address[0]))
    async with (
        serving(handler, trusted_proxies=trusted) as (_, url),
        connected(url, additional_headers={"X-Forwarded-For": forwarded}),
    ):
        pass
    assert addresses[0] == addresses[1]


async def test_authentication_and_origins_are_refused_before_the_upgrade_with_a_status_and_a_body() -> None:
    allowed = ("https://example.com", "http://localhost:3000")
    async with serving(EventHandler(), allowed_origins=allowed) as (_, url):
        for origin in ("null", "https://example.com.evil.org", "https://sub.example.com", "http://example.com", ""):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(url, proxy=None, additional_headers={"Origin": origin, "Cookie": "a=b"})
            assert caught.value.response.status_code == 403
            assert b"origin" in caught.value.response.body
        async with connected(url, origin="http://localhost:3000"):
            pass


async def test_tests_hang_no_wait_is_without_a_bound_and_a_failing_handler_is_told_of() -> None:
    """The waits that there are: the test client, with a timeout of its own for each of them, is still to come."""

    opened: asyncio.Queue[Any] = asyncio.Queue()
    failed = asyncio.get_running_loop().create_future()

    async def endpoint(connection) -> None:
        assert (await connection.receive()).data == "expected"

    handler = EventHandler(on_open=endpoint, on_error=lambda _, error: failed.set_result(error))
    async with serving(handler) as (_, url), raw_peer(url) as peer:
        peer.send(Frame.text("unexpected"))
        assert isinstance(await failed, AssertionError)
        assert await peer.close_code() == 1011
    handler = EventHandler(on_open=opened.put_nowait)
    async with serving(handler, max_send_buffer=1 << 30) as (_, url), raw_peer(url) as peer:
        connection = await opened.get()
        with pytest.raises(TimeoutError):
            await connection.receive(timeout=0.001)
        peer.send(Frame.text("late"))
        assert (await connection.receive(timeout=5)).data == "late"
        peer.writer.transport.pause_reading()
        for _ in range(50):
            connection.send(bytes(1_000_000))
        for wait in (connection.drain, connection.wait_closed, connection.receive, connection.__anext__):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait(), 0.001)


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md"])
def test_several_workers_reach_a_part_of_the_users_and_the_docs_say_so(page: str) -> None:
    plain = " ".join((ROOT / page).read_text().replace("*", "").split())
    assert re.search(r"A hub is per process: a broadcast reaches the connections of its (own )?process", plain)


async def test_keepalive_goes_on_while_the_application_is_busy() -> None:
    """A loop that was blocked for longer than the timeout kills nobody who has answered meanwhile."""
    import time

    async with (
        serving(EventHandler(), ping_interval_ms=100, pong_timeout_ms=100) as (hub, url),
        connected(url) as client,
    ):
        for _ in range(3):
            # The application's own work, on the loop that the client here runs on as well.
            time.sleep(0.25)  # noqa: ASYNC251
            await client.ping()
            for _ in range(5):
                await asyncio.sleep(0)
        assert hub.connection_count == 1


async def test_threads_may_call_every_method() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (hub, url), connected(url) as client:
        connection = await opened

        def work() -> None:
            for index in range(100):
                connection.send(str(index))
            connection.send_text("text")
            connection.send_binary(b"binary")
            connection.send_json({"a": 1})
            connection.send_ping(b"p")
            connection.send_pong(b"q")
            connection.join("room")
            hub.join_room(connection, "other")
            connection.leave("other")
            hub.broadcast_to_room("room", "to the room")
            with pytest.raises(TypeError):
                connection.send(3)

        await asyncio.to_thread(work)
        expected = [*(str(index) for index in range(100)), "text", b"binary", '{"a":1}']
        assert [await client.recv() for _ in expected] == expected
        assert connection.rooms == {"room"}


def test_noisy_logs_a_port_probe_or_a_health_check_logs_nothing_above_debug(run, caplog) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with serving(EventHandler()) as (hub, url):
            for octets in (b"", b"\0", b"HEAD / HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"):
                async with raw_peer(url, handshake=False) as peer:
                    peer.write(octets)
                    if len(octets) > 1:
                        await peer.reader.read()
            async with raw_peer(url) as peer:
                peer.send(Frame.text("x"))
            while hub.connection_count or hub.bind().connection_count:
                await asyncio.sleep(0)

    run(scenario())
    assert [record for record in caplog.records if record.name.startswith("wshub") and record.levelno > 10] == []


def test_types_are_shipped() -> None:
    assert (Path(wshub.__file__).parent / "py.typed").exists()


# Strict mypy also refuses an "ignore" of what is no error.
TYPED = """
from typing import assert_type

from wshub import Connection, EventHandler, Hub, HubConfig, Message

hub = Hub(HubConfig(ping_interval_ms=1000, slow_consumer="latest"))
HubConfig(ping_interval_ms="1000")  # type: ignore[arg-type]
HubConfig(slow_consumer="newest")  # type: ignore[arg-type]
HubConfig(ping_interval=1)  # type: ignore[call-arg]


def on_message(connection: Connection, message: Message) -> None:
    assert_type(message.data, str | bytes)
    connection.send(message, compress=False, slow_consumer="latest", key="price")
    connection.send(bytearray(b"binary"))
    connection.send(5)  # type: ignore[arg-type]
    connection.send("text", key=5)  # type: ignore[arg-type]
    assert_type(hub.broadcast(message, room="lobby", exclude=connection), int)
    assert_type(connection.close_code, int | None)


async def endpoint(connection: Connection) -> None:
    assert_type(await connection.receive(timeout=5), Message)
    async for message in connection:
        assert_type(message, Message)


hub.serve("127.0.0.1", 8080, EventHandler(on_message=on_message))
hub.serve("127.0.0.1", 8080, endpoint)
hub.serve("127.0.0.1", "8080", endpoint)  # type: ignore[arg-type]
"""


def test_types_are_those_that_a_strict_program_expects(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_silent_loss_every_drop_is_counted_with_its_reason() -> None:
    async with serving(EventHandler(), close_timeout_ms=50) as (hub, url):
        with socket.create_connection(("127.0.0.1", port_of(url))) as stalled:
            stalled.sendall(REQUEST)
            while not hub.connection_count:
                await asyncio.sleep(0)
            # The one that is too much is dropped as well.
            sent = 1
            while hub.broadcast(bytes(60_000)):
                sent += 1
            while hub.connection_count:
                await asyncio.sleep(0)
        stats = hub.stats()
        assert stats["messages_accepted"] == sent
        assert stats["messages_pending"] == 0
        assert stats["dropped"]["slow"] > 0
        assert sent == stats["messages_delivered"] + sum(stats["dropped"].values())


async def test_an_abnormal_end_raises_from_async_for_and_a_normal_one_does_not() -> None:
    ends: asyncio.Queue[object] = asyncio.Queue()

    async def endpoint(connection) -> None:
        try:
            async for _ in connection:
                pass
        except ConnectionLost as lost:
            ends.put_nowait(lost.code)
        else:
            ends.put_nowait("normal")

    async with serving(endpoint) as (_, url):
        async with connected(url):
            pass
        assert await ends.get() == "normal"
        async with raw_peer(url) as peer:
            peer.reset()
        assert await ends.get() == 1006
