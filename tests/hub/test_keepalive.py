"""Pings, dead peers and the hub's clock, which these tests own."""

from __future__ import annotations

import asyncio

import pytest

from tests.hub.conftest import serving
from tests.hub.peers import raw_peer
from wshub import EventHandler, Frame, Opcode


def test_a_ping_goes_out_when_it_is_due_and_not_before(run, clock) -> None:
    async def scenario() -> None:
        opened = asyncio.get_running_loop().create_future()
        async with serving(EventHandler(on_open=opened.set_result), clock=clock) as (hub, url), raw_peer(url) as peer:
            connection = await opened
            clock.now += 26
            hub._sweep()
            assert connection.last_ping_time == 0
            clock.now += 4
            hub._sweep()
            assert connection.last_ping_time == 1030
            assert (await peer.frame()).opcode is Opcode.PING
            peer.send(Frame.pong())
            while not connection.last_pong_time:
                await asyncio.sleep(0)
            assert connection.last_pong_time == 1030

    run(scenario())


def test_pings_of_many_connections_are_spread_over_a_tenth_of_the_interval(run, clock) -> None:
    async def scenario() -> None:
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
            assert due[27] == 0
            assert 0 < due[29] < 20
            assert all(connection.last_ping_time for connection in connections)
            for peer in peers:
                await peer.__aexit__(None, None, None)

    run(scenario())


@pytest.mark.parametrize("kind", ["handlers", "endpoint"])
def test_a_peer_that_is_silent_after_a_ping_is_ended_with_1006(run, clock, kind) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_any_frame_counts_as_life(run, clock) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_a_handler_that_is_slow_is_not_held_against_its_peer(run, clock) -> None:
    async def scenario() -> None:
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

    run(scenario())
