"""Liveness and readiness, in every way to serve a hub."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI

from tests.support.certificate import Certificate
from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import ConfigurationError, EventHandler, Hub, HubConfig, MisuseError
from wshub.app import App
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.health import health_endpoint

WAYS = ["Hub.serve", "App", "FastAPI"]


@contextlib.asynccontextmanager
async def probed(way: str, hub: Hub) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the hub and its health. Yields a client of that server."""
    async with contextlib.AsyncExitStack() as stack:
        app: Any = None
        if way == "Hub.serve":
            server = await stack.enter_async_context(
                hub.serve("127.0.0.1", 0, EventHandler(), health_path="/health", path="/ws")
            )
            address = f"127.0.0.1:{server.port}"
        else:
            app = App() if way == "App" else FastAPI()
            app.mount("/health", health_endpoint(hub))
            app.mount("/ws", hub.asgi(EventHandler()))
            address = await stack.enter_async_context(listening(app))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{address}", trust_env=False))


@pytest.mark.parametrize("way", WAYS)
async def test_a_hub_that_no_client_has_used_yet_is_alive_and_ready(way: str) -> None:
    async with probed(way, Hub()) as client:
        for probe in ("live", "ready"):
            answer = await client.get(f"/health/{probe}")
            assert (answer.status_code, answer.json()["ok"]) == (200, True)
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["cache-control"] == "no-store"
            head = await client.head(f"/health/{probe}")
            assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("way", WAYS)
async def test_a_hub_whose_broker_is_cut_off_is_alive_and_not_ready(way: str) -> None:
    engine = MemoryEngine()
    hub = Hub(broker=MemoryBroker(engine), name="chat")
    async with probed(way, hub) as client:
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        assert (await client.get("/health/ready")).json() == {"ok": True, "brokers": {"chat": "connected"}}
        engine.stop()
        while (answer := await client.get("/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert (answer.status_code, answer.json()) == (503, {"ok": False, "brokers": {"chat": "disconnected"}})
        assert (await client.get("/health/live")).status_code == 200
        engine.heal()


@pytest.mark.parametrize("way", WAYS)
async def test_a_hub_is_not_ready_while_it_closes(way: str) -> None:
    release = asyncio.Event()

    async def wait(connection: Any, code: int, reason: str) -> None:
        await release.wait()

    hub = Hub()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(probed(way, hub))
        other = await stack.enter_async_context(hub.serve("127.0.0.1", 0, EventHandler(on_close=wait)))
        async with connected(f"ws://127.0.0.1:{other.port}/"):
            closing = asyncio.create_task(hub.close())
            await asyncio.sleep(0)
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200
            release.set()
            await closing
        if way != "Hub.serve":
            assert (await client.get("/health/ready")).status_code == 503


@pytest.mark.parametrize("way", WAYS)
async def test_other_requests_below_the_path_are_no_probes(way: str) -> None:
    hub = Hub()
    async with probed(way, hub) as client:
        assert (await client.get("/health/other")).status_code == 404
        assert (await client.post("/health/ready")).status_code in (400, 404, 405)
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://{client.base_url.netloc.decode()}/health/other", proxy=None)


async def test_the_probes_are_not_counted_as_refused_handshakes() -> None:
    hub = Hub()
    async with probed("Hub.serve", hub) as client:
        await client.get("/health/ready")
        assert hub.stats().refused == {}


async def test_a_probe_of_haproxy_is_answered() -> None:
    """Its request is of HTTP/1.0, without a Host."""
    hub = Hub()
    async with hub.serve("127.0.0.1", 0, EventHandler(), health_path="/") as server:
        async with raw_peer(f"ws://127.0.0.1:{server.port}/", handshake=False) as peer:
            peer.write(b"GET /ready HTTP/1.0\r\n\r\n")
            assert (await peer.reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        async with connected(f"ws://127.0.0.1:{server.port}/"):
            pass


async def test_probes_are_answered_over_tls(certificate: Certificate) -> None:
    hub = Hub()
    files = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}
    client = httpx.AsyncClient(verify=certificate.client_context(), trust_env=False)
    async with hub.serve("127.0.0.1", 0, EventHandler(), health_path="/health", **files) as server, client:
        assert (await client.get(f"https://127.0.0.1:{server.port}/health/ready")).json()["ok"]


async def test_without_a_health_path_no_probe_is_answered() -> None:
    hub = Hub()
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/health/live")).status_code == 426
        assert hub.stats().refused == {426: 1}


def test_a_health_path_is_a_path() -> None:
    with pytest.raises(ConfigurationError, match="health_path"):
        Hub().serve("127.0.0.1", 0, EventHandler(), health_path="health")


@pytest.mark.parametrize("hubs", [(), ("hub",), (Hub,)])
def test_an_endpoint_takes_hubs(hubs: Any) -> None:
    with pytest.raises(MisuseError):
        health_endpoint(*hubs)


async def test_all_hubs_of_an_endpoint_must_be_ready() -> None:
    first, second = Hub(HubConfig(), name="chat"), Hub(name="prices")
    app = FastAPI()
    app.mount("/health", health_endpoint(first, second))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        assert (await client.get("/health/ready")).status_code == 200
        await second.close()
        assert (await client.get("/health/ready")).status_code == 503
        await first.close()
