"""Pings, dead peers and the hub's clock, which the tests control."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise

import pytest

from tests.support.raw_peers import REQUEST, RawPeer, port_of, raw_peer, read_slowly
from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Frame, Hub, HubConfig, Opcode


def close_future() -> tuple[asyncio.Future[tuple[int, str]], EventHandler]:
    """Return a future for the code and the reason of the close, and the handler that sets it."""
    closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
    return closed, EventHandler(on_close=lambda connection, code, reason: closed.set_result((code, reason)))


async def test_a_ping_goes_out_when_it_is_due_and_not_before(clock) -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), clock=clock) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        clock.now += 14
        hub._sweep()
        assert connection.last_ping_time == 0
        clock.now += 16
        hub._sweep()
        assert connection.last_ping_time == 1030
        assert (await peer.frame()).opcode is Opcode.PING
        peer.send(Frame.pong())
        while not connection.last_pong_time:
            await asyncio.sleep(0)
        assert connection.last_pong_time == 1030


async def test_first_pings_of_many_connections_are_spread_over_half_of_the_interval(clock) -> None:
    connections = []
    async with serving(EventHandler(on_open=connections.append), clock=clock) as (hub, url):
        peers = [raw_peer(url) for _ in range(20)]
        for peer in peers:
            await peer.__aenter__()
        due = []
        for _ in range(31):
            due.append(sum(1 for connection in connections if connection.last_ping_time))
            clock.now += 1
            hub._sweep()
        assert due[15] == 0
        # 20 pings in 15 seconds.
        assert max(later - earlier for earlier, later in pairwise(due)) <= 2
        assert all(connection.last_ping_time for connection in connections)
        for peer in peers:
            await peer.__aexit__(None, None, None)


@pytest.mark.parametrize("kind", ["handlers", "endpoint"])
async def test_a_peer_that_is_silent_after_a_ping_is_ended_with_1006(clock, kind) -> None:
    closed = asyncio.get_running_loop().create_future()

    async def endpoint(connection) -> None:
        async for _ in connection:
            pass

    def on_close(connection, code, reason) -> None:
        closed.set_result((code, reason))

    handler = EventHandler(on_close=on_close)
    if kind == "endpoint":
        handler = EventHandler(on_open=endpoint, on_close=on_close)
    async with serving(handler, clock=clock) as (hub, url), raw_peer(url):
        clock.now += 30
        hub._sweep()
        clock.now += 9.9
        hub._sweep()
        await asyncio.sleep(0)
        assert hub.connection_count == 1
        clock.now += 0.2
        hub._sweep()
        hub._sweep()
        if kind == "endpoint":
            while hub.connection_count:
                await asyncio.sleep(0)
        else:
            assert await closed == (1006, "no answer to a ping")


async def test_any_frame_counts_as_life(clock) -> None:
    received = asyncio.Event()
    handler = EventHandler(on_message=lambda connection, message: received.set())
    async with serving(handler, clock=clock) as (hub, url), raw_peer(url) as peer:
        for _ in range(5):
            clock.now += 30
            hub._sweep()
            received.clear()
            peer.send(Frame.text("no pong, but alive"))
            await received.wait()
            clock.now += 11
            hub._sweep()
            assert hub.connection_count == 1


async def test_a_handler_that_is_slow_is_not_held_against_its_peer(clock) -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    async def on_message(connection, message) -> None:
        started.set()
        await release.wait()
        connection.send(message)

    async with serving(EventHandler(on_message=on_message), clock=clock) as (hub, url), raw_peer(url) as peer:
        peer.send(Frame.text("slow"))
        await started.wait()
        for _ in range(10):
            clock.now += 30
            hub._sweep()
        assert hub.connection_count == 1
        release.set()
        while (frame := await peer.frame()).opcode is Opcode.PING:
            peer.send(Frame.pong())
        assert frame.payload == b"slow"


@pytest.mark.parametrize("send_timeout_ms", [0, 10_000])
async def test_a_peer_that_lags_is_not_ended_for_a_ping_that_waits_behind_what_it_takes(clock, send_timeout_ms) -> None:
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    settings = {"send_timeout_ms": send_timeout_ms}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url, limit=4096) as peer:
        connection = await opened
        connection.send(bytes(32_000_000))
        await asyncio.sleep(0.1)
        await read_slowly(peer, hub, clock, seconds=60)


async def test_a_peer_that_reads_nothing_and_answers_no_ping_is_ended(clock) -> None:
    """The timeout for stalls is off. A message of the peer that waits to be handled does not prove that it is alive."""

    closed = asyncio.get_running_loop().create_future()
    opened = asyncio.get_running_loop().create_future()
    handler = EventHandler(
        on_open=opened.set_result, on_close=lambda connection, code, reason: closed.set_result((code, reason))
    )
    settings = {"send_timeout_ms": 0, "slow_consumer": "drop_oldest"}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        for _ in range(1000):
            connection.send(bytes(20_000))
        await asyncio.sleep(0.1)
        peer.send(Frame.text("what became of me?"))
        await asyncio.sleep(0.01)
        for _ in range(60):
            clock.pass_for(1, hub)
        assert await closed == (1006, "no answer to a ping")


async def test_a_dead_peer_is_noticed_where_pings_are_closer_than_the_timeout(clock) -> None:
    """A second ping does not extend the time to answer the first."""

    closed, handler = close_future()
    settings = {"ping_interval_ms": 2_000, "pong_timeout_ms": 5_000}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url):
        for _ in range(10):
            clock.pass_for(1, hub)
        await asyncio.sleep(0.01)
        assert closed.done()
        assert await closed == (1006, "no answer to a ping")


@pytest.mark.parametrize("use_reactor", [True, False])
@pytest.mark.parametrize("late", [False, True], ids=["acknowledged at once", "acknowledged late"])
async def test_a_peer_that_never_reads_is_ended_although_something_is_sent_to_it(clock, use_reactor, late) -> None:
    """The kernel of the peer still acknowledges data after the program has stopped."""

    closed, handler = close_future()
    settings = {"ping_interval_ms": 4_000, "pong_timeout_ms": 2_000, "use_reactor": use_reactor}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        # A ping after at most 4 s, 2 s to answer it, two sweeps, and one more for the data before the ping.
        for second in range(9):
            peer.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            hub.broadcast("tick")
            # The peer's kernel acknowledges after 40 ms.
            await asyncio.sleep(0.001 if late and second % 2 else 0.06)
            clock.pass_for(1, hub)
        await asyncio.sleep(0.01)
        assert closed.done()
        assert await closed == (1006, "no answer to a ping")


@pytest.mark.parametrize("use_reactor", [True, False])
async def test_a_peer_that_takes_all_it_is_sent_must_answer_all_the_same(clock, tmp_path, use_reactor) -> None:
    """The same holds over a Unix socket, where the kernel counts more than the unread bytes."""

    closed, handler = close_future()
    hub = Hub(HubConfig(use_reactor=use_reactor), clock=clock)
    path = str(tmp_path / "hub")
    async with hub.serve(unix=path, handler=handler):
        reader, writer = await asyncio.open_unix_connection(path)
        peer = RawPeer(reader, writer)
        await peer.handshake()
        for second in range(42):
            if closed.done():
                break
            hub.broadcast(b"%d" % second)
            if second % 2 == 0:
                while (await peer.frame()).payload != b"%d" % second:
                    pass
            clock.pass_for(1, hub)
            await asyncio.sleep(0)
        writer.transport.abort()
        assert closed.done()
        assert await closed == (1006, "no answer to a ping")


@pytest.mark.parametrize("use_reactor", [True, False])
@pytest.mark.parametrize("more", [0, 60_000], ids=["nothing more", "more than it reads"])
async def test_a_peer_that_still_reads_is_not_ended_for_a_ping_behind_what_the_kernel_holds(
    clock, use_reactor, more
) -> None:
    opened = asyncio.get_running_loop().create_future()
    closed = asyncio.get_running_loop().create_future()
    settings = {"ping_interval_ms": 4_000, "pong_timeout_ms": 2_000, "send_timeout_ms": 2_000}
    handler = EventHandler(on_open=opened.set_result, on_close=lambda connection, code, reason: closed.set_result(code))
    async with serving(handler, clock=clock, use_reactor=use_reactor, max_send_buffer=1 << 24, **settings) as (
        hub,
        url,
    ):
        with socket.socket() as slow:
            # The hub cannot see what the peer's kernel has buffered.
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            slow.connect(("127.0.0.1", port_of(url)))
            slow.sendall(REQUEST)
            connection = await opened
            connection.send(bytes(1_500_000))
            for _ in range(20):
                await asyncio.sleep(0)
            assert connection.buffered == 0
            for _ in range(15):
                taken = 0
                while taken < 50_000:
                    taken += len(slow.recv(1 << 14))
                connection.send(bytes(more))
                await asyncio.sleep(0.005)
                clock.pass_for(1, hub)
                assert hub.connection_count == 1
            # The peer's kernel accepts a little more before the timeout begins.
            for _ in range(7):
                hub.broadcast(bytes(more))
                await asyncio.sleep(0.005)
                clock.pass_for(1, hub)
            await asyncio.sleep(0.005)
            assert closed.done()


async def test_keepalive_goes_on_while_the_application_is_busy() -> None:
    """The loop was blocked for longer than the timeout; a peer that answered in that time stays connected."""
    import time

    async with (
        serving(EventHandler(), ping_interval_ms=100, pong_timeout_ms=100) as (hub, url),
        connected(url) as client,
    ):
        for _ in range(3):
            # The application blocks the loop, which the client uses too.
            time.sleep(0.25)  # noqa: ASYNC251
            await client.ping()
            for _ in range(5):
                await asyncio.sleep(0)
        assert hub.connection_count == 1
