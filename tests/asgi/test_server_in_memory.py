"""A hub behind an ASGI server that stalls, fails or disappears. The server is in memory: the test takes each step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocketState

from tests.support.odd_strings import Odd
from wshub import (
    ConfigurationError,
    ConnectionClosed,
    EventHandler,
    HandshakeError,
    Hub,
    HubConfig,
    InvalidMessageError,
    MisuseError,
)


class ServerInMemory:
    """One WebSocket of an ASGI server."""

    def __init__(self, hub: Hub, handler: EventHandler) -> None:
        self.sent: list[dict[str, Any]] = []
        self.arrived: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.fails = False
        self.scope = {"type": "websocket", "path": "/a b", "query_string": b"", "headers": [(b"host", b"x")]}
        self.arrived.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(hub.asgi(handler)(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        message = await self.arrived.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: dict[str, Any]) -> None:
        await self.takes.wait()
        if self.fails:
            raise OSError("the client has left")
        self.sent.append(message)


class Scene:
    """A hub, a connection of such a server, and the events of the connection's handler."""

    def __init__(self, **settings: Any) -> None:
        self.hub = Hub(HubConfig(**settings))
        self.closes: list[tuple[int, str]] = []
        self.opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        handler = EventHandler(
            on_open=self.opened.set_result,
            on_message=lambda connection, message: connection.send(message),
            on_close=lambda connection, code, reason: self.closes.append((code, reason)),
        )
        self.server = ServerInMemory(self.hub, handler)

    async def connection(self) -> Any:
        return await self.opened

    def check_counters(self) -> None:
        stats = self.hub.stats()
        assert stats.connections == 0
        assert stats.messages_accepted == stats.messages_delivered + stats.dropped.total


async def test_a_send_that_fails_ends_the_connection_with_1006() -> None:
    scene = Scene()
    connection = await scene.connection()
    scene.server.fails = True
    connection.send("lost")
    await scene.server.task
    assert scene.closes == [(1006, "")]
    scene.check_counters()


@pytest.mark.parametrize(
    "broken",
    [OSError("gone"), RuntimeError("broken"), {"type": "websocket.receive", "bytes": None}],
    ids=["OSError", "RuntimeError", "no message"],
)
async def test_a_receive_that_fails_ends_the_connection_with_1006(broken) -> None:
    scene = Scene()
    await scene.connection()
    scene.server.arrived.put_nowait(broken)
    await scene.server.task
    assert scene.closes == [(1006, "")]


async def test_a_server_that_cancels_the_application_ends_the_connection() -> None:
    scene = Scene()
    connection = await scene.connection()
    scene.server.task.cancel()
    await connection.wait_closed()
    assert scene.closes == [(1006, "")]
    scene.check_counters()


@pytest.mark.parametrize(
    ("told", "code", "reason"), [(4002, 4002, "why"), (1005, 1005, ""), (1006, 1006, ""), (1015, 1006, "")]
)
async def test_a_disconnect_gives_its_code_and_reason(told, code, reason) -> None:
    scene = Scene()
    await scene.connection()
    scene.server.arrived.put_nowait({"type": "websocket.disconnect", "code": told, "reason": reason})
    await scene.server.task
    assert scene.closes == [(code, reason)]


async def test_a_lone_surrogate_closes_with_1007() -> None:
    scene = Scene()
    await scene.connection()
    scene.server.arrived.put_nowait({"type": "websocket.receive", "text": "\ud800"})
    await scene.server.task
    assert scene.server.sent[-1]["code"] == 1007


async def test_drain_waits_until_the_server_has_taken_everything() -> None:
    scene = Scene()
    connection = await scene.connection()
    scene.server.takes.clear()
    for number in range(3):
        connection.send(str(number))
    draining = asyncio.create_task(connection.drain())
    # The server has one of them.
    while connection.buffered > 2 * 64:
        await asyncio.sleep(0)
    assert not draining.done()
    scene.server.takes.set()
    await draining
    assert [message["text"] for message in scene.server.sent[1:]] == ["0", "1", "2"]
    await scene.hub.close()


