"""uvicorn over TLS: pages and WebSockets, in the reactor and without it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.certificate import Certificate
from tests.support.half_tls import STARTS, HalfTls
from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, Hub, HubConfig
from wshub.links.stream_transport import StreamTransport
from wshub.uvicorn.event_loop import accept_natively
from wshub.uvicorn.protocol import WebSocketProtocol

PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Serve = Callable[..., contextlib.AbstractAsyncContextManager[int]]


class Passing:
    """Middleware that does nothing. No route behind it is native."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def scope_of(request: Request) -> JSONResponse:
    return JSONResponse({name: request.scope[name] for name in ("scheme", "client", "server", "path")})


async def upload(request: Request) -> JSONResponse:
    digest, length = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        length += len(piece)
    return JSONResponse({"sha256": digest.hexdigest(), "length": length})


async def download(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params["pieces"])):
            yield bytes([number % 256]) * 100_000

    return StreamingResponse(pieces())


async def starlette_socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(f"{socket.url.scheme} {socket.client.host if socket.client else None}")
    async for message in socket.iter_text():
        await socket.send_text(message)


def greet(connection: Connection) -> None:
    address = connection.remote_address
    connection.send(f"wss {address[0] if address else None}")


HANDLER = EventHandler(on_open=greet, on_message=lambda connection, message: connection.send(message))


def make_app(**settings: Any) -> Starlette:
    hub, other = Hub(HubConfig(max_message_size=1 << 22, **settings)), Hub(HubConfig(max_message_size=1 << 22))
    return Starlette(
        routes=[
            Route("/", page),
            Route("/scope", scope_of),
            Route("/upload", upload, methods=["POST"]),
            Route("/download", download),
            WebSocketRoute("/starlette/", starlette_socket),
            Mount("/native", hub.asgi(HANDLER)),
            Mount("/other", other.asgi(HANDLER)),
            Mount("/transport", Hub(HubConfig(use_reactor=False, max_message_size=1 << 22)).asgi(HANDLER)),
            Mount("/behind", hub.asgi(HANDLER), middleware=[Middleware(Passing)]),
        ]
    )


@pytest.fixture
def serve_in_reactor(certificate: Any) -> Serve:
    """Serve an application over TLS. Yields the port."""

    @contextlib.asynccontextmanager
    async def served(app: Any = None, http: str = "httptools", **options: Any) -> AsyncIterator[int]:
        accept_natively(asyncio.get_running_loop())
        options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key, **options}
        async with listening(app or make_app(), http, log_config=None, **options) as address:
            yield int(address.rpartition(":")[2])

    return served


@pytest.fixture(params=[pytest.param("reactor", marks=needs_reactor), "transports"])
def serve(request: pytest.FixtureRequest, serve_in_reactor: Serve, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve an application over TLS, in the reactor or without it."""
    if request.param == "transports":
        monkeypatch.setenv("WSHUB_USE_REACTOR", "0")
    return serve_in_reactor


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the transport of every WebSocket request that goes through uvicorn."""
    made: list[Any] = []
    original = WebSocketProtocol.connection_made

    def connection_made(self: WebSocketProtocol, transport: Any) -> None:
        made.append(transport)
        original(self, transport)

    monkeypatch.setattr(WebSocketProtocol, "connection_made", connection_made)
    return made


async def opened(port: int, certificate: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # With a smaller limit the reader pauses, and a client on uvloop loses what a server has sent before its end.
    return await asyncio.open_connection("localhost", port, ssl=certificate.client_context(), limit=1 << 24)


def client_of(port: int, certificate: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"https://localhost:{port}", verify=certificate.client_context(), trust_env=False, timeout=60
    )


async def test_pages_are_served_and_connections_are_kept_alive(serve, http, certificate) -> None:
    async with serve(http=http) as port, client_of(port, certificate) as client:
        peers = set()
        for _ in range(3):
            assert (await client.get("/")).text == "hello"
            scope = (await client.get("/scope")).json()
            assert scope["scheme"] == "https"
            assert scope["server"] == ["127.0.0.1", port]
            assert scope["client"][0] == "127.0.0.1"
            peers.add(scope["client"][1])
        assert len(peers) == 1
        assert (await client.get("/nothing")).status_code == 404


async def test_a_large_body_is_received_whole(serve, http, certificate) -> None:
    body = bytes(range(256)) * 20_000
    async with serve(http=http) as port, client_of(port, certificate) as client:
        expected = {"sha256": hashlib.sha256(body).hexdigest(), "length": len(body)}
        assert (await client.post("/upload", content=body)).json() == expected

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 33_333):
                yield body[start : start + 33_333]

        assert (await client.post("/upload", content=pieces())).json() == expected


async def test_a_slow_client_gets_a_large_response_whole(serve, http, certificate) -> None:
    async with serve(http=http) as port, client_of(port, certificate) as client:
        received = hashlib.sha256()
        async with client.stream("GET", "/download?pieces=80") as response:
            async for piece in response.aiter_raw(50_000):
                received.update(piece)
                await asyncio.sleep(0)
        expected = hashlib.sha256(b"".join(bytes([number]) * 100_000 for number in range(80)))
        assert received.digest() == expected.digest()


async def test_a_response_behind_which_the_connection_closes_is_sent_whole(serve, http, certificate) -> None:
    async with serve(http=http) as port:
        reader, writer = await opened(port, certificate)
        writer.write(b"GET /download?pieces=50 HTTP/1.0\r\nHost: a\r\n\r\n")
        # Without close_notify, this raises.
        received = await reader.read()
        assert all(bytes([number]) * 100_000 in received for number in (0, 49))
        assert len(received) > 5_000_000
        writer.transport.abort()


async def test_requests_in_one_record_and_in_many_are_answered_in_order(serve, http, certificate) -> None:
    async with serve(http=http) as port:
        reader, writer = await opened(port, certificate)
        writer.write(PAGE * 3)
        for _ in range(3):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        for byte in PAGE:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        writer.transport.abort()


async def test_a_client_that_waits_for_100_continue_gets_it(serve, http, certificate) -> None:
    async with serve(http=http) as port:
        reader, writer = await opened(port, certificate)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"12345")
        assert b'"length":5' in await reader.readuntil(b"}")
        writer.transport.abort()


