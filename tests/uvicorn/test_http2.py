"""HTTP/2 over TLS: uvicorn chooses its protocol by ALPN as soon as a connection is made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from tests.support.half_tls import HalfTls
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import Clock, connected
from tests.support.uvicorn_server import listening
from wshub import EventHandler, Hub
from wshub.uvicorn import first_requests
from wshub.uvicorn.event_loop import accept_natively


@pytest.fixture(params=[pytest.param("reactor", marks=needs_reactor), "transports"], autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve in the reactor or without it, and look often for connections whose time is over."""
    monkeypatch.setattr(first_requests, "SWEEP_PERIOD", 0.02)
    if request.param == "transports":
        monkeypatch.setenv("WSHUB_USE_REACTOR", "0")


@contextlib.asynccontextmanager
async def serving(certificate: Any, hub: Hub, *routes: Route) -> AsyncIterator[int]:
    """Serve pages and a WebSocket with HTTP/2 allowed. Yields the port."""

    async def version(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.scope["http_version"])

    echo = EventHandler(on_message=lambda connection, message: connection.send(message))
    app = Starlette(routes=[Route("/", version), *routes, Mount("/ws", hub.asgi(echo))])
    accept_natively(asyncio.get_running_loop())
    options: Any = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key, "http2": True}
    async with listening(app, "zttp", log_config=None, **options) as address:
        yield int(address.rpartition(":")[2])


async def curl(certificate: Any, url: str, *options: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", certificate.chain, *options, url]
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await running.communicate()
    assert running.returncode == 0
    return output


async def test_pages_are_served_by_both_versions_and_websockets_beside_them(certificate) -> None:
    async with serving(certificate, Hub()) as port:
        assert await curl(certificate, f"https://localhost:{port}/", "--http2") == b"2"
        assert await curl(certificate, f"https://localhost:{port}/", "--http1.1") == b"1.1"
        async with connected(f"wss://localhost:{port}/ws/", ssl=certificate.client_context()) as client:
            await client.send("served")
            assert await client.recv() == "served"


@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
async def test_a_response_may_take_longer_than_the_time_of_a_handshake(certificate, version) -> None:
    clock, asked, may_end = Clock(), asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first "
            asked.set()
            await may_end.wait()
            yield b"last"

        return StreamingResponse(pieces())

    async with serving(certificate, Hub(clock=clock), Route("/slow", slow)) as port:
        response = asyncio.create_task(curl(certificate, f"https://localhost:{port}/slow", version))
        await asked.wait()
        silent = HalfTls(port, certificate.client_context(), "a hello")
        # After this, the server has accepted it.
        assert await curl(certificate, f"https://localhost:{port}/") == b"2"
        clock.now += 11
        await silent.ended()
        may_end.set()
        assert await response == b"first last"


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_a_client_that_sends_no_request_is_ended_when_its_time_is_over(certificate, protocol) -> None:
    clock, context = Clock(), certificate.client_context()
    context.set_alpn_protocols([protocol])
    async with serving(certificate, Hub(clock=clock)) as port:
        peer = HalfTls(port, context, "a hello")
        await peer.finish()
        # After this, the server has accepted the connection.
        assert await curl(certificate, f"https://localhost:{port}/", "--http2") == b"2"
        assert peer.is_open()
        clock.now += 11
        await peer.ended()


@pytest.mark.usefixtures("default_hangup")
async def test_http2_is_still_offered_after_a_renewal(certificate, caplog) -> None:
    logging.getLogger("uvicorn.error").propagate = True
    async with serving(certificate, Hub()) as port:
        assert await curl(certificate, f"https://localhost:{port}/", "--http2") == b"2"
        caplog.set_level(logging.INFO, "uvicorn.error")
        signal.raise_signal(signal.SIGHUP)
        while "SIGHUP" not in caplog.text:
            await asyncio.sleep(0)
        assert await curl(certificate, f"https://localhost:{port}/", "--http2") == b"2"