class Guest(ServerInMemory):
    """A WebSocket whose endpoint is the test, as with hub.accept()."""

    def __init__(self) -> None:
        super().__init__(Hub(), EventHandler())
        self.task.cancel()


async def test_what_a_task_sends_is_with_the_server_before_the_task_goes_on() -> None:
    server = Guest()
    connection = await Hub().accept(server)
    connection.send("one")
    assert server.sent[-1] == {"type": "websocket.send", "text": "one"}
    connection.hub.broadcast("two")
    connection.send(b"three")
    connection.close(4401, "expired")
    assert server.sent[1:] == [
        {"type": "websocket.send", "text": "one"},
        {"type": "websocket.send", "text": "two"},
        {"type": "websocket.send", "bytes": b"three"},
        {"type": "websocket.close", "code": 4401, "reason": "expired"},
    ]
    await connection.wait_closed()
    assert (connection.close_code, connection.close_reason) == (4401, "expired")


async def test_a_server_takes_each_message_within_one_task_whether_it_is_busy_or_not() -> None:
    """The server's timeouts and task groups depend on it."""

    class Slow(Guest):
        async def send(self, message: dict[str, Any]) -> None:
            task = asyncio.current_task()
            assert task is not mine
            async with asyncio.timeout(10):
                await asyncio.sleep(0)
                await super().send(message)
                await asyncio.sleep(0)
            assert asyncio.current_task() is task

    mine: Any = None

    server = Slow()
    connection = await Hub().accept(server)
    mine = asyncio.current_task()
    for number in range(20):
        connection.send(str(number))
        if number % 3 == 0:
            await asyncio.sleep(0)
        assert asyncio.current_task() is mine
    await connection.drain()
    assert [message["text"] for message in server.sent[1:]] == [str(number) for number in range(20)]
    connection.close()
    await connection.wait_closed()


async def test_middleware_that_sends_while_it_passes_a_message_on_is_served_in_order() -> None:
    class Counting(Guest):
        async def send(self, message: dict[str, Any]) -> None:
            await super().send(message)
            if message.get("text") == "ping":
                connections[0].send("pong")

    connections: list[Any] = []

    server = Counting()
    connections.append(await Hub().accept(server))
    for _ in range(2):
        connections[0].send("ping")
    await connections[0].drain()
    assert [message["text"] for message in server.sent[1:]] == ["ping", "pong"] * 2
    connections[0].close()
    await connections[0].wait_closed()


async def test_a_server_that_fails_at_once_ends_the_connection_with_1006() -> None:
    server = Guest()
    connection = await Hub().accept(server)
    server.fails = True
    connection.send("lost")
    await connection.wait_closed()
    assert connection.close_code == 1006
    with pytest.raises(ConnectionClosed):
        connection.send("too late")


async def test_a_connection_that_is_lost_while_the_server_is_busy_leaves_nothing_behind() -> None:
    server = Guest()
    hub = Hub()
    connection = await hub.accept(server)
    server.takes.clear()
    connection.send("never taken")
    connection.send("nor this")
    server.arrived.put_nowait(OSError("gone"))
    await connection.wait_closed()
    stats = hub.stats()
    assert stats.connections == 0
    assert stats.messages_accepted == stats.messages_delivered + stats.dropped.total


async def test_a_server_that_does_not_take_what_is_sent_costs_bounded_memory() -> None:
    scene = Scene(max_send_buffer=1000, close_timeout_ms=100)
    connection = await scene.connection()
    scene.server.takes.clear()
    with pytest.raises(ConnectionClosed):
        for _ in range(100):
            connection.send("x" * 100)
            await asyncio.sleep(0)
    assert connection.buffered <= 1100
    # The server does not take the close frame either. The sweep ends the connection.
    await scene.server.task
    assert scene.closes == [(1013, "too much is waiting to be sent")]
    assert scene.hub.stats().dropped.slow > 0
    scene.check_counters()


async def test_no_ping_is_missed_where_there_are_none() -> None:
    now = 0.0
    scene = Scene()
    scene.hub = Hub(clock=lambda: now)
    server = ServerInMemory(scene.hub, EventHandler(on_open=scene.opened.set_result))
    connection = await scene.connection()
    for now in range(0, 3600, 5):  # noqa: B007
        scene.hub._sweep()
    assert connection.state.name == "OPEN"
    await scene.hub.close()
    await server.task


