"""``latency_ms`` is the round-trip time of the last answered ping."""

from __future__ import annotations

import asyncio

from tests.support.raw_peers import raw_peer
from tests.support.serving_hub import connected, serving
from wshub import EventHandler, Frame


async def ponged(connection) -> None:
    """Wait for one more pong."""
    before = connection.last_pong_time
    while connection.last_pong_time == before:
        await asyncio.sleep(0)


async def test_it_is_measured_from_the_ping_of_the_hub_to_the_first_pong(clock) -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), clock=clock) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        assert connection.latency_ms is None
        # A pong that nothing has asked for.
        peer.send(Frame.pong(b"unsolicited"))
        await ponged(connection)
        assert connection.latency_ms is None
        clock.pass_for(30, hub)
        assert connection.last_ping_time == 1030
        assert connection.latency_ms is None
        clock.now += 0.25
        peer.send(Frame.pong())
        await ponged(connection)
        assert connection.latency_ms == 250
        clock.now += 1
        peer.send(Frame.pong())
        await ponged(connection)
        assert connection.latency_ms == 250
        # It stays while the next ping is unanswered.
        clock.pass_for(29, hub)
        assert connection.last_ping_time == clock.now
        assert connection.latency_ms == 250
        clock.now += 0.0625
        peer.send(Frame.pong())
        await ponged(connection)
        assert connection.latency_ms == 62.5


async def test_a_ping_of_the_application_counts_from_the_first_that_is_unanswered(clock) -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), clock=clock) as (_, url), raw_peer(url) as peer:
        connection = await opened
        connection.send_ping(b"1")
        clock.now += 0.5
        connection.send_ping(b"2")
        clock.now += 0.5
        peer.send(Frame.pong(b"1"))
        await ponged(connection)
        assert connection.latency_ms == 1000
        clock.now += 1
        peer.send(Frame.pong(b"2"))
        await ponged(connection)
        assert connection.latency_ms == 1000


async def test_a_clock_that_stands_still_gives_zero_and_a_very_long_time_is_bounded(clock) -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), clock=clock) as (_, url), raw_peer(url) as peer:
        connection = await opened
        for seconds, latency in ((0, 0), (100_000, 4_000_000)):
            connection.send_ping()
            clock.now += seconds
            peer.send(Frame.pong())
            clock.now += 1e-9
            await ponged(connection)
            assert abs(connection.latency_ms - latency) < 0.01


async def test_a_client_of_this_machine_answers_within_a_second() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result)) as (_, url), connected(url):
        connection = await opened
        connection.send_ping()
        await ponged(connection)
        assert 0 < connection.latency_ms < 1000
