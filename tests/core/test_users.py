"""Users: all connections of one user, by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from tests.support.serving_hub import connected
from wshub import Connection, EventHandler, Hub, InvalidMessageError


def user_in_path(request: Any) -> dict[str, str]:
    return {"user": request.path.removeprefix("/")}


@pytest.fixture
def hub() -> Hub:
    return Hub(on_upgrade=user_in_path)


async def test_a_message_to_a_user_reaches_all_tabs_of_that_user_only(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with connected(url + "ann") as one, connected(url + "ann") as two, connected(url + "bob") as other:
            assert hub.send_to_user("ann", "for ann") == 2
            assert hub.send_to_user("bob", "for bob") == 1
            assert [await one.recv(), await two.recv()] == ["for ann", "for ann"]
            assert await other.recv() == "for bob"


async def test_an_empty_name_is_no_user(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, connected(f"ws://127.0.0.1:{server.port}/"):
        connection = hub.get_connection(1)
        assert connection is not None
        assert connection.user is None
        assert hub.send_to_user("", "for nobody") == 0
        assert hub.user_connections("") == []
        assert await hub.disconnect_user("") == 0
        assert hub.connection_count == 1


async def test_a_user_can_be_set_changed_and_taken_away(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, connected(f"ws://127.0.0.1:{server.port}/ann"):
        connection = hub.get_connection(1)
        assert connection is not None
        assert connection.user == "ann"
        connection.user = "bob"
        assert hub.user_connections("ann") == []
        assert hub.user_connections("bob") == [connection]
        connection.user = None
        assert hub.user_connections("bob") == []
        assert connection.user is None
        with pytest.raises(TypeError, match="named by a str"):
            connection.user = 7  # type: ignore[assignment]


async def test_a_user_is_no_room(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, connected(f"ws://127.0.0.1:{server.port}/ann"):
        connection = hub.get_connection(1)
        assert connection is not None
        connection.join("lobby")
        assert connection.rooms == {"lobby"}
        assert hub.rooms == {"lobby"}
        assert hub.stats().rooms == 1
        assert hub.room_size("ann") == 0
        assert hub.broadcast("nothing", room="ann") == 0


async def test_a_closed_connection_is_no_users_but_knows_its_user(hub: Hub) -> None:
    closed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_close(connection: Connection, code: int, reason: str) -> None:
        closed.set_result((connection.user, connection.rooms, hub.user_connections("ann")))

    async with hub.serve("127.0.0.1", 0, EventHandler(on_close=on_close)) as server:
        async with connected(f"ws://127.0.0.1:{server.port}/ann"):
            pass
        assert await closed == ("ann", frozenset(), [])


async def test_disconnecting_a_user_closes_all_tabs_with_the_code(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with connected(url + "ann") as one, connected(url + "ann") as two, connected(url + "bob") as other:
            with pytest.raises(InvalidMessageError):
                await hub.disconnect_user("ann", 1005)
            assert await hub.disconnect_user("ann", 4001, "signed out") == 2
            for client in (one, two):
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (4001, "signed out")
            assert hub.send_to_user("bob", "still here") == 1
            assert await other.recv() == "still here"


async def test_all_tabs_of_a_user_join_and_leave_a_room(hub: Hub) -> None:
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with connected(url + "ann"), connected(url + "ann"), connected(url + "bob"):
            assert hub.join_user("ann", "lobby") == 2
            assert hub.room_size("lobby") == 2
            assert hub.leave_user("ann", "lobby") == 2
            assert hub.room_size("lobby") == 0


async def test_what_else_the_metadata_has_under_user_is_no_name() -> None:
    hub = Hub(on_upgrade=lambda request: {"user": {"id": 7}})
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, connected(f"ws://127.0.0.1:{server.port}/"):
        connection = hub.get_connection(1)
        assert connection is not None
        assert connection.user is None
        assert connection.metadata["user"] == {"id": 7}


def test_accept_takes_the_user() -> None:
    hub = Hub()
    seen = []

    async def endpoint(websocket: WebSocket) -> None:
        connection = await hub.accept(websocket, user="ann")
        seen.append(connection.user)
        hub.send_to_user("ann", "hello")
        await connection.drain()
        connection.close()

    client = TestClient(Starlette(routes=[WebSocketRoute("/", endpoint)]))
    with client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "hello"
    assert seen == ["ann"]
