"""An endpoint that uses the methods of its connection and its hub."""

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, assert_type

from wshub import (
    CloseCode,
    Connection,
    ConnectionClosed,
    ConnectionState,
    DeliveryOptions,
    Headers,
    Hub,
    HubStats,
    Message,
    MessageType,
    RequestHead,
    RoomStats,
    UnexpectedMessageError,
)


async def echo(connection: Connection) -> None:
    assert_type(await connection.receive(), Message)
    assert_type(await connection.receive(timeout=1), Message)
    async for message in connection:
        assert_type(message, Message)
        assert_type(message.data, str | bytes)
        assert_type(message.type, MessageType)
        connection.send(message)
        await connection.drain()
    await connection.wait_closed()


async def receive(connection: Connection) -> None:
    assert_type(await connection.receive_text(), str)
    assert_type(await connection.receive_text(timeout=1.5), str)
    assert_type(await connection.receive_bytes(1), bytes)
    value: dict[str, int] = await connection.receive_json()
    async for value in connection.iter_json():
        connection.send_json(value)
    price: float = (await connection.receive()).json()["price"]
    try:
        await connection.receive_json()
    except UnexpectedMessageError as error:
        assert_type(error.code, int)
        assert_type(error.reason, str)
    print(price)


async def produce(connection: Connection, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        await connection.wait_writable()
        connection.send_bytes(chunk)
    try:
        await connection.drain()
    except ConnectionClosed as closed:
        assert_type(closed.code, int)


async def send(connection: Connection) -> None:
    connection.send("text")
    connection.send(b"binary", compress=False, slow_consumer="drop_oldest")
    connection.send(bytearray(b"a buffer"), key="price of X")
    connection.send(memoryview(b"a buffer"), slow_consumer=None)
    connection.send_text(b"UTF-8")
    connection.send_json({"price": 1})
    connection.send_bytes(memoryview(b"a buffer"), slow_consumer="latest", key="price of X")
    connection.send_ping()
    connection.close(CloseCode.NORMAL, "goodbye")
    # Both forms are allowed: the result can be awaited.
    await connection.send("text")
    queued: Awaitable[None] = connection.join("room")
    await queued


def read(connection: Connection) -> None:
    assert_type(connection.id, int)
    assert_type(connection.state, ConnectionState)
    assert_type(connection.request, RequestHead | None)
    assert_type(connection.headers, Headers | None)
    assert_type(connection.getpeercert(), dict[str, Any] | None)
    assert_type(connection.getpeercert(True), bytes | None)
    assert_type(connection.path, str)
    assert_type(connection.subprotocol, str | None)
    assert_type(connection.path_params, dict[str, Any] | None)
    assert_type(connection.rooms, frozenset[str])
    assert_type(connection.close_code, int | None)
    assert_type(connection.buffered, int)
    assert_type(connection.latency_ms, float | None)
    assert_type(connection.user, str | None)
    connection.user = "anna"
    connection.hub.broadcast("hello", exclude=connection)


def broadcast(hub: Hub, connection: Connection, options: DeliveryOptions) -> None:
    assert_type(hub.broadcast("text", room="room", exclude=connection), int)
    assert_type(hub.broadcast(b"binary", **options), int)
    assert_type(hub.broadcast_to_room("room", Message("text"), key="price of X"), int)
    assert_type(hub.room_members("room"), list[Connection])
    assert_type(hub.connections, list[Connection])
    assert_type(hub.user_connections("anna"), list[Connection])
    for each in hub.connections:
        each.close(CloseCode.GOING_AWAY)
    assert_type(hub.get_connection(1), Connection | None)
    assert_type(hub.stats(), HubStats)
    assert_type(hub.stats(room="room"), RoomStats)


def mistakes(connection: Connection, hub: Hub) -> None:
    connection.send(1)  # type: ignore[arg-type]
    connection.send("text", slow_consumer="drop")  # type: ignore[arg-type]
    connection.send("text", compres=True)  # type: ignore[call-arg]
    connection.id = 2  # type: ignore[misc]
    connection.close("goodbye")  # type: ignore[arg-type]
    connection.send_bytes("text")  # type: ignore[arg-type]
    connection.latency_ms = 1.0  # type: ignore[misc]
    hub.connections = []  # type: ignore[misc]
    hub.broadcast("text", exclude="connection 1")  # type: ignore[arg-type]


def headers(request: RequestHead) -> Mapping[str, str]:
    assert_type(request.headers, Headers)
    return {"user": request.headers.get("Authorization") or "nobody"}