async def test_an_idle_connection_ends_after_the_keep_alive_timeout(serve, http, certificate) -> None:
    async with serve(http=http, timeout_keep_alive=0) as port:
        reader, writer = await opened(port, certificate)
        writer.write(PAGE)
        assert (await reader.read()).endswith(b"hello")
        writer.transport.abort()


async def test_what_is_no_http_gets_the_answer_of_uvicorn(serve, http, certificate) -> None:
    async with serve(http=http) as port:
        reader, writer = await opened(port, certificate)
        writer.write(b"GET\0 / HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.transport.abort()


@pytest.mark.parametrize("path", ["native", "other", "behind", "starlette", "transport"])
async def test_websockets_of_every_kind_are_served(serve, certificate, path) -> None:
    async with (
        serve() as port,
        connected(f"wss://localhost:{port}/{path}/", ssl=certificate.client_context(), max_size=None) as client,
    ):
        assert await client.recv() == "wss 127.0.0.1"
        for message in ("text", "y" * 1_000_000, ""):
            await client.send(message)
            assert await client.recv() == message


async def test_an_application_without_a_hub_is_served(serve, http, certificate) -> None:
    app = Starlette(routes=[WebSocketRoute("/", starlette_socket), Route("/page", page)])
    async with serve(app, http) as port:
        async with connected(f"wss://localhost:{port}/", ssl=certificate.client_context()) as client:
            assert await client.recv() == "wss 127.0.0.1"
            await client.send("hi")
            assert await client.recv() == "hi"
        async with client_of(port, certificate) as pages:
            assert (await pages.get("/page")).text == "hello"


async def test_a_root_path_is_part_of_every_path(serve, certificate) -> None:
    async with (
        serve(root_path="/prefix") as port,
        connected(f"wss://localhost:{port}/native/", ssl=certificate.client_context()) as client,
    ):
        assert await client.recv() == "wss 127.0.0.1"
        async with client_of(port, certificate) as pages:
            assert (await pages.get("/scope")).json()["path"] == "/prefix/scope"


@needs_reactor
async def test_the_reactor_carries_websockets_of_every_kind(serve_in_reactor, certificate, transports) -> None:
    """A native route has no transport at all. Any other WebSocket leaves its transport, which has ended then."""
    async with serve_in_reactor() as port:
        for path, passes in (("native", False), ("other", False), ("behind", True), ("starlette", True)):
            transports.clear()
            context = certificate.client_context()
            async with connected(f"wss://localhost:{port}/{path}/", ssl=context) as client:
                assert await client.recv() == "wss 127.0.0.1"
                assert len(transports) == passes
                assert all(isinstance(each, StreamTransport) and each.is_closing() for each in transports)


async def test_an_upgrade_on_a_kept_connection_is_served(serve, http, certificate) -> None:
    async with serve(http=http) as port:
        reader, writer = await opened(port, certificate)
        writer.write(PAGE + REQUEST.replace(b"GET /", b"GET /native/"))
        await reader.readuntil(b"hello")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(2 + 13) == b"\x81\x0dwss 127.0.0.1"
        writer.transport.abort()


@needs_reactor
async def test_frames_behind_the_request_are_kept(serve_in_reactor, certificate) -> None:
    async with serve_in_reactor() as port:
        reader, writer = await opened(port, certificate)
        writer.write(REQUEST.replace(b"GET /", b"GET /native/") + b"\x81\x82\0\0\0\0hi")
        await reader.readuntil(b"127.0.0.1")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.transport.abort()


async def test_a_refusal_has_its_status(serve, certificate) -> None:
    app = make_app(allowed_origins=("https://ok.example",))
    async with serve(app) as port:
        for path in ("native", "behind"):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(
                    f"wss://localhost:{port}/{path}/",
                    ssl=certificate.client_context(),
                    origin="https://evil.example",
                    proxy=None,
                )
            assert caught.value.response.status_code == 403


@needs_reactor
async def test_plain_http_is_told_that_the_port_speaks_tls(serve_in_reactor) -> None:
    async with serve_in_reactor() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PAGE)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()


