"""Every way to serve a hub refuses the same handshakes, and counts them in the same way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.ways_to_serve import WAYS, send, served, status_of

SETTINGS = {"allowed_origins": ("https://a",), "allow_missing_origin": True}
PARTIAL = REQUEST[:-4]

BAD = {
    "no key": (REQUEST.replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
    "another version": (REQUEST.replace(b"Version: 13", b"Version: 8"), 426),
    "a malformed list": (REQUEST[:-2] + b"Sec-WebSocket-Protocol: ,\r\n\r\n", 400),
    "a foreign origin": (REQUEST[:-2] + b"Origin: https://b\r\n\r\n", 403),
    "a large head": (REQUEST[:-2] + b"X-Long: " + b"y" * 20_000 + b"\r\n\r\n", 431),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_bad_handshake_has_the_same_status_and_counts(way: str) -> None:
    async with served(way, **SETTINGS) as (hub, port):
        found = {name: await status_of(port, request) for name, (request, _) in BAD.items()}
        assert found == {name: status for name, (_, status) in BAD.items()}
        assert hub.stats().refused == {400: 2, 403: 1, 426: 1, 431: 1}
        assert hub.connection_count == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_that_on_upgrade_fails_to_judge_counts_as_500(way: str) -> None:
    def judge(request: Any) -> None:
        raise ValueError("something is wrong")

    async with served(way, on_upgrade=judge) as (hub, port):
        assert await status_of(port, REQUEST) == 500
        assert hub.stats().refused == {500: 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_that_on_upgrade_takes_too_long_for_counts_as_503(way: str) -> None:
    async def judge(request: Any) -> None:
        await asyncio.sleep(60)

    async with served(way, on_upgrade=judge, handshake_timeout_ms=100) as (hub, port):
        assert await status_of(port, REQUEST) == 503
        assert hub.stats().refused == {503: 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_that_on_upgrade_judges_while_the_hub_closes_counts_as_503(way: str) -> None:
    judging = asyncio.Event()

    async def judge(request: Any) -> None:
        judging.set()
        await asyncio.sleep(60)

    async with served(way, on_upgrade=judge) as (hub, port):
        asked = asyncio.create_task(status_of(port, REQUEST))
        await judging.wait()
        await hub.close()
        assert await asked == 503
        assert hub.stats().refused == {503: 1}


@pytest.mark.parametrize("way", WAYS)
async def test_a_handshake_while_the_hub_closes_counts_as_503(way: str) -> None:
    async with served(way) as (hub, port):
        reader, writer = await send(port, REQUEST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        # The client does not answer the close frame.
        closing = asyncio.create_task(hub.close())
        await asyncio.sleep(0)
        assert await status_of(port, REQUEST) == 503
        assert hub.stats().refused == {503: 1}
        writer.transport.abort()
        await closing


@needs_reactor
@pytest.mark.parametrize("way", ["Hub.serve", "native route"])
async def test_a_request_that_is_not_complete_in_time_counts_as_408(way: str) -> None:
    async with served(way, handshake_timeout_ms=100) as (hub, port):
        assert await status_of(port, PARTIAL) == 408
        assert hub.stats().refused == {408: 1}


@needs_reactor
@pytest.mark.parametrize("way", ["Hub.serve", "native route"])
async def test_a_request_that_is_not_complete_when_the_server_ends_counts_as_503(way: str) -> None:
    async with served(way) as (hub, port):
        reader, writer = await send(port, PARTIAL)
        # The server answers it after it has read all that came before.
        await status_of(port, BAD["no key"][0])
        assert hub.stats().refused == {400: 1}
    assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    writer.transport.abort()
    assert hub.stats().refused == {400: 1, 503: 1}


@pytest.mark.parametrize("way", ["native route", "middleware"])
async def test_a_first_head_that_is_too_large_for_any_server_counts_as_431(way: str) -> None:
    async with served(way) as (hub, port):
        assert await status_of(port, REQUEST[:-2] + b"X-Long: " + b"y" * 70_000) == 431
        assert hub.stats().refused == {431: 1}
