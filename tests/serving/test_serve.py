"""A hub serves real clients: messages, rooms, closes and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import pytest
import websockets

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import ConnectionClosed, ConnectionLost, ConnectionState, EventHandler, Frame, MisuseError


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


async def test_text_and_binary_come_back_as_they_were() -> None:
    async with serving(echo(), max_message_size=1 << 24) as (_, url), connected(url, max_size=None) as client:
        for message in ("", "plain", "h\u00e9 \U0001f600", b"", bytes(range(256)), b"x" * (1 << 22), "y" * 70_000):
            await client.send(message)
            assert await client.recv() == message


async def test_messages_leave_in_order_and_none_is_lost() -> None:
    async with serving(echo()) as (hub, url), connected(url) as client:
        for index in range(5000):
            await client.send(str(index))
        assert [await client.recv() for _ in range(5000)] == [str(index) for index in range(5000)]
        stats = hub.stats()
        assert stats.messages_received == stats.messages_delivered == 5000
        assert stats.messages_pending == 0


async def test_a_coroutine_handler_that_suspends_keeps_the_order() -> None:
    ready = asyncio.Event()
    ready.set()

    async def on_message(connection, message) -> None:
        if len(message.data) % 2:
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await asyncio.wait_for(ready.wait(), 1)
            connection.send(message)

    handler = EventHandler(on_message=on_message)
    async with serving(handler) as (_, url), connected(url) as client:
        sent = [f"{index}" * (index % 7 + 1) for index in range(500)]
        for message in sent:
            await client.send(message)
        assert [await client.recv() for _ in sent] == sent


async def test_an_endpoint_receives_until_the_client_closes() -> None:
    ended = asyncio.get_running_loop().create_future()

    async def endpoint(connection) -> None:
        async for message in connection:
            await asyncio.sleep(0)
            connection.send(message)
        ended.set_result((connection.close_code, connection.close_reason))

    async with serving(endpoint) as (_, url):
        async with connected(url) as client:
            for index in range(200):
                await client.send(str(index))
            assert [await client.recv() for _ in range(200)] == [str(index) for index in range(200)]
            await client.close(4001, "enough")
        assert await ended == (4001, "enough")


def test_an_endpoint_that_returns_closes_with_1000_and_one_that_raises_with_1011(run, caplog) -> None:
    async def scenario() -> None:
        async def endpoint(connection) -> None:
            if connection.path == "/bad":
                raise ValueError("on purpose")

        async with serving(endpoint) as (_, url):
            for path, code in (("", 1000), ("bad", 1011)):
                async with connected(url + path) as client:
                    with pytest.raises(websockets.ConnectionClosed):
                        await client.recv()
                    assert client.close_code == code

    run(scenario())
    assert "on purpose" in caplog.text


async def test_receive_can_be_cancelled_and_a_second_reader_is_told_who_the_first_is() -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(handler) as (_, url), connected(url) as client:
        connection = await opened
        with pytest.raises(TimeoutError):
            await connection.receive(timeout=0.001)
        first = asyncio.create_task(connection.receive(), name="the first reader")
        await asyncio.sleep(0)
        with pytest.raises(MisuseError, match="the first reader"):
            await connection.receive()
        first.cancel()
        await asyncio.wait([first])
        await client.send("kept")
        assert (await connection.receive(timeout=5)).data == "kept"


def test_a_handler_that_raises_is_told_of_logged_and_closes_only_its_connection(run, caplog) -> None:
    async def scenario() -> list[object]:
        errors: list[object] = []
        closes: list[tuple[int, str]] = []

        def on_message(connection, message) -> None:
            if message.data == "bad":
                raise RuntimeError("broken handler")
            connection.send(message)

        handler = EventHandler(
            on_message=on_message,
            on_error=lambda connection, error: errors.append(error),
            on_close=lambda connection, code, reason: closes.append((code, reason)),
        )
        async with serving(handler) as (_, url), connected(url) as good:
            async with connected(url) as bad:
                await bad.send("bad")
                with pytest.raises(websockets.ConnectionClosed):
                    await bad.recv()
                assert bad.close_code == 1011
            await good.send("still here")
            assert await good.recv() == "still here"
        assert [code for code, _ in closes] == [1011, 1000]
        return errors

    errors = run(scenario())
    assert [str(error) for error in errors] == ["broken handler"]
    assert "broken handler" in caplog.text


async def test_rooms_reach_their_members_and_nobody_else() -> None:
    connections = []
    handler = EventHandler(on_open=connections.append)
    async with (
        serving(handler) as (hub, url),
        connected(url) as first,
        connected(url) as second,
        connected(url) as third,
    ):
        while len(connections) < 3:
            await asyncio.sleep(0)
        one, two, three = connections
        hub.join_room(one, "a")
        two.join("a")
        two.join("b")
        assert hub.room_size("a") == 2
        assert hub.rooms == {"a", "b"}
        assert two.rooms == {"a", "b"}
        assert one.in_room("a")
        assert not three.in_room("a")
        assert hub.broadcast_to_room("a", "to a") == 2
        assert hub.broadcast_to_room_except("a", "to one", two) == 1
        assert hub.broadcast_except("to others", one.id) == 2
        assert hub.broadcast("to all") == 3
        assert hub.broadcast("to none", room="c") == 0
        assert [await first.recv() for _ in range(3)] == ["to a", "to one", "to all"]
        assert [await second.recv() for _ in range(3)] == ["to a", "to others", "to all"]
        assert [await third.recv() for _ in range(2)] == ["to others", "to all"]
        hub.leave_room(one, "a")
        two.leave("b")
        assert hub.rooms == {"a"}
        assert hub.get_connection(two.id) is two


async def test_membership_ends_with_the_connection_and_on_close_still_sees_its_rooms() -> None:
    closed = asyncio.get_running_loop().create_future()

    def on_close(connection, code, reason) -> None:
        closed.set_result((connection.rooms, connection.hub.room_size("a"), connection.state))

    handler = EventHandler(on_open=lambda connection: connection.join("a"), on_close=on_close)
    async with serving(handler) as (hub, url):
        async with connected(url):
            pass
        assert await closed == ({"a"}, 0, ConnectionState.CLOSED)
        assert hub.rooms == frozenset()
        assert hub.connection_count == 0


async def test_sending_to_a_peer_that_has_gone_says_so_at_once() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url):
        async with connected(url) as client:
            connection = await opened
            client.transport.abort()
        await connection.wait_closed()
        with pytest.raises(ConnectionLost) as caught:
            connection.send("too late")
        assert caught.value.code == 1006
        connection.close()
        connection.close()


async def test_closing_the_hub_tells_all_clients_1001() -> None:
    async with serving(echo()) as (hub, url), connected(url) as client:
        closing = asyncio.create_task(hub.close())
        with pytest.raises(websockets.ConnectionClosed):
            await client.recv()
        assert client.close_code == 1001
        await closing


async def test_closing_can_be_spread_over_a_time_in_which_the_rest_goes_on() -> None:
    clients = []
    async with serving(echo(), shutdown_spread_ms=800) as (hub, url), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for _ in range(20)]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        ends: list[float] = []

        async def note_end(client) -> None:
            await client.wait_closed()
            assert client.close_code == 1001
            ends.append(loop.time() - begun)

        noting = [asyncio.create_task(note_end(client)) for client in clients]
        closing = asyncio.create_task(hub.close())
        await asyncio.wait(noting, return_when=asyncio.FIRST_COMPLETED)
        # The newest connection is closed last.
        await clients[-1].send("still served")
        assert await clients[-1].recv() == "still served"
        with pytest.raises(websockets.InvalidStatus, match="503"):
            await websockets.connect(url, proxy=None)
        await asyncio.gather(*noting, closing)
        early = sum(end < 0.4 for end in ends)
        assert 1 <= early <= 15
        assert max(ends) >= 0.6


@pytest.mark.parametrize(
    ("settings", "headers", "path", "status"),
    [
        ({"allowed_origins": ("https://example.com",)}, {"Origin": "https://example.com.evil.org"}, "/", 403),
        ({"allowed_origins": ("https://example.com",)}, {}, "/", 403),
        ({"max_connections": 1}, {}, "/", 503),
    ],
)
async def test_what_is_not_allowed_is_refused_before_the_upgrade(settings, headers, path, status) -> None:
    async with serving(echo(), **settings) as (hub, url):
        if "max_connections" in settings:
            async with connected(url):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(url, proxy=None)
        else:
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(url, proxy=None, additional_headers=headers)
        assert caught.value.response.status_code == status
        assert hub.stats().refused == {status: 1}


async def test_another_path_is_404_and_the_subprotocol_is_chosen() -> None:
    async with serving(echo(), path="/ws", subprotocols=("chat.v2",)) as (_, url):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url + "x", proxy=None)
        assert caught.value.response.status_code == 404
        async with connected(url, subprotocols=["chat.v1", "chat.v2"]) as client:
            assert client.subprotocol == "chat.v2"


async def test_frames_sent_before_the_101_are_handled_after_it() -> None:
    async with serving(echo()) as (_, url):
        port = int(url.rsplit(":", 1)[1].strip("/"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            b"\x81\x82\x00\x00\x00\x00hi"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.close()


async def test_a_silent_peer_is_closed_and_on_close_sees_1006() -> None:
    closed = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_close=lambda connection, code, reason: closed.set_result((code, reason)))
    async with serving(handler, ping_interval_ms=50, pong_timeout_ms=50) as (_, url):
        port = int(url.rsplit(":", 1)[1].strip("/"))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert await closed == (1006, "no answer to a ping")
        writer.close()


async def test_one_stalled_reader_costs_bounded_memory_and_delays_nobody() -> None:
    connections = []
    closed = asyncio.get_running_loop().create_future()
    handler = EventHandler(
        on_open=connections.append,
        on_close=lambda connection, code, reason: closed.done() or closed.set_result((connection, code)),
    )
    async with serving(handler, close_timeout_ms=100) as (hub, url), connected(url, max_size=None) as reader:
        stalled = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/"))))
        stalled.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        while len(connections) < 2:
            await asyncio.sleep(0)
        message = b"m" * 50_000
        for _ in range(400):
            hub.broadcast(message)
            assert await reader.recv() == message
            assert all(connection.buffered <= (256 + 100) * 1024 for connection in connections)
        assert await closed == (connections[1], 1013)
        stats = hub.stats()
        dropped = stats.dropped.total
        assert dropped > 0
        assert stats.messages_accepted == stats.messages_delivered + dropped + stats.messages_pending
        stalled.close()


async def test_every_method_may_be_called_from_another_thread() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (hub, url), connected(url) as client:
        connection = await opened

        def work() -> None:
            connection.send("one")
            connection.join("room")
            hub.broadcast("two", room=None)
            connection.close(1000, "from a thread")

        await asyncio.to_thread(work)
        assert [await client.recv(), await client.recv()] == ["one", "two"]
        with pytest.raises(websockets.ConnectionClosedOK):
            await client.recv()
        await connection.wait_closed()
        with pytest.raises(ConnectionClosed):
            await asyncio.to_thread(connection.send, "late")


async def test_handlers_have_a_context_of_their_connection() -> None:
    import contextvars

    name = contextvars.ContextVar("name", default="nobody")

    async def on_message(connection, message) -> None:
        connection.send(name.get())
        name.set(message.data)
        await asyncio.sleep(0)
        connection.send(name.get())

    handler = EventHandler(on_message=on_message)
    async with serving(handler) as (_, url), connected(url) as one, connected(url) as two:
        await one.send("one")
        assert [await one.recv(), await one.recv()] == ["nobody", "one"]
        await two.send("two")
        assert [await two.recv(), await two.recv()] == ["nobody", "two"]
        await one.send("again")
        assert await one.recv() == "one"


def test_a_port_probe_or_a_health_check_logs_nothing_above_debug(run, caplog) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        async with serving(EventHandler()) as (hub, url):
            for request in (b"", b"\0", b"HEAD / HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"):
                async with raw_peer(url, handshake=False) as peer:
                    peer.write(request)
                    if len(request) > 1:
                        await peer.reader.read()
            async with raw_peer(url) as peer:
                peer.send(Frame.text("x"))
            while hub.connection_count or hub.bind().connection_count:
                await asyncio.sleep(0)

    run(scenario())
    # The server and the hub log that they start and stop.
    above = [record.event for record in caplog.records if record.name.startswith("wshub") and record.levelno > 10]
    assert above == ["started", "listening", "stopped", "closed"]
