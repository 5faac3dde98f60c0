"""Limits on stalled, idle and old connections, with a clock that the tests control."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.support.raw_peers import raw_peer, read_slowly
from tests.support.serving_hub import Clock, serving
from wshub import Connection, EventHandler, Frame, Hub


async def until(hub: Hub, connections: int) -> None:
    while hub.connection_count != connections:
        await asyncio.sleep(0)


def opened_and_closed() -> tuple[EventHandler, asyncio.Future[Connection], asyncio.Future[tuple[int, str]]]:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Connection] = loop.create_future()
    closed: asyncio.Future[tuple[int, str]] = loop.create_future()
    handler = EventHandler(
        on_open=opened.set_result,
        on_close=lambda connection, code, reason: closed.set_result((code, reason)),
    )
    return handler, opened, closed


async def test_a_peer_that_takes_nothing_is_ended_although_it_sends(clock: Clock) -> None:
    handler, opened, closed = opened_and_closed()
    # A queue so large that the hub still reads the peer's messages.
    settings = {"max_send_buffer": 1 << 25}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        connection.send(bytes(16_000_000))
        await asyncio.sleep(0.1)
        # The first sweep notices that no byte is written.
        clock.pass_for(1, hub)
        for _ in range(9):
            clock.pass_for(1, hub)
            peer.send(Frame.text("I live"))
            await asyncio.sleep(0.001)
            assert hub.connection_count == 1
        # The peer sends messages between the sweeps that detect the stall.
        for _ in range(3):
            peer.send(Frame.text("I live"))
            await asyncio.sleep(0.001)
            clock.pass_for(1, hub)
        await asyncio.sleep(0.01)
        assert closed.done()
        assert await closed == (1006, "the peer does not read")
        counts = hub.stats()
        assert counts.messages_accepted == 1 == counts.messages_delivered + counts.dropped.closed


async def test_a_peer_that_reads_slowly_is_not_taken_for_stalled(clock: Clock) -> None:
    handler, opened, _ = opened_and_closed()
    async with serving(handler, clock=clock) as (hub, url), raw_peer(url, limit=4096) as peer:
        connection = await opened
        connection.send(bytes(16_000_000))
        left = 16_000_010
        while left > 0:
            # The kernel may not report small reads, so the peer reads as much as the buffers hold.
            for _ in range(200):
                left -= len(await peer.reader.read(16_384)) if left > 0 else 0
            before = connection.buffered
            clock.pass_for(9, hub)
            peer.send(Frame.pong())
            while connection.buffered == before and left > 0:
                left -= len(await peer.reader.read(16_384))
        assert hub.connection_count == 1


async def test_an_idle_connection_is_closed_and_pings_do_not_keep_it(clock: Clock) -> None:
    handler, opened, closed = opened_and_closed()
    settings = {"idle_timeout_ms": 60_000, "pong_timeout_ms": 2**31}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        for _ in range(3):
            clock.pass_for(50, hub)
            connection.send("something")
            clock.pass_for(50, hub)
            received = hub.stats().messages_received
            peer.send(Frame.text("something"))
            while hub.stats().messages_received == received:
                await asyncio.sleep(0)
        clock.pass_for(1, hub)
        for _ in range(5):
            clock.pass_for(10, hub)
            peer.send(Frame.ping())
            await asyncio.sleep(0.001)
        assert connection.close_code is None
        clock.pass_for(10, hub)
        assert await peer.close_code() == 1001
        peer.send(Frame.close(1001))
        peer.writer.close()
        assert (await closed)[0] == 1001


async def test_connections_that_reach_their_age_leave_over_a_tenth_of_it(clock: Clock) -> None:
    settings = {"max_lifetime_ms": 1_000_000, "ping_interval_ms": 2**31}
    async with serving(EventHandler(on_open=lambda it: it.join("all")), clock=clock, **settings) as (hub, url):
        peers = [raw_peer(url) for _ in range(20)]
        entered = [await peer.__aenter__() for peer in peers]
        await until(hub, 20)
        clock.pass_for(899, hub)
        rest = []
        for _ in range(11):
            rest.append(hub.room_size("all"))
            clock.pass_for(10, hub)
            await asyncio.sleep(0.001)
        assert rest[0] == 20
        assert rest[-1] == 0
        assert all(earlier - later <= 4 for earlier, later in itertools.pairwise(rest))
        assert await entered[0].close_code() == 1001
        for peer in peers:
            await peer.__aexit__(None, None, None)


@pytest.mark.parametrize("jump", [-3600.0, 86_400.0 * 365])
async def test_a_clock_that_jumps_costs_no_connection_that_answers(clock: Clock, jump: float) -> None:
    """A monotonic clock never goes back. It may jump ahead after the machine was suspended."""

    handler, opened, _ = opened_and_closed()
    async with serving(handler, clock=clock) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        clock.pass_for(jump, hub)
        connection.send("still there")
        assert (await peer.frame()).payload in (b"", b"still there")
        peer.send(Frame.pong())
        while not connection.last_pong_time:
            await asyncio.sleep(0)
        clock.pass_for(1, hub)
        assert hub.connection_count == 1


async def test_a_slow_reader_is_not_stalled_while_the_kernel_sees_it_take_something(clock: Clock) -> None:
    """Epoll reports free space only above a third of the kernel's buffer."""

    handler, opened, _ = opened_and_closed()
    settings = {"send_timeout_ms": 2000, "ping_interval_ms": 1_000_000}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url, limit=4096) as peer:
        connection = await opened
        connection.send(bytes(32_000_000))
        await asyncio.sleep(0.1)
        await read_slowly(peer, hub, clock, seconds=40)


@pytest.mark.parametrize("use_reactor", [True, False])
@pytest.mark.parametrize("end", ["slow", "close", "hub"])
@pytest.mark.parametrize("seconds_before", [0, 3])
async def test_a_closing_peer_that_reads_nothing_is_ended_after_the_shorter_timeout(
    clock: Clock, use_reactor: bool, end: str, seconds_before: int
) -> None:
    handler, opened, closed = opened_and_closed()
    settings = {"send_timeout_ms": 5_000, "close_timeout_ms": 60_000, "use_reactor": use_reactor}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        peer.writer.transport.pause_reading()
        connection = await opened
        while not connection.buffered:
            connection.send(bytes(50_000))
            await asyncio.sleep(0)
        # Let the kernels accept now what they can.
        await asyncio.sleep(0.05)
        clock.pass_for(0.5, hub)
        for _ in range(seconds_before):
            clock.pass_for(1, hub)
        closing = None
        if end == "slow":
            while connection.state.name == "OPEN":
                connection.send(bytes(50_000))
        elif end == "close":
            connection.close()
        else:
            closing = asyncio.create_task(hub.close())
            await asyncio.sleep(0)
        # Stalled time from before the close counts too. The kernel may still accept a little.
        sweeps = 0
        while not closed.done():
            clock.pass_for(1, hub)
            await asyncio.sleep(0.001)
            sweeps += 1
        assert 5 - seconds_before <= sweeps < 20
        if closing is not None:
            await closing


async def test_a_closing_peer_that_takes_what_waits_has_all_the_time_for_closing(clock: Clock) -> None:
    handler, opened, _ = opened_and_closed()
    settings = {"send_timeout_ms": 2_000, "close_timeout_ms": 8_000, "max_send_buffer": 1 << 25}
    async with serving(handler, clock=clock, **settings) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        connection.send(bytes(1 << 24))
        connection.close()
        await read_slowly(peer, hub, clock, seconds=7)
        clock.pass_for(1, hub)
        await until(hub, 0)