async def test_a_websocket_that_was_accepted_already_is_not_taken() -> None:
    hub = Hub()

    class Accepted:
        scope = {"type": "websocket"}  # noqa: RUF012

        async def receive(self) -> dict[str, Any]:
            return {"type": "websocket.receive", "text": "x"}

        async def send(self, message: dict[str, Any]) -> None:
            raise AssertionError(message)

    with pytest.raises(MisuseError, match="already"):
        await hub.accept(Accepted())


async def test_an_answer_that_cannot_be_sent_leaves_no_connection_behind() -> None:
    hub = Hub(HubConfig(max_connections_per_address=1))
    for _ in range(3):
        server = ServerInMemory(hub, EventHandler())
        server.task.cancel()
        server.scope["client"] = ("192.0.2.1", 4711)
        server.fails = True
        with pytest.raises(OSError, match="has left"):
            await hub.accept(server)
        assert hub.connection_count == 0
    assert hub._admission._connections == {}


@pytest.mark.parametrize(
    ("arguments", "error", "what_is_right"),
    [
        ({"headers": [("x-name", "\u0436")]}, InvalidMessageError, "latin-1"),
        ({"headers": [("x-name", 5)]}, InvalidMessageError, "str or bytes"),
        ({"headers": {"x-name": "a"}}, ConfigurationError, r"headers\.items\(\)"),
        ({"headers": "x-name: a"}, ConfigurationError, "pairs"),
        ({"subprotocols": "chat"}, ConfigurationError, r"\['chat'\]"),
    ],
)
async def test_an_answer_that_cannot_be_is_refused_before_anything_is_registered(
    arguments, error, what_is_right
) -> None:
    hub = Hub()
    server = ServerInMemory(hub, EventHandler())
    server.task.cancel()
    with pytest.raises(error, match=what_is_right):
        await hub.accept(server, **arguments)
    assert hub.connection_count == 0
    assert server.sent == []


async def test_strings_of_a_subclass_are_strings_in_what_the_server_sends_and_is_sent() -> None:
    hub = Hub()
    received = asyncio.get_running_loop().create_future()
    closed = asyncio.get_running_loop().create_future()
    handler = EventHandler(
        on_message=lambda connection, message: received.set_result(message.data),
        on_close=lambda connection, code, reason: closed.set_result((code, reason)),
    )
    server = ServerInMemory(hub, handler)
    server.task.cancel()
    server.scope["subprotocols"] = ["chat"]
    accepting = asyncio.create_task(
        hub.accept(server, handler, subprotocols=[Odd("chat")], headers=[(Odd("X-Name"), Odd("a")), (b"x-b", b"b")])
    )
    server.arrived.put_nowait({"type": Odd("websocket.receive"), "text": Odd("text")})
    assert await received == "text"
    assert server.sent[0]["subprotocol"] == "chat"
    assert server.sent[0]["headers"] == [(b"x-name", b"a"), (b"x-b", b"b")]
    server.arrived.put_nowait({"type": Odd("websocket.disconnect"), "code": 4000, "reason": Odd("bye")})
    assert await closed == (4000, "bye")
    await accepting


async def test_the_bound_for_an_address_holds_for_those_who_wait_for_on_upgrade() -> None:
    async def on_upgrade(request: Any) -> None:
        await asyncio.sleep(0.01)

    hub = Hub(HubConfig(max_connections_per_address=2), on_upgrade=on_upgrade)
    servers = [ServerInMemory(hub, EventHandler()) for _ in range(5)]
    for server in servers:
        server.scope["client"] = ("192.0.2.1", 4711)
    while len([server for server in servers if server.sent]) < 5:
        await asyncio.sleep(0)
    answers = sorted(server.sent[0]["type"] for server in servers)
    assert answers == ["websocket.accept"] * 2 + ["websocket.close"] * 3
    for server in servers:
        server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.gather(*(server.task for server in servers), return_exceptions=True)


