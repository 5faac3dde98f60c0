"""A hub serves one event loop after another, and starts afresh on each."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.serving_hub import connected
from wshub import Connection, ConnectionLost, EventHandler, Hub, HubConfig, MisuseError


def echo(connection, message) -> None:
    connection.join("room")
    connection.send(message)


def test_a_global_hub_works_in_every_session_of_a_test_client() -> None:
    app = FastAPI()
    hub = Hub(HubConfig(max_connections=1))

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        connection = await hub.accept(websocket)
        async for message in connection:
            hub.broadcast(message)

    app.mount("/mounted", hub.asgi(EventHandler(on_message=echo)))
    for path in ("/chat", "/mounted/", "/chat"):
        # Once with its own session, and once without one.
        with TestClient(app) as client, client.websocket_connect(path) as websocket:
            websocket.send_text(path)
            assert websocket.receive_text() == path
        with TestClient(app).websocket_connect(path) as websocket:
            websocket.send_text(path)
            assert websocket.receive_text() == path


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "loop gone"])
def test_a_hub_is_as_new_on_the_next_loop(run, closes) -> None:
    asked: list[str] = []
    hub = Hub(
        HubConfig(max_connections=1, max_connections_per_address=1, close_timeout_ms=100),
        on_upgrade=lambda head: asked.append(head.path),
    )
    hub.configure_room("room", slow_consumer="drop_newest")

    async def scenario() -> None:
        server = await hub.serve("127.0.0.1", 0, EventHandler(on_message=echo)).__aenter__()
        assert hub.stats().connections == 0
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url), raw_peer(url, handshake=False) as second:
            second.write(REQUEST)
            assert b" 503 " in await second.reader.readline()
            assert hub.stats().refused == {503: 1}
            if closes:
                await server.close()
                assert hub.connection_count == 0
        for listening in server.sockets:
            listening.close()

    for _ in range(3):
        run(scenario())
    assert asked == ["/"] * 3


async def test_a_hub_serves_again_after_its_server_has_stopped() -> None:
    hub = Hub()
    for _ in range(3):
        async with (
            hub.serve("127.0.0.1", 0, EventHandler(on_message=echo)) as server,
            connected(f"ws://127.0.0.1:{server.port}/") as client,
        ):
            await client.send("hello")
            assert await client.recv() == "hello"
            assert hub.rooms == {"room"}
            assert hub.stats().messages_received == 1
        assert not hub.rooms
        assert hub.broadcast("to nobody") == 0
        await hub.close()


def test_two_loops_at_a_time_are_an_error_that_says_so(run) -> None:
    hub = Hub()
    entered, leave = threading.Event(), threading.Event()

    async def use() -> None:
        async with hub:
            entered.set()
            await asyncio.to_thread(leave.wait)

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    entered.wait()

    async def scenario() -> None:
        with pytest.raises(MisuseError, match="another event loop"):
            async with hub:
                pass

    try:
        run(scenario())
    finally:
        leave.set()
        thread.join()
    run(hub.__aenter__())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("use_reactor", [True, False])
def test_a_client_that_is_still_connected_does_not_keep_a_hub_from_the_next_loop(run, use_reactor) -> None:
    hub = Hub(HubConfig(use_reactor=use_reactor))
    client = socket.socket()

    async def leave_open() -> Connection:
        loop = asyncio.get_running_loop()
        if isinstance(loop, uvloop.Loop) and not use_reactor:
            pytest.skip("uvloop hangs when a transport is freed that was open when its loop closed")
        opened = loop.create_future()
        server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.set_result)).__aenter__()
        client.connect(("127.0.0.1", server.port))
        client.sendall(REQUEST)
        connection = await opened
        for listening in server.sockets:
            listening.close()
        return connection

    async def use_again(connection: Connection) -> None:
        async with hub:
            assert connection.state.name == "CLOSED"
            assert not hub.connection_count

    with client:
        connection = run(leave_open())
        run(use_again(connection))
    del connection
    gc.collect()


def test_a_loop_that_goes_with_connections_open_leaves_nothing_behind(run) -> None:
    hub = Hub()

    async def leave_open() -> object:
        opened: list[Connection] = []
        server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.append)).__aenter__()
        async with raw_peer(f"ws://127.0.0.1:{server.port}/"):
            (connection,) = opened
            connection.join("room")
            connection.send("queued")
            waiting = [asyncio.create_task(wait()) for wait in (connection.wait_closed, connection.receive)]
            await asyncio.sleep(0)
        for listening in server.sockets:
            listening.close()
        del waiting
        return connection

    async def use_again(connection) -> None:
        async with hub:
            assert connection.state.name == "CLOSED"
            assert connection.close_code == 1006
            assert not hub.connection_count

    connection = run(leave_open())
    run(use_again(connection))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        connection = run(leave_open())
        run(use_again(connection))
    del connection
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def outcomes(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return the result of each call, or the type of its exception."""
    results: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            results[name] = call()
        except Exception as error:
            results[name] = type(error)
    return results


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "loop gone"])
def test_calls_from_any_thread_see_the_end_of_a_connection_whose_loop_has_closed(run, closes) -> None:
    hub = Hub()

    async def serve() -> Connection:
        opened: list[Connection] = []
        server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.append)).__aenter__()
        async with raw_peer(f"ws://127.0.0.1:{server.port}/") as peer:
            (connection,) = opened
            connection.join("room")
            peer.reset()
            await connection.wait_closed()
            if closes:
                await server.close()
        for listening in server.sockets:
            listening.close()
        return connection

    connection = run(serve())
    calls: dict[str, Callable[[], Any]] = {
        "send": lambda: connection.send("x"),
        "send_ping": connection.send_ping,
        "join": lambda: connection.join("room"),
        "leave": lambda: bool(connection.leave("room")),
        "close": lambda: bool(connection.close()),
        "unregister": lambda: bool(hub.unregister(connection)),
        "broadcast": lambda: hub.broadcast("x"),
        "broadcast to a room": lambda: hub.broadcast("x", room="room"),
        "receive": lambda: asyncio.run(connection.receive()),
        "drain": lambda: asyncio.run(connection.drain()),
        "wait_closed": lambda: asyncio.run(connection.wait_closed()),
    }
    expected = outcomes(calls)
    nothing = {"leave": False, "close": False, "unregister": False, "broadcast": 0, "broadcast to a room": 0}
    lost = dict.fromkeys(("send", "send_ping", "join", "receive", "drain"), ConnectionLost)
    assert expected == {**nothing, **lost, "wait_closed": None}
    elsewhere: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: elsewhere.append(outcomes(calls)))
    thread.start()
    thread.join()
    assert elsewhere == [expected]


def test_receive_on_another_loop_sees_that_the_loop_of_its_connection_has_closed(run) -> None:
    hub = Hub()

    async def leave_open() -> Connection:
        opened: list[Connection] = []
        server = await hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.append)).__aenter__()
        async with raw_peer(f"ws://127.0.0.1:{server.port}/"):
            for listening in server.sockets:
                listening.close()
            return opened[0]

    connection = run(leave_open())
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            run(connection.receive())
    run(hub.__aenter__())
