"""``wait_writable`` lets an application send as fast as its client reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, ConnectionClosed, EventHandler

CHUNK = bytes(16_384)
LIMIT = 262_144


async def fill(connection: Connection, size: int) -> None:
    """Send until that many bytes are queued for a client that does not read."""
    while connection.buffered < size:
        connection.send(bytes(1_000_000))
        await asyncio.sleep(0)


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_a_sender_that_waits_never_fills_the_queue(use_reactor) -> None:
    highest = 0
    done = asyncio.get_running_loop().create_future()

    async def endpoint(connection: Connection) -> None:
        nonlocal highest
        for _ in range(2000):
            await connection.wait_writable()
            connection.send(CHUNK)
            highest = max(highest, connection.buffered)
        await connection.drain()
        done.set_result(None)

    # 32 MB under the policy "close", far more than the queue and the kernel hold.
    settings: Any = {"max_send_buffer": LIMIT, "use_reactor": use_reactor}
    async with serving(endpoint, **settings) as (hub, url), connected(url, max_size=None) as client:
        while not any(connection.buffered > LIMIT // 2 for connection in hub.connections):
            await asyncio.sleep(0)
        for _ in range(2000):
            assert len(await client.recv()) == len(CHUNK)
        await done
        assert hub.stats().dropped.slow == 0
    assert LIMIT // 2 < highest < LIMIT


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_it_returns_at_once_while_there_is_space_and_waits_while_there_is_none(use_reactor) -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    # Far more than the buffers of the kernel, which may take several megabytes at once.
    settings = {"max_send_buffer": 64_000_000, "use_reactor": use_reactor}
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (_, url), raw_peer(url) as peer:
        connection = await opened
        with pytest.raises(StopIteration):
            connection.wait_writable().send(None)
        peer.writer.transport.pause_reading()
        await fill(connection, 48_000_000)
        # drain() waits for more bytes than the others, and is begun before and after them.
        waits = [
            asyncio.create_task(wait())
            for wait in (connection.drain, connection.wait_writable, connection.drain, connection.wait_writable)
        ]
        await asyncio.sleep(0.01)
        assert not any(wait.done() for wait in waits)
        peer.writer.transport.resume_reading()
        while not waits[1].done():
            await peer.reader.read(65536)
        await waits[3]
        assert 0 < connection.buffered <= 32_000_000
        assert not waits[0].done()
        assert not waits[2].done()
        while not (waits[0].done() and waits[2].done()):
            await peer.reader.read(65536)
        assert connection.buffered == 0


async def test_short_messages_count_as_max_send_buffer_counts_them() -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), max_send_buffer=6400) as (_, url), raw_peer(url):
        connection = await opened
        for _ in range(60):
            connection.send("x")
        assert connection.buffered == 60 * 64
        # The messages leave in the next iteration of the loop.
        await asyncio.wait_for(connection.wait_writable(), 5)
        assert connection.buffered <= 3200


async def test_the_smallest_queue_is_waited_for_until_it_is_empty() -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), max_send_buffer=1) as (_, url), raw_peer(url) as peer:
        connection = await opened
        for _ in range(3):
            await asyncio.wait_for(connection.wait_writable(), 5)
            connection.send("x")
        for _ in range(3):
            assert (await peer.frame()).payload == b"x"


@pytest.mark.parametrize("end", ["close", "vanish"])
async def test_it_raises_if_the_connection_ends(end) -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    settings = {"max_send_buffer": 8_000_000, "close_timeout_ms": 100}
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (_, url):
        async with raw_peer(url) as peer:
            connection = await opened
            peer.writer.transport.pause_reading()
            await fill(connection, 6_000_000)
            waiting = asyncio.create_task(connection.wait_writable())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            if end == "close":
                connection.close()
            else:
                peer.reset()
            with pytest.raises(ConnectionClosed):
                await waiting
        with pytest.raises(ConnectionClosed):
            await connection.wait_writable()


async def test_a_wait_that_is_cancelled_leaves_the_others_alone() -> None:
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(handler, max_send_buffer=8_000_000) as (_, url), raw_peer(url) as peer:
        connection = await opened
        peer.writer.transport.pause_reading()
        await fill(connection, 6_000_000)
        waits = [asyncio.create_task(connection.wait_writable()) for _ in range(3)]
        await asyncio.sleep(0.01)
        waits[1].cancel()
        await asyncio.wait([waits[1]])
        peer.writer.transport.resume_reading()
        while not (waits[0].done() and waits[2].done()):
            await peer.reader.read(65536)
        assert waits[1].cancelled()