async def test_who_is_being_accepted_when_the_hub_closes_is_told_so() -> None:
    scene = Scene()
    scene.server.takes.clear()
    while not scene.hub.connection_count:
        await asyncio.sleep(0)
    closing = asyncio.create_task(scene.hub.close(1012, "restart"))
    for _ in range(10):
        await asyncio.sleep(0)
    scene.server.takes.set()
    await closing
    await scene.server.task
    assert scene.opened.done()
    assert scene.closes == [(1012, "restart")]
    assert scene.server.sent[-1] == {"type": "websocket.close", "code": 1012, "reason": "restart"}
    scene.check_counters()


async def test_who_is_accepted_when_the_hub_has_closed_has_no_connection() -> None:
    scene = Scene(close_timeout_ms=1)
    scene.server.takes.clear()
    while not scene.hub.connection_count:
        await asyncio.sleep(0)
    await scene.hub.close()
    scene.server.takes.set()
    await scene.server.task
    assert not scene.opened.done()
    assert scene.closes == []
    scene.check_counters()


class AcceptedByFramework(ServerInMemory):
    """A WebSocket as a framework passes it to an endpoint. The hub must not receive from it."""

    def __init__(self, scope: dict[str, Any], **states: Any) -> None:
        self.sent = []
        self.arrived = asyncio.Queue()
        self.takes = asyncio.Event()
        self.takes.set()
        self.fails = False
        self.scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": [(b"host", b"x")], **scope}
        self.arrived.put_nowait({"type": "websocket.connect"})
        vars(self).update(states)


@pytest.mark.parametrize(
    ("scope", "states"),
    [
        ({}, {"client_state": WebSocketState.CONNECTED, "application_state": WebSocketState.CONNECTED}),
        ({}, {"client_state": WebSocketState.CONNECTED, "application_state": WebSocketState.DISCONNECTED}),
        ({}, {"connection_state": "connect"}),
        ({}, {"connection_state": "receive"}),
        ({"extensions": {"wshub.takeover": {"accepted": True, "subprotocol": None}}}, {}),
    ],
    ids=["Starlette", "Starlette, closed", "Litestar", "Litestar, received", "wshub"],
)
async def test_a_websocket_that_is_accepted_already_raises_at_once_and_stays_as_it_is(scope, states) -> None:
    hub = Hub()
    server = AcceptedByFramework(scope, **states)
    with pytest.raises(MisuseError, match="accepted, or has ended, already"):
        await hub.accept(server)
    assert server.arrived.qsize() == 1
    assert server.sent == []
    assert hub.connection_count == 0


@pytest.mark.parametrize("refuses", [False, True], ids=["accepted", "refused"])
async def test_a_second_accept_raises_at_once_and_leaves_the_first_as_it_is(refuses) -> None:
    def on_upgrade(request: Any) -> None:
        if refuses:
            raise HandshakeError(403, "no")

    hub = Hub(on_upgrade=on_upgrade)
    server = AcceptedByFramework({})
    connection = None
    if refuses:
        with pytest.raises(HandshakeError):
            await hub.accept(server)
    else:
        connection = await hub.accept(server)
    with pytest.raises(MisuseError, match="accepted, or has ended, already"):
        await hub.accept(server)
    if connection is not None:
        server.arrived.put_nowait({"type": "websocket.receive", "text": "still here"})
        assert (await connection.receive()).data == "still here"
        server.arrived.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await connection.wait_closed()


@pytest.mark.parametrize("error", [GeneratorExit(), SystemExit(3)], ids=lambda error: type(error).__name__)
async def test_what_on_upgrade_raises_reaches_the_server_that_runs_the_application(error) -> None:
    async def on_upgrade(request: Any) -> None:
        await asyncio.sleep(0)
        raise error

    hub = Hub(on_upgrade=on_upgrade)
    server = AcceptedByFramework({})
    accepting = hub.asgi(EventHandler())(server.scope, server.receive, server.send)
    try:
        await accepting
    except BaseException as raised:
        assert raised is error
    else:
        pytest.fail("nothing was raised")
    assert server.sent == []
    assert hub.connection_count == 0
