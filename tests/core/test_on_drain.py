"""``on_drain`` is called when the queue is empty again after the peer had fallen behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.support.raw_peers import REQUEST, masked, port_of, raw_peer
from tests.support.serving_hub import connected, serving
from wshub import Connection, EventHandler, Frame, Message


async def test_on_drain_is_called_when_what_had_to_wait_has_left_and_only_then() -> None:
    drained: list[int] = []
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    def on_drain(connection: Connection) -> None:
        drained.append(connection.buffered)
        done.set()

    handler = EventHandler(on_open=opened.set_result, on_drain=on_drain)
    async with serving(handler) as (_, url), raw_peer(url) as peer:
        connection = await opened
        for _ in range(10):
            connection.send("small")
            await connection.drain()
        assert drained == []
        peer.writer.transport.pause_reading()
        while not connection.buffered:
            connection.send("x" * 4000)
            await asyncio.sleep(0)
        done.clear()
        peer.writer.transport.resume_reading()
        reading = asyncio.create_task(peer.close_code())
        await done.wait()
        assert set(drained) == {0}
        reading.cancel()


async def test_on_drain_waits_for_a_handler_that_is_suspended() -> None:
    events: list[str] = []
    done = asyncio.Event()

    async def on_message(connection: Connection, received: Message) -> None:
        # This exceeds the kernel's buffers.
        connection.send(bytes(16_000_000))
        await connection.drain()
        await asyncio.sleep(0.01)
        events.append("handler ends")

    def on_drain(connection: Connection) -> None:
        events.append("drained")
        done.set()

    handler = EventHandler(on_message=on_message, on_drain=on_drain)
    async with serving(handler) as (_, url), connected(url, max_size=None) as client:
        await client.send("go")
        await done.wait()
        assert events == ["handler ends", "drained"]


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_on_drain_is_called_once_for_what_falls_behind_while_the_queue_is_found_empty(use_reactor) -> None:
    events: list[str] = []

    def on_message(connection: Connection, received: Message) -> None:
        events.append(received.data)
        connection.send(bytes(8_000_000))
        if received.data == "second":
            # The queue is full. The send writes what the kernel accepts now, which is only a part.
            connection.send("third", slow_consumer="drop_newest")

    def on_drain(connection: Connection) -> None:
        assert connection.buffered == 0
        events.append("drained")

    handler = EventHandler(on_message=on_message, on_drain=on_drain)
    settings = {"max_send_buffer": 1_000_000, "use_reactor": use_reactor}
    async with serving(handler, **settings) as (_, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        # The hub handles the second message after it has sent the whole reply to the first.
        peer.write(masked(Frame.text("first")) + masked(Frame.text("second")))
        while not events:
            await asyncio.sleep(0)
        peer.writer.transport.resume_reading()
        for _ in range(2):
            await peer.frame()
        while len(events) < 3:
            await asyncio.sleep(0)
        assert events == ["first", "second", "drained"]


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_on_drain_is_not_called_for_what_another_connection_has_queued_meanwhile(use_reactor) -> None:
    """The hub finds both queues empty in the same iteration, and one handler sends to the other connection."""

    connections: list[Connection] = []
    drained: list[int] = []

    def on_drain(connection: Connection) -> None:
        drained.append(connection.buffered)
        if len(drained) == 1:
            other = connections[1 - connections.index(connection)]
            other.send(bytes(8_000_000))

    handler = EventHandler(on_open=connections.append, on_drain=on_drain)
    settings = {"max_send_buffer": 1 << 26, "use_reactor": use_reactor}
    async with serving(handler, **settings) as (_, url), contextlib.AsyncExitStack() as stack:
        peers = []
        for _ in range(2):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(url))))
            peer.sendall(REQUEST)
            peer.setblocking(False)
            peers.append(peer)
        while len(connections) < 2:
            await asyncio.sleep(0)
        for connection in connections:
            connection.send(bytes(5_000_000))
        while len(drained) < 2 or any(connection.buffered for connection in connections):
            # Both peers read everything before the hub finds out about either.
            for peer in peers:
                with contextlib.suppress(BlockingIOError):
                    while peer.recv(1 << 20):
                        pass
            await asyncio.sleep(0)
        assert set(drained) == {0}


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_on_drain_does_not_wait_for_a_handler_that_receives(use_reactor) -> None:
    """The handler may last as long as the connection, and wait for on_drain. on_ping follows the same rule."""

    drained = asyncio.Event()

    async def on_open(connection: Connection) -> None:
        async for _ in connection:
            connection.send(bytes(16_000_000))
            await drained.wait()
            connection.send("the rest")

    handler = EventHandler(on_open=on_open, on_drain=lambda connection: drained.set())
    async with serving(handler, use_reactor=use_reactor) as (_, url), connected(url, max_size=None) as client:
        await client.send("go")
        assert len(await client.recv()) == 16_000_000
        async with asyncio.timeout(5):
            assert await client.recv() == "the rest"
