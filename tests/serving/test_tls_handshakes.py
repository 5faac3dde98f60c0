"""A TLS connection counts against the limits and timeouts from accept(2) on, before its handshake is complete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from tests.support.half_tls import STARTS, HalfTls
from tests.support.raw_peers import REQUEST, masked
from tests.support.serving_hub import Clock, connected
from wshub import EventHandler, Frame, Hub, HubConfig
from wshub.core.event_handler import handler_table_of
from wshub.links.asyncio_link import AsyncioLink
from wshub.serving.server import Server


@pytest.fixture(params=["files, reactor", "context, reactor", "context, transports"])
def tls(request: pytest.FixtureRequest, certificate: Any) -> dict[str, Any]:
    """Return arguments for ``serving()``."""
    kind, _, carrier = request.param.partition(", ")
    if kind == "files":
        options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}
    else:
        options = {"ssl": certificate.server_context()}
    return options | {"use_reactor": carrier == "reactor"}


@contextlib.asynccontextmanager
async def serving(tls: dict[str, Any], clock: Clock | None = None, **settings: Any) -> AsyncIterator[Server]:
    options = {"clock": clock} if clock is not None else {}
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    files = dict(tls)
    config = HubConfig(use_reactor=files.pop("use_reactor"), **settings)
    async with Hub(config, **options).serve("127.0.0.1", 0, handler, **files) as server:
        yield server


async def until_pending(server: Server, count: int) -> None:
    while len(server._handshakes.pending) != count:
        await asyncio.sleep(0)


def pass_for(clock: Clock, seconds: float, server: Server) -> None:
    clock.pass_for(seconds, server.hub)
    server._handshakes.expire()


async def is_served(server: Server, certificate: Any) -> None:
    async with connected(f"wss://localhost:{server.port}/", ssl=certificate.client_context()) as client:
        await client.send("served")
        assert await client.recv() == "served"


@pytest.mark.parametrize("start", STARTS)
async def test_of_too_many_unfinished_tls_handshakes_the_oldest_is_ended(tls, certificate, start) -> None:
    async with serving(tls, max_pending_handshakes=4) as server:
        context = certificate.client_context()
        peers = []
        for count in range(1, 13):
            peers.append(HalfTls(server.port, context, start))
            await until_pending(server, min(count, 4))
        await asyncio.gather(*(peer.ended() for peer in peers[:8]))
        assert all(peer.is_open() for peer in peers[8:])
        await is_served(server, certificate)
        # A connection within the limit can still complete its handshake.
        await peers[-1].finish()
        await peers[-1].send(REQUEST)
        assert b" 101 " in await peers[-1].receive()
        for peer in peers[8:]:
            peer.close()


@pytest.mark.parametrize("start", STARTS)
async def test_an_unfinished_tls_handshake_is_ended_when_its_time_is_over(tls, clock, certificate, start) -> None:
    async with serving(tls, clock, handshake_timeout_ms=10_000) as server:
        peer = HalfTls(server.port, certificate.client_context(), start)
        await until_pending(server, 1)
        pass_for(clock, 9, server)
        await asyncio.sleep(0)
        assert peer.is_open()
        pass_for(clock, 2, server)
        await peer.ended()
        await until_pending(server, 0)


async def test_the_tls_handshake_and_the_request_have_one_deadline(tls, clock, certificate) -> None:
    async with serving(tls, clock, handshake_timeout_ms=10_000) as server:
        peer = HalfTls(server.port, certificate.client_context(), "a byte")
        await until_pending(server, 1)
        pass_for(clock, 6, server)
        await peer.finish()
        await peer.send(REQUEST[:-2])
        # When the server answers this connection, it has read the request of the other.
        await is_served(server, certificate)
        pass_for(clock, 6, server)
        assert b" 408 " in await peer.receive()
        peer.close()


@pytest.mark.parametrize("start", STARTS)
async def test_of_one_address_as_many_may_be_unfinished_as_it_may_have_connections(tls, certificate, start) -> None:
    async with serving(tls, max_connections_per_address=2) as server:
        context = certificate.client_context()
        peers = []
        for count in range(1, 7):
            peers.append(HalfTls(server.port, context, start))
            await until_pending(server, min(count, 2))
        await asyncio.gather(*(peer.ended() for peer in peers[:4]))
        await is_served(server, certificate)
        for peer in peers[4:]:
            peer.close()


async def test_an_address_at_its_limit_is_told_so_over_tls(tls, certificate) -> None:
    async with serving(tls, max_connections_per_address=1) as server:
        url = f"wss://localhost:{server.port}/"
        async with connected(url, ssl=certificate.client_context()):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with connected(url, ssl=certificate.client_context()):
                    pass
            assert refused.value.response.status_code == 429


async def test_a_trusted_proxy_has_no_limit_per_address_before_its_requests(tls, certificate) -> None:
    settings = {"max_connections_per_address": 2, "max_connection_rate_per_address": 2}
    async with serving(tls, trusted_proxies=("127.0.0.0/8",), **settings) as server:
        peers = [HalfTls(server.port, certificate.client_context(), "a byte") for _ in range(6)]
        await until_pending(server, 6)
        assert all(peer.is_open() for peer in peers)
        for peer in peers:
            peer.close()


def test_the_rate_of_an_address_bounds_its_tls_handshakes(run, tls, clock, certificate, caplog) -> None:
    async def scenario() -> None:
        async with serving(tls, clock, max_connection_rate_per_address=3) as server:
            context = certificate.client_context()
            peers = [HalfTls(server.port, context, "nothing") for _ in range(3)]
            await until_pending(server, 3)
            await HalfTls(server.port, context, "nothing").ended()
            assert server.hub.stats().refused == {429: 1}
            assert all(peer.is_open() for peer in peers)
            pass_for(clock, 1, server)
            await is_served(server, certificate)
            for peer in peers:
                peer.close()

    run(scenario())
    (warning,) = caplog.records
    assert warning.limit == "max_connection_rate_per_address"


@pytest.mark.parametrize("start", STARTS)
async def test_a_server_that_stops_ends_unfinished_tls_handshakes(tls, certificate, start) -> None:
    async with serving(tls) as server:
        peers = [HalfTls(server.port, certificate.client_context(), start) for _ in range(3)]
        await until_pending(server, 3)
    for peer in peers:
        await peer.ended()


def test_a_client_that_leaves_during_its_tls_handshake_is_forgotten(run, tls, certificate, caplog) -> None:
    async def scenario() -> None:
        async with serving(tls) as server:
            for start in STARTS:
                peer = HalfTls(server.port, certificate.client_context(), start)
                await until_pending(server, 1)
                peer.close()
                await until_pending(server, 0)

    run(scenario())
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


class ClosingTransport:
    """A TLS transport that counts the calls of ``close()``; its end comes later."""

    def __init__(self) -> None:
        self.closes = 0

    def write(self, data: bytes) -> None:
        """Accept all data."""

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """Pause reading."""

    def resume_reading(self) -> None:
        """Resume reading."""

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closes += 1

    def is_closing(self) -> bool:
        return self.closes > 0


async def test_a_tls_transport_is_closed_once_when_the_client_ends_its_side_too() -> None:
    hub = Hub()
    transport = ClosingTransport()
    link = AsyncioLink(transport, asyncio.get_running_loop())
    connection = hub.register_connection(handler_table_of(EventHandler()), None)
    hub.open_on_link(connection, link, b"", b"")
    connection.close()
    link.data_received(masked(Frame.close()))
    await asyncio.sleep(0)
    assert transport.closes == 1
    link.eof_received()
    await asyncio.sleep(0)
    assert transport.closes == 1
    link.connection_lost(None)