@needs_reactor
async def test_an_address_has_a_limit_before_its_tls_handshake(serve_in_reactor, certificate) -> None:
    async with serve_in_reactor(make_app(max_connections_per_address=4), forwarded_allow_ips="") as port:
        peers = [HalfTls(port, certificate.client_context(), start) for start in STARTS * 4]
        await asyncio.gather(*(peer.ended() for peer in peers[:8]))
        assert all(peer.is_open() for peer in peers[8:])
        for peer in peers[8:]:
            peer.close()


@needs_reactor
async def test_a_proxy_that_is_trusted_has_no_limit_of_an_address(serve_in_reactor, certificate) -> None:
    async with serve_in_reactor(make_app(max_connections_per_address=1), forwarded_allow_ips="127.0.0.1") as port:
        peers = [HalfTls(port, certificate.client_context(), start) for start in STARTS]
        async with client_of(port, certificate) as pages:
            assert (await pages.get("/")).text == "hello"
        assert all(peer.is_open() for peer in peers)
        for peer in peers:
            peer.close()


async def test_a_unix_socket_is_served(certificate, socket_directory) -> None:
    accept_natively(asyncio.get_running_loop())
    path = str(socket_directory / "tls.sock")
    options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key, "uds": path}
    async with listening(make_app(), log_config=None, **options):
        context = certificate.client_context()
        reader, writer = await asyncio.open_unix_connection(path, ssl=context, server_hostname="localhost")
        writer.write(b"GET /scope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        scope = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        assert scope == {"scheme": "https", "client": None, "server": [path, None], "path": "/scope"}
        writer.transport.abort()


@needs_reactor
async def test_nothing_is_left_of_connections_however_they_end(serve_in_reactor, certificate) -> None:
    kinds = (
        *("FirstRequest", "_FirstRequest", "EpollTlsLink", "StreamTransport", "TransportStream"),
        *("LinkSocket", "Connection", "HttpToolsProtocol", "H11Protocol", "WebSocketProtocol"),
    )

    def left() -> tuple[int, int]:
        gc.collect()
        return sum(type(thing).__name__ in kinds for thing in gc.get_objects()), len(os.listdir("/proc/self/fd"))

    async def come_and_go(port: int) -> None:
        context = certificate.client_context()
        for path in ("native", "other", "behind", "starlette", "transport"):
            async with connected(f"wss://localhost:{port}/{path}/", ssl=context) as client:
                await client.send("hi")
                while await client.recv() != "hi":
                    pass
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"wss://localhost:{port}/nowhere", ssl=context, proxy=None)
        for request in (PAGE.replace(b"Host: a", b"Connection: close\r\nHost: a"), PAGE, b"GET / HT", b"POST", b""):
            reader, writer = await opened(port, certificate)
            writer.write(request)
            if request.endswith(b"\r\n\r\n"):
                await reader.readuntil(b"hello")
            writer.transport.abort()
        for start in STARTS:
            HalfTls(port, context, start).close()

    # uvicorn's timer for the next request keeps a protocol whose connection has been cut.
    async with serve_in_reactor(timeout_keep_alive=1) as port:
        await come_and_go(port)
        objects, descriptors = left()
        # libuv opens an additional descriptor when it first listens or connects, and keeps it.
        spare = 1
        for _ in range(4):
            await come_and_go(port)
        while (now := left())[0] > objects or now[1] > descriptors + spare:
            await asyncio.sleep(0.01)


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2")
async def test_the_options_for_tls_hold(serve, certificate, tmp_path) -> None:
    clients = Certificate(tmp_path)
    options = {
        "ssl_version": ssl.PROTOCOL_TLSv1_2,
        "ssl_ciphers": "ECDHE-RSA-AES256-GCM-SHA384",
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_ca_certs": clients.chain,
    }
    async with serve(**options) as port:
        context = certificate.client_context()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connected(f"wss://localhost:{port}/native/", ssl=context):
                pass
        context.load_cert_chain(clients.chain, clients.key)
        for path in ("native", "starlette"):
            async with connected(f"wss://localhost:{port}/{path}/", ssl=context) as client:
                tls = client.transport.get_extra_info("ssl_object")
                assert (tls.version(), tls.cipher()[0]) == ("TLSv1.2", "ECDHE-RSA-AES256-GCM-SHA384")
                assert await client.recv() == "wss 127.0.0.1"
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("localhost", port, ssl=context)


