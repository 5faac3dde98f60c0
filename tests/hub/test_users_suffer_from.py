"""What users of other WebSocket libraries suffer from: each a test that it is not so here."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest
import websockets

import wshub
from tests.hub.conftest import connected, serving
from tests.hub.peers import REQUEST, port_of, raw_peer
from wshub import ConnectionClosed, ConnectionLost, EventHandler, Frame, MisuseError


def test_memory_an_idle_connection_holds_no_buffers_and_membership_ends_with_it(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_one_stalled_reader_does_not_stop_a_broadcast_to_the_others(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_not_noticing_a_disconnect_a_program_that_only_sends_is_told(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_cancellation_loses_no_message_and_cuts_no_frame(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_cancellation_a_second_reader_is_told_who_the_first_is(run) -> None:
    async def scenario() -> None:
        opened = asyncio.get_running_loop().create_future()
        async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
            connection = await opened
            first = asyncio.create_task(connection.receive(), name="first-reader")
            await asyncio.sleep(0)
            with pytest.raises(MisuseError, match="first-reader"):
                await connection.receive()
            first.cancel()

    run(scenario())


def test_sending_after_a_close_is_one_exception_and_closing_twice_is_fine(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_shutdown_is_bounded_when_a_client_never_answers(run) -> None:
    async def scenario() -> None:
        async with serving(EventHandler(), close_timeout_ms=100) as (hub, url), raw_peer(url) as peer:
            async with asyncio.timeout(5):
                await hub.close()
            assert await peer.close_code() == 1001

    run(scenario())


def test_broadcast_frames_a_message_once_for_all(run) -> None:
    """Each receiver's queue refers to the same frame: the octets queued are many times the memory."""
    import tracemalloc

    async def scenario() -> None:
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

    run(scenario())


def test_authentication_and_origins_are_refused_before_the_upgrade_with_a_status_and_a_body(run) -> None:
    async def scenario() -> None:
        allowed = ("https://example.com", "http://localhost:3000")
        async with serving(EventHandler(), allowed_origins=allowed) as (_, url):
            for origin in ("null", "https://example.com.evil.org", "https://sub.example.com", "http://example.com", ""):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(url, proxy=None, additional_headers={"Origin": origin, "Cookie": "a=b"})
                assert caught.value.response.status_code == 403
                assert b"origin" in caught.value.response.body
            async with connected(url, origin="http://localhost:3000"):
                pass

    run(scenario())


def test_keepalive_goes_on_while_the_application_is_busy(run) -> None:
    """A loop that was blocked for longer than the timeout kills nobody who has answered meanwhile."""
    import time

    async def scenario() -> None:
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

    run(scenario())


def test_threads_may_call_every_method(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


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
            while hub.connection_count or hub._bind().connection_count:
                await asyncio.sleep(0)

    run(scenario())
    assert [record for record in caplog.records if record.name.startswith("wshub") and record.levelno > 10] == []


def test_types_are_shipped() -> None:
    assert (Path(wshub.__file__).parent / "py.typed").exists()


def test_silent_loss_every_drop_is_counted_with_its_reason(run) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_an_abnormal_end_raises_from_async_for_and_a_normal_one_does_not(run) -> None:
    async def scenario() -> None:
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

    run(scenario())
