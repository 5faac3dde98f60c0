"""Connections accepted in front of uvicorn. Native routes are served at once, and uvicorn serves everything else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.support import served_applications as served
from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, HandshakeError, Hub, HubConfig
from wshub.app import App, Context
from wshub.app.endpoints import ConnectionEndpoint
from wshub.asgi.application import HubApplication
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.protocol.http.request import RequestHead
from wshub.uvicorn.event_loop import accept_natively
from wshub.uvicorn.native_routes import find_native_route, native_hubs
from wshub.uvicorn.protocol import WebSocketProtocol
from wshub.uvicorn.proxies import application_of
from wshub.uvicorn.running import PROTOCOL_CLASS

pytestmark = needs_reactor


def make_app(**settings: Any) -> App:
    app = App()
    hub = app.enable_websocket(max_message_size=1 << 22, **settings)

    @app.get("/")
    def home(ctx: Context) -> None:
        ctx.response.send("hello")

    @app.post("/items")
    async def items(ctx: Context) -> None:
        ctx.response.send_json({"bytes": len(await ctx.request.body())})

    @app.websocket("/echo/{name}")
    async def echo(connection) -> None:
        address = connection.remote_address
        connection.send(f"{connection.path_params['name']} {address[0] if address else '-'}")
        async for message in connection:
            connection.send(message)

    @app.get("/handled")
    def handled(ctx: Context) -> None:
        hub.register(EventHandler(on_message=lambda connection, message: connection.send(message)))

    return app


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[WebSocketProtocol]:
    """Record every WebSocket request that goes through uvicorn."""
    made: list[WebSocketProtocol] = []
    original = WebSocketProtocol.connection_made

    def connection_made(self: WebSocketProtocol, transport: Any) -> None:
        made.append(self)
        original(self, transport)

    monkeypatch.setattr(WebSocketProtocol, "connection_made", connection_made)
    return made


@contextlib.asynccontextmanager
async def accepting(app: Any, http: str = "httptools", **options: Any) -> AsyncIterator[str]:
    accept_natively(asyncio.get_running_loop())
    async with listening(app, http, **options) as address:
        yield address


async def test_a_native_route_is_served_without_uvicorn(http, protocols) -> None:
    app = make_app()
    async with accepting(app, http) as address:
        async with connected(f"ws://{address}/echo/me", max_size=None) as client:
            assert await client.recv() == "me 127.0.0.1"
            assert client.response.headers["server"] == "uvicorn"
            assert "date" in client.response.headers
            for message in ("text", "y" * 1_000_000):
                await client.send(message)
                assert await client.recv() == message
        assert protocols == []


async def test_everything_else_is_handed_to_uvicorn(http, protocols) -> None:
    app = make_app()
    async with accepting(app, http) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
            for _ in range(3):
                assert (await client.get("/")).text == "hello"
            assert (await client.post("/items", content=bytes(300_000))).json() == {"bytes": 300_000}
            assert (await client.get("/nothing")).status_code == 404
        async with connected(f"ws://{address}/handled") as client:
            await client.send("through the handler")
            assert await client.recv() == "through the handler"
        assert len(protocols) == 1
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/nowhere", proxy=None)
        assert caught.value.response.status_code == 403


async def test_a_request_may_come_in_any_pieces(http) -> None:
    async with accepting(make_app(), http) as address:
        port = int(address.rpartition(":")[2])
        upgrade = REQUEST.replace(b"GET /", b"GET /echo/x")
        body = b"POST /items HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\n12345"
        plain = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        for request, answer in ((upgrade, b"HTTP/1.1 101"), (body, b"HTTP/1.1 200"), (plain, b"HTTP/1.1 200")):
            for size in (1, 7, 1000):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(request), size):
                    writer.write(request[start : start + size])
                    await asyncio.sleep(0)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(answer)
                writer.transport.abort()


async def test_requests_on_one_connection_are_all_answered(http) -> None:
    """Also a second request that arrives with the first, and an upgrade on a connection that was kept alive."""

    async with accepting(make_app(), http) as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        plain = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        writer.write(plain + plain)
        for _ in range(2):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        writer.write(REQUEST.replace(b"GET /", b"GET /echo/late"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert (await reader.readexactly(2))[0] == 0x81
        writer.transport.abort()


async def test_frames_behind_the_request_are_kept() -> None:
    async with accepting(make_app()) as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(REQUEST.replace(b"GET /", b"GET /echo/x") + b"\x81\x82\0\0\0\0hi")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"127.0.0.1")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.transport.abort()


async def test_a_refusal_has_its_status_and_its_line_in_the_log(caplog) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    logging.getLogger("uvicorn.error").propagate = True
    app = make_app(allowed_origins=("http://ok.example",))
    async with accepting(app, log_config=None) as address:
        caplog.set_level(logging.INFO, "uvicorn.error")
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/echo/x", origin="http://evil.example", proxy=None)
        assert caught.value.response.status_code == 403
        async with connected(f"ws://{address}/echo/x?a=b", origin="http://ok.example") as client:
            await client.recv()
    lines = [record.getMessage() for record in caplog.records if "WebSocket" in record.getMessage()]
    assert [line.partition(" - ")[2] for line in lines] == [
        '"WebSocket /echo/x" 403',
        '"WebSocket /echo/x" [accepted]',
    ]
    assert app.ws_hub is not None
    assert app.ws_hub.stats().refused == {403: 1}


async def test_a_trusted_proxy_tells_the_address_and_no_other_does() -> None:
    headers = {"X-Forwarded-For": "203.0.113.7"}
    for trusted, address in (("127.0.0.1", "203.0.113.7"), ("192.0.2.1", "127.0.0.1")):
        async with (
            accepting(make_app(), forwarded_allow_ips=trusted) as server,
            connected(f"ws://{server}/echo/x", additional_headers=headers) as client,
        ):
            assert await client.recv() == f"x {address}"


async def test_who_asks_for_nothing_in_time_is_let_go() -> None:
    async with accepting(make_app(handshake_timeout_ms=200)) as address:
        port = int(address.rpartition(":")[2])
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(b"GET / HT")
        assert await silent.read() == b""
        assert (await slow.read()).startswith(b"HTTP/1.1 408")
        silent_writer.close()
        slow_writer.close()


async def test_what_is_no_http_gets_the_answer_of_uvicorn(http) -> None:
    async with accepting(make_app(), http) as address:
        for data in (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"GET\0 / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
            writer.close()


async def test_a_head_of_any_size_that_uvicorn_takes_is_taken(http) -> None:
    async with (
        accepting(make_app(), http) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
    ):
        assert (await client.get("/", headers={"X-Long": "y" * 40_000})).text == "hello"


async def test_shutting_down_closes_all_connections_with_1001(protocols) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with accepting(make_app()) as address:
            port = int(address.rpartition(":")[2])
            clients = [
                await stack.enter_async_context(connected(f"ws://{address}/{path}"))
                for path in ("echo/1", "echo/2", "handled")
            ]
            # A connection without a request so far.
            idle, writer = await asyncio.open_connection("127.0.0.1", port)
        for client in clients:
            await client.wait_closed()
            assert client.close_code == 1001
        assert await idle.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert len(protocols) == 1


async def test_nothing_is_left_of_connections_however_they_end(http) -> None:
    kinds = ("FirstRequest", "EpollLink", "Connection", "HttpToolsProtocol", "H11Protocol", "WebSocketProtocol")

    def left() -> tuple[int, int]:
        gc.collect()
        return sum(type(thing).__name__ in kinds for thing in gc.get_objects()), len(os.listdir("/proc/self/fd"))

    async def come_and_go(address: str) -> None:
        for path in ("/echo/x", "/handled"):
            async with connected(f"ws://{address}{path}") as client:
                await client.send("hi")
                while await client.recv() != "hi":
                    pass
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://{address}/nowhere", proxy=None)
        for request in (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"GET / HT", b"POST", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            writer.write(request)
            if request.endswith(b"\r\n\r\n"):
                assert (await reader.read()).endswith(b"hello")
            writer.transport.abort()

    async with accepting(make_app(), http) as address:
        objects, descriptors = left()
        # libuv opens an additional descriptor when it first listens or connects, and keeps it.
        spare = 1
        for _ in range(30):
            await come_and_go(address)
        while (now := left())[0] > objects or now[1] > descriptors + spare:
            await asyncio.sleep(0.01)


async def test_an_address_in_use_ends_the_server_as_it_ends_uvicorn(caplog) -> None:
    async with accepting(make_app()) as address:
        app = make_app()
        config = uvicorn.Config(app, port=int(address.rpartition(":")[2]), ws=PROTOCOL_CLASS, log_config=None)
        with pytest.raises(SystemExit):
            await uvicorn.Server(config).serve()
        assert app.ws_hub is not None
        await app.ws_hub.close()


def scope_of(path: str, host: bytes = b"a") -> dict[str, Any]:
    return {"type": "websocket", "path": path, "root_path": "", "headers": [(b"host", host)]}


def test_native_routes_are_found_where_nothing_stands_before_them() -> None:
    hub = Hub()
    application = hub.asgi(EventHandler(), subprotocols=["b"])

    async def endpoint(websocket) -> None:
        raise AssertionError

    app = Starlette(
        routes=[
            WebSocketRoute("/taken", endpoint),
            Route("/chat/x", endpoint),
            Mount("/chat/{room}", application),
            Mount("/taken", application),
            Mount("/own", make_app()),
            Host("sub.example", application),
        ]
    )
    found = find_native_route(app, scope_of("/chat/x/"))
    assert found is not None
    assert (found.hub, found.subprotocols, found.path_params) == (hub, ("b",), {"room": "x"})
    own = find_native_route(app, scope_of("/own/echo/you"))
    assert own is not None
    assert own.path_params == {"name": "you"}
    assert find_native_route(app, scope_of("/taken")) is None
    assert find_native_route(app, scope_of("/own/handled")) is None
    assert find_native_route(app, scope_of("/nowhere")) is None
    assert find_native_route(app, scope_of("/nowhere", b"sub.example")) is not None
    assert find_native_route(served.api, scope_of("/ws/")) is not None


class StarletteOfItsOwn(Starlette):
    """An application of a subclass, which could do anything."""


class RouterOfItsOwn(Router):
    """A router of a subclass, which could do anything."""


class MountOfItsOwn(Mount):
    """A mount of a subclass, which could do anything."""


class HubApplicationOfItsOwn(HubApplication):
    """A hub's application that could check requests first."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


