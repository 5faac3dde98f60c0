"""A connection that ``hub.register()`` has returned, before the handshake is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.uvicorn_server import listening
from wshub import Connection, ConnectionLost, EventHandler, Frame, Hub, Opcode
from wshub.app import App, Context
from wshub.asgi.handshake import open_connection, register_scope
from wshub.core.event_handler import handler_table_of


def fail(ctx: Context, connection: Connection) -> None:
    raise ValueError("something is wrong after all")


def refuse(ctx: Context, connection: Connection) -> None:
    ctx.response.set_status(404)


def close_and_fail(ctx: Context, connection: Connection) -> None:
    connection.close(4000)
    raise ValueError("something is wrong after all")


@pytest.mark.parametrize(
    ("then", "status"), [(fail, b"500"), (refuse, b"404"), (close_and_fail, b"500")], ids=["fails", "refuses", "closes"]
)
async def test_a_handler_that_gives_its_connection_up_ends_every_wait_for_it(caplog, then, status: bytes) -> None:
    app = App()
    hub = app.enable_websocket()
    waits: list[asyncio.Task[Any]] = []

    @app.get("/")
    async def endpoint(ctx: Context) -> None:
        connection = hub.register(EventHandler())
        waits.append(asyncio.create_task(connection.wait_closed()))
        waits.append(asyncio.create_task(connection.receive()))
        await asyncio.sleep(0)
        then(ctx, connection)

    async with listening(app) as address, raw_peer(f"ws://{address}", handshake=False) as peer:
        await answer(peer, status)
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert ended[0] is None
        assert isinstance(ended[1], ConnectionLost)
        assert hub.connection_count == 0


async def answer(peer: Any, status: bytes) -> None:

    peer.write(REQUEST)
    head = await peer.reader.readuntil(b"\r\n\r\n")
    assert head.split(b" ")[1] == status


@pytest.mark.parametrize("taken", [True, False], ids=["native", "transport"])
async def test_close_before_the_opening_reaches_the_client_with_code_and_reason(monkeypatch, taken: bool) -> None:
    if not taken:
        monkeypatch.setattr("wshub.uvicorn.protocol.WebSocketProtocol._can_be_taken", lambda self: False)
    app = App()
    hub = app.enable_websocket()
    told: list[str] = []
    connections: list[Connection] = []
    handler = EventHandler(
        on_open=lambda connection: told.append("open"), on_close=lambda connection, code, reason: told.append("close")
    )

    @app.get("/")
    def endpoint(ctx: Context) -> None:
        connection = hub.register(handler)
        connection.join("room")
        connection.close(4000, "n\u00f3")
        connection.close(4001, "too late")
        assert connection.state.name == "CLOSING"
        assert hub.broadcast("x", room="room") == 0
        connections.append(connection)

    async with listening(app) as address, raw_peer(f"ws://{address}") as peer:
        frame = await peer.frame()
        assert (frame.opcode, frame.payload) == (Opcode.CLOSE, b"\x0f\xa0n\xc3\xb3")
        peer.send(Frame(Opcode.CLOSE, frame.payload))
        peer.writer.write_eof()
        await connections[0].wait_closed()
        assert (connections[0].close_code, connections[0].close_reason) == (4000, "n\u00f3")
        assert told == []
        assert (hub.connection_count, hub.rooms) == (0, frozenset())


async def test_a_plain_asgi_application_leaves_the_answer_to_a_close_its_reason() -> None:
    heard: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        heard.append(await receive())

    async with listening(application) as address, raw_peer(f"ws://{address}") as peer:
        peer.send(Frame(Opcode.CLOSE, b"\x0f\xa0pizza"))
        assert (await peer.frame()).payload == b"\x0f\xa0pizza"
    assert heard == [{"type": "websocket.disconnect", "code": 4000, "reason": "pizza"}]


async def test_close_before_the_opening_is_honoured_where_the_server_keeps_the_connection() -> None:
    sent: list[Any] = []

    closed = asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.close":
            closed.set_result(None)

    async def receive() -> Any:
        await closed
        return {"type": "websocket.disconnect", "code": 4000, "reason": "no"}

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"a")], "client": ("192.0.2.1", 5)}
    async with Hub() as hub:
        opening = register_scope(hub, handler_table_of(EventHandler(on_open=lambda _: sent.append("open"))), scope)
        connection = opening.connection
        connection.close(4000, "no")
        await open_connection(opening, scope, receive, send, ())
        await connection.wait_closed()
        assert [each["type"] for each in sent] == ["websocket.accept", "websocket.close"]
        assert (sent[1]["code"], sent[1]["reason"]) == (4000, "no")
        assert connection.remote_address == ("192.0.2.1", 5)
