"""Under uvicorn, limits and timeouts apply to a TLS connection from accept(2) on, also before its TLS handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.support.half_tls import STARTS, HalfTls
from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock, connected
from tests.support.uvicorn_server import listening
from tests.support.ways_to_serve import status_of
from wshub import EventHandler, Hub, HubConfig
from wshub.uvicorn import first_requests
from wshub.uvicorn.event_loop import accept_natively

PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have wshub look often for connections whose time is over."""
    monkeypatch.setattr(first_requests, "SWEEP_PERIOD", 0.02)


@pytest.fixture
def tls(certificate: Any) -> dict[str, Any]:
    return {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}


async def page(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


@contextlib.asynccontextmanager
async def served(
    tls: dict[str, Any], clock: Callable[[], float] = time.monotonic, **settings: Any
) -> AsyncIterator[int]:
    """Serve an application whose hub has this clock and these settings. Yields its port."""
    async with serving(Hub(HubConfig(**settings), clock=clock), **tls) as port:
        yield port


@contextlib.asynccontextmanager
async def serving(hub: Hub, **options: Any) -> AsyncIterator[int]:
    """Serve an application with this hub. The options are uvicorn's. Yields the port."""
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    app = Starlette(routes=[Route("/", page), Mount("/ws", hub.asgi(handler))])
    accept_natively(asyncio.get_running_loop())
    async with listening(app, log_config=None, **options) as address:
        yield int(address.rpartition(":")[2])


async def is_served(port: int, certificate: Any) -> None:
    peer = HalfTls(port, certificate.client_context(), "nothing")
    await peer.finish()
    await peer.send(PAGE)
    received = b""
    while b"hello" not in received:
        received += await peer.receive()
    peer.close()
    async with connected(f"wss://localhost:{port}/ws/", ssl=certificate.client_context()) as client:
        await client.send("served")
        assert await client.recv() == "served"


@pytest.mark.parametrize("start", STARTS)
async def test_of_too_many_unfinished_tls_handshakes_the_oldest_is_ended(tls, certificate, start) -> None:
    async with served(tls, max_pending_handshakes=4) as port:
        peers = [HalfTls(port, certificate.client_context(), start) for _ in range(12)]
        await asyncio.gather(*(peer.ended() for peer in peers[:8]))
        assert all(peer.is_open() for peer in peers[8:])
        await is_served(port, certificate)
        for peer in peers[8:]:
            peer.close()


@pytest.fixture
def clock() -> Clock:
    """The clock of the application's hub."""
    return Clock()


@pytest.mark.parametrize("start", STARTS)
async def test_an_unfinished_tls_handshake_is_ended_when_its_time_is_over(tls, clock, certificate, start) -> None:
    async with served(tls, clock, handshake_timeout_ms=10_000) as port:
        peers = [HalfTls(port, certificate.client_context(), start) for _ in range(3)]
        # After this, the server has accepted them.
        await is_served(port, certificate)
        assert all(peer.is_open() for peer in peers)
        clock.now += 11
        await asyncio.gather(*(peer.ended() for peer in peers))


async def test_the_tls_handshake_and_the_request_have_one_deadline(tls, clock, certificate) -> None:
    async with served(tls, clock, handshake_timeout_ms=10_000) as port:
        peer = HalfTls(port, certificate.client_context(), "a byte")
        await is_served(port, certificate)
        clock.now += 6
        await peer.finish()
        await peer.send(PAGE[:-2])
        await is_served(port, certificate)
        assert peer.is_open()
        clock.now += 6
        while await peer.receive():
            pass
        peer.close()


@pytest.mark.parametrize("start", STARTS)
async def test_a_server_that_stops_ends_unfinished_tls_handshakes(tls, certificate, start) -> None:
    async with served(tls) as port:
        peers = [HalfTls(port, certificate.client_context(), start) for _ in range(3)]
        await is_served(port, certificate)
    await asyncio.gather(*(peer.ended() for peer in peers))


@needs_reactor
@pytest.mark.parametrize("trusted", ["", "127.0.0.1"])
def test_the_rate_of_an_address_bounds_its_tls_handshakes(run, tls, clock, certificate, caplog, trusted) -> None:
    """As with ``Hub.serve``. The connections of a trusted proxy are those of many clients."""
    hub = Hub(HubConfig(max_connection_rate_per_address=3), clock=clock)

    async def scenario() -> None:
        async with serving(hub, forwarded_allow_ips=trusted, **tls) as port:
            context = certificate.client_context()
            peers = [HalfTls(port, context, "nothing") for _ in range(3)]
            further = HalfTls(port, context, "nothing")
            if trusted:
                clock.now += 1
                await is_served(port, certificate)
                assert further.is_open()
            else:
                await further.ended()
            assert hub.stats().refused == ({} if trusted else {429: 1})
            assert all(peer.is_open() for peer in peers)
            clock.now += 1
            await is_served(port, certificate)
            for peer in (*peers, further):
                peer.close()

    run(scenario())
    assert [record.limit for record in caplog.records if record.levelno >= 30] == (
        [] if trusted else ["max_connection_rate_per_address"]
    )


@needs_reactor
@pytest.mark.parametrize("way", ["Hub.serve", "uvicorn"])
def test_without_tls_the_rate_of_an_address_bounds_its_requests(run, clock, caplog, way) -> None:
    hub = Hub(HubConfig(max_connection_rate_per_address=3), clock=clock)

    async def scenario() -> None:
        context = (
            hub.serve("127.0.0.1", 0, EventHandler()) if way == "Hub.serve" else serving(hub, forwarded_allow_ips="")
        )
        async with context as served:
            port = served.port if way == "Hub.serve" else served
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
            statuses = [await status_of(port, REQUEST.replace(b"GET /", b"GET /ws/")) for _ in range(5)]
            assert statuses == [101, 101, 101, 429, 429]
            assert hub.stats().refused == {429: 2}
            for connection in silent:
                connection.close()

    run(scenario())
    assert [record.limit for record in caplog.records if record.levelno >= 30] == ["max_connection_rate_per_address"]


def test_a_client_that_leaves_during_its_tls_handshake_disturbs_nobody(run, tls, certificate, caplog) -> None:
    async def scenario() -> None:
        async with served(tls) as port:
            for start in STARTS:
                HalfTls(port, certificate.client_context(), start).close()
            await is_served(port, certificate)

    run(scenario())
    assert [record.getMessage() for record in caplog.records if record.levelno >= 40] == []