class AppOfItsOwn(App):
    """An App that could check requests first."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


class EndpointOfItsOwn(ConnectionEndpoint):
    """A hub's endpoint that could check requests first."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


def guard_inside(app: Any) -> Any:
    """Put a guard into the middleware stack that an application builds at its first call."""
    app.middleware_stack = served.Guard(app.build_middleware_stack())
    return app


def own_app() -> App:
    app = AppOfItsOwn()
    app.enable_websocket()
    app.websocket("/echo/{name}")(served.echo)
    return app


def fastapi_with_guarded_router() -> FastAPI:
    api = FastAPI()
    api.mount("/", served.alone)
    api.router.middleware_stack = served.Guard(api.router.middleware_stack)
    return api


GUARDS = served.guarded._middleware
MOUNTED = [Mount("/", served.alone)]


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(served.guarded, id="app"),
        pytest.param(Starlette(routes=MOUNTED, middleware=GUARDS), id="starlette"),
        pytest.param(Starlette(routes=[Mount("/", served.alone, middleware=GUARDS)]), id="mount"),
        pytest.param(Starlette(routes=[Mount("/", Router(MOUNTED, middleware=GUARDS))]), id="mounted router"),
        pytest.param(Router(MOUNTED, middleware=GUARDS), id="router"),
        pytest.param(
            Starlette(routes=[WebSocketRoute("/echo/x", served.alone, middleware=GUARDS)]), id="websocket route"
        ),
        pytest.param(guard_inside(Starlette(routes=MOUNTED)), id="stack of a starlette"),
        pytest.param(guard_inside(FastAPI(routes=MOUNTED)), id="stack of a fastapi"),
        pytest.param(fastapi_with_guarded_router(), id="stack of a router"),
        pytest.param(StarletteOfItsOwn(routes=MOUNTED), id="subclass of starlette"),
        pytest.param(RouterOfItsOwn(MOUNTED), id="subclass of a router"),
        pytest.param(Starlette(routes=[MountOfItsOwn("/", served.alone)]), id="subclass of a mount"),
        pytest.param(HubApplicationOfItsOwn(Hub(), EventHandler(), ()), id="subclass of a hub's application"),
        pytest.param(
            Starlette(routes=[WebSocketRoute("/echo/x", EndpointOfItsOwn(served.app, served.echo))]),
            id="subclass of an endpoint",
        ),
        pytest.param(own_app(), id="subclass of an app"),
        pytest.param(lambda scope, receive, send: None, id="function"),
        pytest.param(App(), id="none"),
    ],
)
def test_no_route_is_native_behind_what_may_guard_it(app) -> None:
    assert find_native_route(app, scope_of("/echo/x")) is None
    # Hubs of routes that may be native for some request can be listed, but not this one.
    for hub in native_hubs(app):
        assert hub is not served.alone.hub


