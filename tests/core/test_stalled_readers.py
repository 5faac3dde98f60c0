"""A client that does not read delays no other client, and closes without waiting for its unread data."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from tests.support.raw_peers import REQUEST, port_of, raw_peer
from tests.support.serving_hub import Clock, connected, serving
from wshub import EventHandler


async def test_a_stalled_reader_does_not_stop_a_broadcast_to_the_others() -> None:
    async with serving(EventHandler(), close_timeout_ms=100) as (hub, url), connected(url, max_size=None) as reader:
        with socket.create_connection(("127.0.0.1", port_of(url))) as stalled:
            stalled.sendall(REQUEST)
            while hub.connection_count < 2:
                await asyncio.sleep(0)
            for index in range(200):
                message = b"%8d" % index + bytes(50_000)
                hub.broadcast(message)
                assert await reader.recv() == message
            while hub.connection_count > 1:
                await asyncio.sleep(0)
        assert list(hub.stats().closes) == [1013]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ping_interval_ms": 2**31}, "the peer does not read"),
        ({"send_timeout_ms": 0}, "no answer to a ping"),
    ],
)
async def test_a_stalled_reader_is_ended_without_waiting_for_what_it_does_not_read(
    clock: Clock, settings: dict[str, int], reason: str
) -> None:
    opened = asyncio.get_running_loop().create_future()
    closes = []
    handler = EventHandler(on_open=opened.set_result, on_close=lambda _, *close: closes.append(close))
    bounds = {"max_send_buffer": 1 << 30, **settings}
    async with serving(handler, clock=clock, **bounds) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        connection.join("room")
        for _ in range(50):
            connection.send(bytes(1_000_000))
        passed = 0
        while hub.connection_count:
            assert passed < 60
            passed += 1
            clock.pass_for(1, hub)
            for _ in range(10):
                await asyncio.sleep(0)
        await connection.wait_closed()
        assert closes == [(1006, reason)]
        assert (connection.buffered, hub.rooms) == (0, frozenset())
        assert hub.stats().dropped.closed > 0
        peer.writer.transport.resume_reading()
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := await peer.reader.read(1 << 20):
                received += len(data)
        assert received < 50_000_000


@pytest.mark.parametrize(("code", "reason"), [(1001, "shutdown"), (1012, "reload")])
async def test_shutdown_and_reload_send_the_queue_and_then_end_clients_that_do_not_read(code, reason) -> None:
    opened: list[Any] = []
    settings: dict[str, Any] = {"close_timeout_ms": 200, "max_send_buffer": 1 << 30}
    handler = EventHandler(on_open=opened.append)
    async with (
        serving(handler, **settings) as (hub, url),
        connected(url) as client,
        raw_peer(url) as stalled,
    ):
        stalled.writer.transport.pause_reading()
        while len(opened) < 2:
            await asyncio.sleep(0)
        for connection in opened:
            connection.send("queued")
        opened[1].send(bytes(50_000_000))
        async with asyncio.timeout(10):
            await hub.close(code, reason)
        assert await client.recv() == "queued"
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (code, reason)
        assert [connection.close_code for connection in opened] == [code, 1006]
