"""The limits of a connection's first request, on wshub's loops, for any application."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.support.raw_peers import REQUEST, port_of, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock, connected
from tests.support.uvicorn_server import listening
from wshub import EventHandler, Hub, HubConfig
from wshub.uvicorn import first_requests
from wshub.uvicorn.event_loop import accept_natively
from wshub.uvicorn.first_requests import MAX_FIRST_HEAD

PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have wshub look often for connections whose time is over."""
    monkeypatch.setattr(first_requests, "SWEEP_PERIOD", 0.02)


@pytest.fixture(
    params=[
        "plain",
        pytest.param("native", marks=needs_reactor),
        "tls",
        pytest.param("native tls", marks=needs_reactor),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of application: without a native route or with one, and whether it is served over TLS."""
    return request.param


async def page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


@contextlib.asynccontextmanager
async def served(
    kind: str, http: str, certificate: Any, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> AsyncIterator[str]:
    """Serve an application whose hub has this clock and these settings. Yields its URL."""
    hub = Hub(HubConfig(use_reactor="native" in kind, **settings), clock=clock)
    app = Starlette(routes=[Route("/", page), Mount("/ws", hub.asgi(EventHandler()))])
    accept_natively(asyncio.get_running_loop())
    options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key} if "tls" in kind else {}
    async with listening(app, http, log_config=None, **options) as address:
        yield f"http://{address}/"


async def connect(kind: str, url: str, certificate: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = certificate.client_context() if "tls" in kind else None
    return await asyncio.open_connection("localhost" if context else "127.0.0.1", port_of(url), ssl=context)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return all data up to the end of the connection, or up to an error."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(1 << 16):
            received += data
    return received


async def rest_in_time_of(clock: Clock, reader: asyncio.StreamReader) -> bytes:
    """Return all data up to the end of the connection. The clock goes on by seconds meanwhile."""
    reading = asyncio.create_task(rest(reader))
    while not reading.done():
        clock.now += 1
        await asyncio.sleep(0.02)
    return await reading


async def is_served(kind: str, url: str, certificate: Any) -> None:
    reader, writer = await connect(kind, url, certificate)
    writer.write(PAGE)
    assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    writer.transport.abort()


@pytest.mark.parametrize("data", [b"", b"P", b"\r\n", b"POST / HT", b"GET / HTTP/1.1\r\nX-Long: " + b"y" * 17_000])
async def test_who_does_not_finish_its_first_request_in_time_is_ended(http, kind, certificate, data, clock) -> None:
    async with served(kind, http, certificate, clock) as url:
        reader, writer = await connect(kind, url, certificate)
        writer.write(data)
        assert b" 200 " not in await rest_in_time_of(clock, reader)
        writer.transport.abort()


async def test_who_has_finished_its_first_request_may_take_its_time(http, kind, certificate, clock) -> None:
    async with served(kind, http, certificate, clock) as url:
        reader, writer = await connect(kind, url, certificate)
        other, other_writer = await connect(kind, url, certificate)
        writer.write(PAGE)
        assert b"hello" in await reader.readuntil(b"hello")
        # The connection without a request ends when its time is over.
        assert await rest_in_time_of(clock, other) == b""
        for byte in PAGE:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert b"hello" in await reader.readuntil(b"hello")
        writer.transport.abort()
        other_writer.transport.abort()


async def test_a_head_without_end_is_read_up_to_a_bound(http, kind, certificate) -> None:
    async with served(kind, http, certificate) as url:
        reader, writer = await connect(kind, url, certificate)
        writer.write(b"GET / HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            # Without a limit, the client sends 16 MiB, and then waits for ever.
            while sent < 1 << 24 and not reader.at_eof():
                field = b"X-%d: %s\r\n" % (sent, b"y" * 1000)
                writer.write(field * 16)
                sent += len(field) * 16
                await writer.drain()
                await asyncio.sleep(0)
        assert sent < 1 << 24
        assert b" 200 " not in await rest(reader)
        writer.transport.abort()
        await is_served(kind, url, certificate)


async def test_a_head_within_the_bound_is_served(kind, certificate) -> None:
    async with served(kind, "httptools", certificate) as url:
        reader, writer = await connect(kind, url, certificate)
        field = b"X-Long: " + b"y" * (MAX_FIRST_HEAD - len(PAGE) - 10) + b"\r\n"
        writer.write(PAGE[:-2] + field + b"\r\n")
        assert b"hello" in await reader.readuntil(b"hello")
        writer.transport.abort()


@pytest.mark.parametrize("data", [b"P", b"GET / HT", b""])
async def test_of_too_many_that_have_not_asked_the_oldest_is_ended(http, kind, certificate, data) -> None:
    async with served(kind, http, certificate, max_pending_handshakes=4) as url:
        peers = []
        for _ in range(12):
            peers.append(await connect(kind, url, certificate))
            peers[-1][1].write(data)
        # The acceptor and uvicorn each have their own limit.
        for reader, _ in peers[: 12 - 2 * 4]:
            assert await rest(reader) == b""
        await is_served(kind, url, certificate)
        for _, writer in peers:
            writer.transport.abort()


async def test_websockets_are_served_as_ever_behind_the_bounds(http, kind, certificate, clock) -> None:
    async with served(kind, http, certificate, clock) as url:
        scheme, host = ("wss", "localhost") if "tls" in kind else ("ws", "127.0.0.1")
        context = certificate.client_context() if "tls" in kind else None
        async with connected(f"{scheme}://{host}:{port_of(url)}/ws/", ssl=context) as client:
            reader, writer = await connect(kind, url, certificate)
            assert await rest_in_time_of(clock, reader) == b""
            writer.transport.abort()
            # The other connection is over, so this one has outlived the handshake timeout.
            await (await client.ping())


async def test_a_handshake_behind_a_page_has_no_time_of_the_page(http) -> None:
    """uvicorn's keep-alive timeout after a response does not end a connection that has become a WebSocket."""

    hub = Hub(HubConfig(use_reactor=False))
    app = Starlette(routes=[Route("/", page), Mount("/ws", hub.asgi(EventHandler()))])
    accept_natively(asyncio.get_running_loop())
    async with (
        listening(app, http, log_config=None, timeout_keep_alive=0) as address,
        raw_peer(f"ws://{address}/", handshake=False) as peer,
    ):
        peer.write(PAGE + REQUEST.replace(b"GET / ", b"GET /ws/ "))
        await peer.reader.readuntil(b"hello")
        assert b" 101 " in await peer.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.01)
        peer.write(b"\x89\x80\0\0\0\0")
        assert await peer.reader.readexactly(2) == b"\x8a\0"