class ConfiguredHubApplication(HubApplication):
    """A hub's application that answers requests like its base class."""


def test_a_subclass_that_answers_as_its_base_does_is_native() -> None:
    hub = Hub()
    found = find_native_route(ConfiguredHubApplication(hub, EventHandler(), ()), scope_of("/"))
    assert found is not None
    assert found.hub is hub


@pytest.mark.parametrize("make", [Starlette, FastAPI])
def test_a_route_is_native_in_an_application_that_has_been_called(make) -> None:
    app = make(routes=[Mount("/", served.alone)])
    app.middleware_stack = app.build_middleware_stack()
    assert find_native_route(app, scope_of("/echo/x")) is not None


@pytest.mark.parametrize("trusting", [ProxyHeadersMiddleware, type("OfItsOwn", (ProxyHeadersMiddleware,), {})])
def test_only_what_uvicorn_itself_has_put_around_the_application_is_left_out(trusting) -> None:
    app = trusting(served.alone)
    for proxy_headers in (False, True):
        config = uvicorn.Config(app, proxy_headers=proxy_headers, log_config=None)
        config.load()
        assert application_of(config)[0] is app


async def test_pages_are_pages_whatever_word_is_in_their_requests(http, protocols) -> None:
    app = App()
    hub = app.enable_websocket()
    mounted = Starlette(routes=[Mount("/ws", hub.asgi(EventHandler())), Mount("/", app)])

    @app.websocket("/websocket")
    async def endpoint(connection: Connection) -> None:
        raise AssertionError

    @app.get("/websocket")
    @app.get("/page")
    def page(ctx: Context) -> None:
        ctx.response.send("hello")

    async with (
        accepting(mounted, http) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
    ):
        for headers in ({}, {"Referer": "https://a/websocket"}, {"Upgrade": "websocket"}, {"Upgrade": "h2c"}):
            for path in ("/websocket", "/page"):
                # Each request has its own connection, which the acceptor reads first.
                response = await client.get(path, headers={**headers, "Connection": "close"})
                assert (response.status_code, response.text) == (200, "hello")
            assert (await client.get("/ws/", headers={**headers, "Connection": "close"})).status_code == 426
    assert protocols == []