async def test_a_key_may_have_a_password(serve, certificate, encrypted_key) -> None:
    async with (
        serve(ssl_keyfile=encrypted_key, ssl_keyfile_password="secret") as port,
        client_of(port, certificate) as client,
    ):
        assert (await client.get("/")).text == "hello"


@pytest.mark.usefixtures("default_hangup")
async def test_sighup_takes_a_renewed_certificate(serve, certificate, encrypted_key, tmp_path, caplog) -> None:
    renewed = Certificate(tmp_path, "ECDSA")
    chain, key = tmp_path / "chain", tmp_path / "key"

    def install(of: Certificate) -> None:
        shutil.copy(of.chain, chain)
        shutil.copy(of.key, key)

    def hangups() -> list[str]:
        return [record.levelname for record in caplog.records if "SIGHUP" in record.getMessage()]

    async def hang_up() -> str:
        before = len(hangups())
        signal.raise_signal(signal.SIGHUP)
        while len(hangups()) == before:
            await asyncio.sleep(0)
        return hangups()[-1]

    async def is_served_with(of: Certificate, port: int) -> None:
        async with client_of(port, of) as client:
            assert (await client.get("/")).text == "hello"

    install(certificate)
    logging.getLogger("uvicorn.error").propagate = True
    async with (
        serve(ssl_certfile=str(chain), ssl_keyfile=str(key)) as port,
        connected(f"wss://localhost:{port}/native/", ssl=certificate.client_context()) as client,
    ):
        assert await client.recv() == "wss 127.0.0.1"
        caplog.set_level(logging.INFO, "uvicorn.error")
        install(renewed)
        await is_served_with(certificate, port)
        assert await hang_up() == "INFO"
        await is_served_with(renewed, port)
        chain.write_text("no certificate")
        assert await hang_up() == "ERROR"
        assert str(chain) in caplog.text
        await is_served_with(renewed, port)
        install(certificate)
        shutil.copy(encrypted_key, key)
        assert await hang_up() == "ERROR"
        assert "ssl_keyfile_password" in caplog.text
        await is_served_with(renewed, port)
        await client.send("still there")
        assert await client.recv() == "still there"


async def test_a_server_that_stops_ends_all_connections_in_order(serve, http, certificate) -> None:
    async with contextlib.AsyncExitStack() as stack:
        slow_may_end = asyncio.Event()

        async def slow(request: Request) -> PlainTextResponse:
            slow_may_end.set()
            await asyncio.sleep(0.05)
            return PlainTextResponse("late")

        app = make_app()
        app.router.routes.insert(0, Route("/slow", slow))
        async with serve(app, http=http) as port:
            clients = []
            for path in ("native", "other", "behind", "starlette", "transport"):
                url = f"wss://localhost:{port}/{path}/"
                clients.append(await stack.enter_async_context(connected(url, ssl=certificate.client_context())))
            idle, idle_writer = await opened(port, certificate)
            idle_writer.write(PAGE)
            await idle.readuntil(b"hello")
            busy, busy_writer = await opened(port, certificate)
            busy_writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            await slow_may_end.wait()
        for client in clients:
            await client.wait_closed()
            assert client.close_code == 1001
        assert await idle.read() == b""
        assert (await busy.read()).endswith(b"late")
        for writer in (idle_writer, busy_writer):
            writer.close()
