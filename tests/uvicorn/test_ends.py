"""The ends of connections under wshub's protocol class for uvicorn: close codes and log lines for each endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import Any

import pytest
import websockets
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from tests.support.middleware import RebuildsAccept
from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import ConnectionClosed, ConnectionLost, EventHandler, Hub, HubConfig
from wshub.protocol.compression.config import CompressionConfig


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """A function that returns the messages logged above INFO."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


FAILED = "Exception in ASGI application"


def served(framework: str, endpoint: Any, **options: Any) -> Any:
    if framework == "starlette":
        return Starlette(routes=[WebSocketRoute("/", endpoint)], **options)
    api = FastAPI(**options)
    api.add_api_websocket_route("/", endpoint)
    return api


frameworks = pytest.mark.parametrize("framework", ["starlette", "fastapi"])
kinds = pytest.mark.parametrize("taken", [False, True], ids=["transport", "descriptor"])


async def cancel_a_child() -> None:
    task = asyncio.ensure_future(asyncio.sleep(100))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def end_of(client: websockets.ClientConnection) -> tuple[int | None, str | None]:
    await client.wait_closed()
    return client.close_code, client.close_reason


@pytest.mark.parametrize(
    ("error", "code", "reason", "logged"),
    [
        (WebSocketException(1008, "policy"), 1008, "policy", []),
        (WebSocketException(4000), 4000, "", []),
        (HTTPException(403, "no"), 1011, "", [FAILED]),
        (RuntimeError("asked to fail"), 1011, "", [FAILED]),
        (asyncio.CancelledError(), 1011, "", [FAILED]),
        (ExceptionGroup("two", [ConnectionClosed(1000, ""), ValueError()]), 1011, "", [FAILED]),
        (ConnectionLost(1006, ""), 1011, "", [FAILED]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@kinds
@frameworks
async def test_an_exception_of_an_endpoint_closes_with_its_code_or_1011(
    framework, taken, error, code, reason, logged, lines
) -> None:
    """ConnectionLost here comes from another connection: this one is open."""

    hub = Hub(HubConfig(use_reactor=taken))

    async def endpoint(websocket: WebSocket) -> None:
        connection = await hub.accept(websocket)
        connection.send("last words")
        raise error

    async with (
        listening(served(framework, endpoint), log_config=None) as address,
        connected(f"ws://{address}/") as client,
    ):
        assert await client.recv() == "last words"
        assert await end_of(client) == (code, reason)
    assert hub.connection_count == 0
    assert lines() == logged


@frameworks
async def test_a_failed_endpoint_keeps_no_connection_whose_peer_never_answers_the_close(framework) -> None:
    hub = Hub()

    async def endpoint(websocket: WebSocket) -> None:
        await hub.accept(websocket)
        await cancel_a_child()

    async with listening(served(framework, endpoint), log_config=None) as address:
        async with raw_peer(f"ws://{address}/", handshake=False) as peer:
            peer.write(REQUEST)
            answer = await peer.reader.read()
        assert answer.endswith(b"\x88\x02\x03\xf3")


@frameworks
async def test_the_close_of_a_framework_closes_the_connection_that_was_taken_over(framework, lines) -> None:
    hub = Hub()
    closes: list[tuple[int, str]] = []

    async def endpoint(websocket: WebSocket) -> None:
        connection = await hub.accept(websocket)
        connection.send("last words")
        await websocket.close(4000, "bye")
        closes.append(((await websocket.receive())["code"], connection.state.name))

    async with (
        listening(served(framework, endpoint), log_config=None) as address,
        connected(f"ws://{address}/") as client,
    ):
        assert await client.recv() == "last words"
        assert await end_of(client) == (4000, "bye")
        while not closes:
            await asyncio.sleep(0)
    assert closes == [(4000, "CLOSED")]
    assert lines() == []


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (HTTPException(401, "no", headers={"X-Why": "no"}), 401, []),
        (WebSocketException(1008, "no"), 403, []),
        (asyncio.CancelledError(), 500, [FAILED]),
        (RuntimeError("asked to fail"), 500, [FAILED]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@frameworks
async def test_an_exception_before_the_accept_is_an_answer(framework, error, status, logged, lines) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        raise error

    async with listening(served(framework, endpoint), log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{address}/", proxy=None)
    assert refused.value.response.status_code == status
    assert lines() == logged


@pytest.mark.parametrize(
    ("error", "status", "code"), [(WebSocketException(4000), 403, 4000), (WebSocketException(0), 500, 1011)]
)
async def test_an_exception_with_a_code_that_no_framework_handles_has_its_code(error, status, code, lines) -> None:
    """An invalid close code is an error of the application."""

    async def application(scope, receive, send) -> None:
        await receive()
        if scope["path"] == "/accepted":
            await send({"type": "websocket.accept"})
        raise error

    async with listening(application, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus, match=str(status)):
            await websockets.connect(f"ws://{address}/", proxy=None)
        async with connected(f"ws://{address}/accepted") as client:
            assert (await end_of(client))[0] == code
    assert lines() == ([] if code == 4000 else [FAILED] * 2)


async def lose(connection: Any) -> None:
    await connection.wait_closed()


async def send_when_lost(connection: Any) -> None:
    await lose(connection)
    connection.send("too late")


async def in_a_loop(connection: Any, websocket: WebSocket) -> None:
    async for _ in connection:
        pass


async def by_sending(connection: Any, websocket: WebSocket) -> None:
    await send_when_lost(connection)


async def in_a_group(connection: Any, websocket: WebSocket) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(in_a_loop(connection, websocket))
        group.create_task(send_when_lost(connection))


async def raised_again(connection: Any, websocket: WebSocket) -> None:
    try:
        await in_a_loop(connection, websocket)
    except ConnectionLost as lost:
        raise ConnectionClosed(lost.code, "again") from lost


async def as_of_starlette(connection: Any, websocket: WebSocket) -> None:
    await lose(connection)
    raise WebSocketDisconnect(1006)


async def by_sending_over_asgi(connection: Any, websocket: WebSocket) -> None:
    await lose(connection)
    await websocket.send_text("too late")


async def by_using_it_twice(connection: Any, websocket: WebSocket) -> None:
    await lose(connection)
    for _ in range(2):
        with contextlib.suppress(WebSocketDisconnect):
            await websocket.send_text("too late")


LOSSES = [
    in_a_loop,
    by_sending,
    in_a_group,
    raised_again,
    as_of_starlette,
    by_sending_over_asgi,
    by_using_it_twice,
]


@pytest.mark.parametrize("notices", LOSSES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("way", ["starlette", "fastapi", "asgi"])
async def test_a_lost_client_is_logged_with_debug_at_most(way, notices, lines) -> None:
    hub = Hub()
    ended = asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        try:
            await notices(await hub.accept(websocket), websocket)
        finally:
            ended.set()

    async def life(connection: Any) -> None:
        try:
            await notices(connection, None)
        finally:
            ended.set()

    if way == "asgi":
        if notices in LOSSES[4:]:
            pytest.skip("there is no WebSocket of Starlette")
        app = Starlette(routes=[WebSocketRoute("/", hub.asgi(life))])
    else:
        app = served(way, endpoint)
    async with listening(app, log_config=None) as address:
        async with raw_peer(f"ws://{address}/") as peer:
            peer.reset()
        await ended.wait()
    assert hub.connection_count == 0
    assert lines() == []


async def test_a_lost_client_of_a_plain_asgi_endpoint_is_no_error(lines) -> None:
    ended = asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.receive_text()
        finally:
            ended.set()

    async with listening(served("fastapi", endpoint), log_config=None) as address:
        async with raw_peer(f"ws://{address}/") as peer:
            peer.reset()
        await ended.wait()
    assert lines() == []


class Refuses:
    """Middleware that refuses each request that the application accepts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def refuse(message: Any) -> None:
            await send({"type": "websocket.close", "code": 1008})

        await self.app(scope, receive, refuse)


@pytest.mark.parametrize("compression", [False, True])
@pytest.mark.parametrize("way", ["accept", "asgi", "handler"])
async def test_an_accept_message_that_middleware_has_made_anew_is_served_over_asgi(way, compression, lines) -> None:
    hub = Hub(HubConfig(compression=CompressionConfig(threshold=1) if compression else None))
    chosen: list[str | None] = []
    closes: list[int] = []
    echo = EventHandler(
        on_open=lambda connection: chosen.append(connection.subprotocol),
        on_message=lambda connection, message: connection.send(message),
        on_close=lambda connection, code, reason: closes.append(code),
    )

    async def accepted(websocket: WebSocket) -> None:
        connection = await hub.accept(websocket, subprotocols=["a"])
        chosen.append(connection.subprotocol)
        async for message in connection:
            connection.send(message)
        closes.append(connection.close_code)

    async def handled(websocket: WebSocket) -> None:
        await hub.accept(websocket, echo, subprotocols=["a"])

    endpoint = {"accept": accepted, "asgi": hub.asgi(echo, subprotocols=["a"]), "handler": handled}[way]
    app = Starlette(routes=[WebSocketRoute("/", endpoint)], middleware=[Middleware(RebuildsAccept, subprotocol="b")])
    async with listening(app, log_config=None) as address:
        async with connected(
            f"ws://{address}/", subprotocols=["a", "b"], compression="deflate" if compression else None
        ) as client:
            assert client.response.headers["x-request-id"] == "1"
            assert client.subprotocol == "b"
            await client.send("hello " * 100)
            assert await client.recv() == "hello " * 100
            assert chosen == ["b"]
            assert hub.connection_count == 1
            await client.close(4002)
        while not closes:
            await asyncio.sleep(0)
    assert closes == [4002]
    assert hub.connection_count == 0
    assert lines() == []


@pytest.mark.parametrize(("raises", "code"), [(None, 1000), (RuntimeError("asked to fail"), 1011)])
async def test_what_an_endpoint_over_asgi_sends_last_arrives_before_its_close(raises, code) -> None:
    hub = Hub()

    async def endpoint(websocket: WebSocket) -> None:
        connection, _ = await asyncio.gather(hub.accept(websocket), asyncio.sleep(0))
        for number in range(100):
            connection.send(str(number))
        hub.broadcast("to all")
        if raises is not None:
            raise raises

    app = served("starlette", endpoint, middleware=[Middleware(RebuildsAccept, subprotocol="b")])
    async with (
        listening(app, log_config=None) as address,
        connected(f"ws://{address}/", subprotocols=["b"]) as client,
    ):
        assert [await client.recv() for _ in range(100)] == [str(number) for number in range(100)]
        assert await client.recv() == "to all"
        assert await end_of(client) == (code, "")
    assert hub.connection_count == 0


@pytest.mark.parametrize("way", ["accept", "asgi"])
async def test_middleware_that_refuses_what_a_hub_accepts_leaves_no_connection(way, lines) -> None:
    hub = Hub()
    opened: list[Any] = []

    async def accepted(websocket: WebSocket) -> None:
        opened.append(await hub.accept(websocket))

    endpoint = {"accept": accepted, "asgi": hub.asgi(EventHandler(on_open=opened.append))}[way]
    app = Starlette(routes=[WebSocketRoute("/", endpoint)], middleware=[Middleware(Refuses)])
    async with listening(app, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websockets.connect(f"ws://{address}/", proxy=None)
    assert hub.connection_count == 0
    assert opened == []
    assert lines() == []


START = {"type": "websocket.http.response.start", "status": 404, "headers": [(b"x", b"1")]}
BODY = {"type": "websocket.http.response.body", "body": b"no"}
ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}


@pytest.mark.parametrize(
    ("messages", "status", "body"),
    [
        ([START, START], 404, b""),
        ([START, ACCEPT], 404, b""),
        ([START, CLOSE], 404, b""),
        ([START, {"type": "websocket.send", "text": "x"}], 404, b""),
        ([START, BODY | {"more_body": True}, START], 404, b"no"),
        ([START, BODY | {"more_body": True}, ACCEPT], 404, b"no"),
        ([START, BODY, BODY], 404, b"no"),
        ([START, BODY, START], 404, b"no"),
        ([START, BODY, ACCEPT], 404, b"no"),
        ([START, BODY, CLOSE], 404, b"no"),
        ([BODY], 500, b"Internal Server Error"),
        ([{"type": "websocket.send", "text": "x"}], 500, b"Internal Server Error"),
        ([START | {"status": 101}], 500, b"Internal Server Error"),
        ([START | {"status": 700}], 500, b"Internal Server Error"),
    ],
)
async def test_a_handshake_is_answered_once_and_the_application_is_told(http, messages, status, body) -> None:
    raised: list[str] = []

    async def application(scope, receive, send) -> None:
        await receive()
        for message in messages[:-1]:
            await send(message)
        try:
            await send(messages[-1])
        except RuntimeError as error:
            raised.append(str(error))
            raise

    async with (
        listening(application, http, log_config=None) as address,
        raw_peer(f"ws://{address}/", handshake=False) as peer,
    ):
        peer.write(REQUEST)
        answer = await peer.reader.read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\n" + body)
    assert len(raised) == 1


@pytest.mark.parametrize("raises", [False, True])
async def test_a_refusal_without_a_body_has_its_status_and_its_header_fields(http, raises) -> None:
    async def application(scope, receive, send) -> None:
        await receive()
        await send(START | {"headers": [(b"x-why", b"no"), (b"content-length", b"5")]})
        if raises:
            raise RuntimeError("asked to fail")

    async with listening(application, http, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{address}/", proxy=None)
    response = refused.value.response
    assert (response.status_code, response.headers["x-why"], response.body) == (404, "no", b"")


@pytest.mark.parametrize("way", ["gather", "wait_for", "group"])
@frameworks
async def test_a_connection_accepted_by_a_task_of_the_endpoint_ends_with_the_endpoint(framework, way) -> None:
    hub = Hub()

    async def accept(websocket: WebSocket) -> Any:
        if way == "gather":
            return (await asyncio.gather(hub.accept(websocket), asyncio.sleep(0)))[0]
        if way == "wait_for":
            return await asyncio.wait_for(hub.accept(websocket), 10)

        async def child() -> Any:
            return await hub.accept(websocket)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(child())
        return task.result()

    async def endpoint(websocket: WebSocket) -> None:
        connection = await accept(websocket)
        connection.send("ready")
        connection.send((await connection.receive()).data)

    async with (
        listening(served(framework, endpoint), log_config=None) as address,
        connected(f"ws://{address}/") as client,
    ):
        assert await client.recv() == "ready"
        await client.send("hello")
        assert await client.recv() == "hello"
        assert await end_of(client) == (1000, "")


async def test_a_handler_s_connection_closes_with_1011_when_its_endpoint_is_cancelled(lines) -> None:
    hub = Hub()
    closes: list[int] = []
    handler = EventHandler(on_close=lambda connection, code, reason: closes.append(code))

    async def endpoint(websocket: WebSocket) -> None:
        async with asyncio.timeout(0.05):
            await hub.accept(websocket, handler)

    async with (
        listening(served("fastapi", endpoint), log_config=None) as address,
        connected(f"ws://{address}/") as client,
    ):
        assert (await end_of(client))[0] == 1011
        while not closes:
            await asyncio.sleep(0)
    assert closes == [1011]
    assert lines() == [FAILED]


@pytest.mark.parametrize("accepts", ["hub", "framework"])
@frameworks
def test_an_endpoint_cancelled_while_it_accepts_leaves_a_500_and_no_connection(run, framework, accepts, lines) -> None:
    async def scenario() -> None:
        hub = Hub()

        async def endpoint(websocket: WebSocket) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.get_loop().call_soon(task.cancel)
            await (hub.accept(websocket) if accepts == "hub" else websocket.accept())

        async with listening(served(framework, endpoint), log_config=None) as address:
            async with raw_peer(f"ws://{address}/", handshake=False) as peer:
                peer.write(REQUEST)
                answer = await peer.reader.read()
            assert answer.startswith(b"HTTP/1.1 500 ")
        assert hub.connection_count == 0

    run(scenario())
    assert "a connection cannot be served" not in lines()


@pytest.mark.one_loop
@pytest.mark.parametrize("ends", ["returns", "raises", "denies", "closes"])
@frameworks
def test_an_answer_to_a_client_that_has_left_is_no_error(run, framework, ends, lines) -> None:
    async def scenario() -> None:
        left = asyncio.Event()
        done = asyncio.Event()

        async def endpoint(websocket: WebSocket) -> None:
            try:
                await left.wait()
                if ends == "raises":
                    raise HTTPException(403, "no")
                if ends == "denies":
                    await websocket.send_denial_response(PlainTextResponse("no", 403))
                if ends == "closes":
                    await websocket.close(4000)
            finally:
                done.set()

        async with listening(served(framework, endpoint), log_config=None) as address:
            async with raw_peer(f"ws://{address}/", handshake=False) as peer:
                peer.write(REQUEST)
                await peer.writer.drain()
                while not await accepts_task():
                    await asyncio.sleep(0)
                peer.reset()
            for _ in range(20):
                await asyncio.sleep(0)
            left.set()
            await done.wait()
            for _ in range(5):
                await asyncio.sleep(0)
        gc.collect()

    async def accepts_task() -> bool:
        return any("_run" in repr(task.get_coro()) for task in asyncio.all_tasks())

    run(scenario())
    assert lines() == []