async def test_a_path_that_no_route_can_convert_is_the_applications_to_answer(http) -> None:
    app = App()
    app.enable_websocket()

    @app.websocket("/rooms/{number:int}")
    async def endpoint(connection: Connection) -> None:
        connection.send(f"{connection.path_params['number']}")

    async with accepting(app, http, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/rooms/{'9' * 4301}", proxy=None)
        assert caught.value.response.status_code == 500
        async with connected(f"ws://{address}/rooms/{'9' * 4000}") as client:
            assert await client.recv() == "9" * 4000


async def test_a_hub_without_the_reactor_is_served_through_uvicorn(protocols) -> None:
    hub = Hub(HubConfig(use_reactor=False))
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    async with accepting(hub.asgi(handler)) as address, connected(f"ws://{address}/") as client:
        await client.send("hi")
        assert await client.recv() == "hi"
        assert len(protocols) == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_on_upgrade_is_asked_of_every_request_whoever_serves_it(http, waits) -> None:
    def decide(request: RequestHead) -> dict[str, Any]:
        assert request.remote_address is not None
        assert request.remote_address[0] == "127.0.0.1"
        if "token" not in request.query_params:
            raise HandshakeError(401, "Who are you?", (("WWW-Authenticate", "Bearer"),))
        return {"user": request.query_params["token"]}

    async def decide_later(request: RequestHead) -> dict[str, Any]:
        await asyncio.sleep(0.001)
        return decide(request)

    def greet(connection: Connection) -> None:
        connection.send(connection.metadata["user"])

    app = App()
    hub = app.enable_websocket(on_upgrade=decide_later if waits else decide)
    handler = EventHandler(on_open=greet)

    @app.websocket("/endpoint")
    async def endpoint(connection: Connection) -> None:
        greet(connection)
        await connection.receive()

    @app.get("/handled")
    def handled(ctx: Any) -> None:
        hub.register(handler)

    mounted = Starlette(routes=[Mount("/app", app), WebSocketRoute("/hub", hub.asgi(handler))])
    paths = ["/app/endpoint", "/hub"] if waits else ["/app/endpoint", "/hub", "/app/handled"]
    async with accepting(mounted, http) as address:
        for path in paths:
            async with connected(f"ws://{address}{path}?token=ada") as client:
                assert await client.recv() == "ada"
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(f"ws://{address}{path}", proxy=None)
            assert caught.value.response.status_code == 401
            assert caught.value.response.body == b"Who are you?"
            assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
        if waits:
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(f"ws://{address}/app/handled?token=ada", proxy=None)
            assert caught.value.response.status_code == 500
        assert hub.refused == {401: len(paths)}


async def test_a_question_to_the_application_has_an_end(http) -> None:
    asked = 0

    async def hang(request: RequestHead) -> None:
        nonlocal asked
        asked += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            asked -= 1

    app = App()
    hub = app.enable_websocket(on_upgrade=hang, handshake_timeout_ms=100)
    app.websocket("/ws")(served.echo)
    mounted = Starlette(routes=[Mount("/mounted", hub.asgi(EventHandler())), Mount("/", app)])
    async with accepting(mounted, http, log_config=None) as address:
        for path in ("/ws", "/mounted/"):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(f"ws://{address}{path}", proxy=None)
            assert caught.value.response.status_code == 503
        assert asked == 0
        assert hub.refused == {503: 2}


async def test_a_hub_that_has_had_no_connection_is_closed_with_its_server() -> None:
    hub = Hub(broker=MemoryBroker(MemoryEngine()))
    app = Starlette(routes=[WebSocketRoute("/", hub.asgi(EventHandler()))])
    async with accepting(app):
        # It is a node already, which other nodes may rely on.
        await hub.broker_started()
    assert not hub.is_in_use
