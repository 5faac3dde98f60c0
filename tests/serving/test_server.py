"""``Server`` has the methods of ``asyncio.Server``, and ends only what it has begun."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.serving_hub import connected
from wshub import ConfigurationError, Connection, EventHandler, Hub, HubConfig, MisuseError


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


def url_of(server: Any) -> str:
    return f"ws://127.0.0.1:{server.port}/"


async def assert_refused(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_it_is_used_as_an_asyncio_server() -> None:
    hub = Hub()
    server = hub.serve("127.0.0.1", 0, echo())
    assert not server.is_serving()
    assert server.sockets == ()
    with pytest.raises(MisuseError, match=r"get_loop\(\)"):
        server.get_loop()
    with pytest.raises(MisuseError, match="port: the server has not listened"):
        _ = server.port
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    assert server.get_loop() is asyncio.get_running_loop()
    assert [listening.getsockname()[1] for listening in server.sockets] == [server.port]
    async with connected(url_of(server)) as client:
        await client.send("x")
        assert await client.recv() == "x"
        # As in asyncio, close() is no coroutine: it only begins to close.
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()
        await assert_refused(server.port)
        with pytest.raises(websockets.ConnectionClosed):
            await client.recv()
        assert client.close_code == 1001
        await server.wait_closed()
    await server.wait_closed()
    await server.close()
    await hub.close()
    with pytest.raises(MisuseError, match="make another one"):
        await server.start_serving()


async def test_several_calls_at_once_start_it_once() -> None:
    hub = Hub()
    server = hub.serve("localhost", 0, echo())
    await asyncio.gather(*(server.start_serving() for _ in range(5)))
    async with server, connected(url_of(server)):
        pass
    await hub.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_leaving_it_ends_its_own_connections_and_leaves_the_hub_in_use(certificate, tls) -> None:
    closed: list[tuple[str, int]] = []
    context = certificate.server_context() if tls else None
    options: dict[str, Any] = {"ssl": certificate.client_context()} if tls else {}

    def handler(name: str) -> EventHandler:
        return EventHandler(
            on_open=lambda connection: connection.join("room"),
            on_close=lambda connection, code, reason: closed.append((name, code)),
        )

    async with Hub() as hub, hub.serve("127.0.0.1", 0, handler("stays")) as staying:
        leaving = hub.serve("127.0.0.1", 0, handler("leaves"), ssl=context)
        await leaving.start_serving()
        scheme = "wss" if tls else "ws"
        async with (
            connected(url_of(staying)) as kept,
            connected(f"{scheme}://127.0.0.1:{leaving.port}/", **options) as ended,
        ):
            await leaving.close()
            assert closed == [("leaves", 1001)]
            assert hub.is_in_use
            assert not hub.is_closing
            assert hub.connection_count == 1
            assert hub.broadcast("still here", room="room") == 1
            assert await kept.recv() == "still here"
            await ended.wait_closed()
            assert ended.close_code == 1001
        async with hub.serve("127.0.0.1", 0, echo()) as another, connected(url_of(another)) as client:
            await client.send("again")
            assert await client.recv() == "again"
        assert staying.is_serving()


async def test_close_hub_closes_the_hub_too() -> None:
    hub = Hub()
    async with (
        hub.serve("127.0.0.1", 0, echo()) as other,
        hub.serve("127.0.0.1", 0, echo(), close_hub=True) as server,
    ):
        async with connected(url_of(other)) as client, connected(url_of(server)):
            await server.close()
            await client.wait_closed()
            assert client.close_code == 1001
        assert not hub.is_in_use
        assert not other.is_serving()
        await other.wait_closed()
    with pytest.raises(ConfigurationError, match="close_hub must be True or False"):
        hub.serve("127.0.0.1", 0, echo(), close_hub=1)  # type: ignore[arg-type]


async def test_handlers_of_its_connections_have_their_time_and_the_others_are_not_waited_for() -> None:
    events: list[str] = []
    blocked = asyncio.Event()

    async def slow(connection: Connection, message: Any) -> None:
        try:
            await blocked.wait()
        finally:
            await asyncio.sleep(0.01)
            events.append(f"{connection.path} ends")

    async def hangs(connection: Connection, message: Any) -> None:
        await asyncio.Event().wait()

    async with Hub(HubConfig(close_timeout_ms=100)) as hub:
        other = hub.serve("127.0.0.1", 0, EventHandler(on_message=hangs))
        server = hub.serve("127.0.0.1", 0, EventHandler(on_message=slow))
        await other.start_serving()
        await server.start_serving()
        async with connected(url_of(other)) as hanging, connected(url_of(server)) as client:
            await hanging.send("x")
            await client.send("x")
            while hub.stats().messages_received < 2:
                await asyncio.sleep(0)
            await server.close()
            # It was cancelled after its time, and its end was waited for.
            assert events == ["/ ends"]
            assert hub.connection_count == 1
            await hanging.ping()


async def test_its_closes_are_spread_over_the_configured_time() -> None:
    hub = Hub(HubConfig(shutdown_spread_ms=400))
    server = hub.serve("127.0.0.1", 0, echo())
    await server.start_serving()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url_of(server))) for _ in range(5)]
        began = asyncio.get_running_loop().time()
        closing = asyncio.ensure_future(server.close())
        ends: list[float] = []
        for client in clients:
            await client.wait_closed()
            ends.append(asyncio.get_running_loop().time() - began)
        await closing
    assert ends[-1] - ends[0] > 0.15
    await hub.close()


async def test_requests_that_are_not_complete_are_refused_when_it_closes() -> None:
    async def on_upgrade(request: Any) -> None:
        await asyncio.Event().wait()

    async with Hub(on_upgrade=on_upgrade) as hub:
        server = hub.serve("127.0.0.1", 0, echo())
        await server.start_serving()
        async with (
            raw_peer(url_of(server), handshake=False) as first,
            raw_peer(url_of(server), handshake=False) as second,
        ):
            first.write(REQUEST)
            second.write(REQUEST[:20])
            while hub.bind().connection_count < 2:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            await server.close()
            for peer in (first, second):
                assert (await peer.reader.readline()).startswith(b"HTTP/1.1 503 ")


WAYS = {
    "await close": lambda server: server.close(),
    "close, then wait_closed": lambda server: (server.close(), server.wait_closed())[1],
    "wait_for": lambda server: asyncio.wait_for(server.close(), 3600),
    "gather": lambda server: asyncio.gather(server.close(), server.close()),
    "hub and server": lambda server: asyncio.gather(server.hub.close(), server.close()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("close_hub", [False, True])
async def test_a_handler_may_await_the_end_of_its_server(way, close_hub) -> None:
    closed = asyncio.Event()

    async def on_message(connection: Connection, message: Any) -> None:
        await WAYS[way](server)
        assert connection.hub.connection_count == 0
        closed.set()

    # If the server waited for this handler, closing would take all of this time.
    hub = Hub(HubConfig(close_timeout_ms=3_600_000))
    server = hub.serve("127.0.0.1", 0, EventHandler(on_message=on_message), close_hub=close_hub)
    await server.start_serving()
    async with connected(url_of(server)) as client:
        await client.send("close")
        await closed.wait()
    await server.wait_closed()
    await hub.close()


async def test_two_handlers_may_wait_for_the_hub_and_for_a_server() -> None:
    """The hub would wait for the one, and the server for the other."""
    done: list[str] = []

    async def on_message(connection: Connection, message: Any) -> None:
        while connection.hub.stats().messages_received < 2:
            await asyncio.sleep(0)
        await (server.close() if message.data == "server" else connection.hub.close())
        done.append(message.data)

    hub = Hub(HubConfig(close_timeout_ms=3_600_000))
    server = hub.serve("127.0.0.1", 0, EventHandler(on_message=on_message))
    await server.start_serving()
    async with connected(url_of(server)) as first, connected(url_of(server)) as second:
        await first.send("server")
        await second.send("hub")
        while len(done) < 2:
            await asyncio.sleep(0)
    assert sorted(done) == ["hub", "server"]


async def test_serve_forever_starts_it_and_a_cancellation_closes_it() -> None:
    hub = Hub()
    server = hub.serve("127.0.0.1", 0, echo())
    serving_forever = asyncio.create_task(server.serve_forever(handle_signals=False))
    while not server.is_serving():
        await asyncio.sleep(0)
    async with connected(url_of(server)) as client:
        serving_forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving_forever
        await client.wait_closed()
        assert client.close_code == 1001
    assert not server.is_serving()
    assert hub.is_in_use
    await hub.close()


async def test_a_signal_closes_the_hub() -> None:
    hub = Hub()
    server = hub.serve("127.0.0.1", 0, echo())
    serving_forever = asyncio.create_task(server.serve_forever())
    while not server.is_serving():
        await asyncio.sleep(0)
    async with connected(url_of(server)) as client:
        signal.raise_signal(signal.SIGTERM)
        await serving_forever
        await client.wait_closed()
        assert client.close_code == 1001
    assert not hub.is_in_use


async def test_a_server_that_never_listened_is_closed_at_once() -> None:
    hub = Hub()
    server = hub.serve("127.0.0.1", 0, echo())
    server.close()
    await server.close()
    await server.wait_closed()
    assert repr(server) == "<Server not started>"


async def test_a_close_while_it_is_about_to_listen_stops_that() -> None:
    hub = Hub()
    server = hub.serve("localhost", 0, echo())
    starting = asyncio.create_task(server.start_serving())
    await asyncio.sleep(0)
    server.close()
    with pytest.raises(MisuseError, match="closed while it was about to listen"):
        await starting
    assert not server.is_serving()
    await hub.close()


async def test_its_repr_says_where_it_listens(socket_directory: Path) -> None:
    hub = Hub()
    async with hub.serve("127.0.0.1", 0, echo()) as server:
        assert repr(server) == f"<Server 127.0.0.1:{server.port} serving>"
    assert repr(server) == f"<Server 127.0.0.1:{server.port} closed>"
    path = socket_directory / "hub"
    async with hub.serve(unix=path, handler=echo()) as server:
        assert repr(server) == f"<Server {path} serving>"
        with pytest.raises(MisuseError, match="Unix socket"):
            _ = server.port
    await hub.close()


def test_a_hub_that_is_left_in_use_at_the_end_of_the_loop_is_quiet_and_works_on_the_next(run, caplog) -> None:
    hub = Hub()

    async def scenario() -> None:
        async with hub.serve("127.0.0.1", 0, echo()) as server, connected(url_of(server)) as client:
            await client.send("x")
            assert await client.recv() == "x"

    for _ in range(3):
        run(scenario())
    assert caplog.records == []
