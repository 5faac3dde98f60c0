"""Limits on what a connection may do per second, and the response to more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.support.raw_peers import masked, raw_peer
from tests.support.serving_hub import Clock, serving
from wshub import ConfigurationError, EventHandler, Frame, Hub, HubConfig, Opcode, RateLimits


async def settled(hub: Hub) -> int:
    """Return the number of received messages once it stops changing."""
    return await unchanged(lambda: hub.stats().messages_received)


async def unchanged(look: Callable[[], int]) -> int:
    """Return a number once it stays the same. A single pause may end before the loop has read anything."""
    seen, same = look(), 0
    while same < 5:
        await asyncio.sleep(0.003)
        before, seen = seen, look()
        same = same + 1 if seen == before else 0
    return seen


@pytest.mark.parametrize("endpoint", [False, True])
async def test_who_sends_too_many_messages_is_read_later(clock: Clock, endpoint: bool) -> None:
    received = []

    def take(_, message) -> None:
        received.append(int(message.data))

    async def receive(connection) -> None:
        async for message in connection:
            take(connection, message)

    handler = receive if endpoint else EventHandler(on_message=take)
    rates = RateLimits(messages=10, burst_ms=1000)
    async with serving(handler, clock=clock, rates=rates) as (hub, url), raw_peer(url) as peer:
        for number in range(35):
            peer.send(Frame.text(f"{number}"))
        assert await settled(hub) == 11
        clock.pass_for(0.05, hub)
        assert await settled(hub) == 11
        clock.pass_for(1, hub)
        assert await settled(hub) == 21
        clock.pass_for(100, hub)
        assert await settled(hub) == 32
        clock.pass_for(1, hub)
        assert await settled(hub) == 35
        assert received == list(range(35))
        assert hub.stats().rates_exceeded == 3
        peer.send(Frame.close(1000))
        assert await peer.close_code() == 1000


async def test_who_sends_too_many_messages_is_closed_where_that_is_configured(clock: Clock, caplog) -> None:
    rates = RateLimits(messages=10, burst_ms=1000, excess="close")
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    async with serving(handler, clock=clock, rates=rates) as (hub, url):
        for _ in range(2):
            async with raw_peer(url) as peer:
                for number in range(11):
                    peer.send(Frame.text(f"secret {number}"))
                frames = [await peer.frame() for _ in range(11)]
                assert [frame.opcode for frame in frames] == [Opcode.TEXT] * 10 + [Opcode.CLOSE]
                assert frames[-1].payload == b"\x03\xf0more messages than allowed"
        assert hub.stats().rates_exceeded == 2
        assert len([record for record in caplog.records if "rates" in record.message]) == 1
        assert "secret" not in caplog.text


async def test_bytes_are_bounded_within_a_large_message_too(clock: Clock) -> None:
    rates = RateLimits(bytes=1_000_000, burst_ms=1000)
    async with (
        serving(EventHandler(), clock=clock, rates=rates, max_message_size=2**24) as (hub, url),
        raw_peer(url) as peer,
    ):
        before = hub.stats().bytes_received
        peer.send(Frame.binary(bytes(4_000_000)))
        total = []
        for _ in range(5):
            total.append(await unchanged(lambda: hub.stats().bytes_received))
            clock.pass_for(1, hub)
        assert 1_000_000 < total[0] < 1_400_000
        assert total[2] < 3_600_000
        assert total[4] - before == 4_000_014
        assert await settled(hub) == 1


async def test_pings_beyond_the_rate_are_answered_later(clock: Clock) -> None:
    rates = RateLimits(control_frames=10, burst_ms=1000)
    async with serving(EventHandler(), clock=clock, rates=rates) as (hub, url), raw_peer(url) as peer:
        for number in range(15):
            peer.send(Frame.ping(f"{number}"))
        assert [(await peer.frame()).payload for _ in range(11)] == [b"%d" % number for number in range(11)]
        clock.pass_for(1, hub)
        assert [(await peer.frame()).payload for _ in range(4)] == [b"%d" % number for number in range(11, 15)]


async def test_a_handler_that_takes_too_much_of_the_loop_delays_its_own_connection_only(clock: Clock) -> None:
    def on_message(connection, message) -> None:
        clock.now += float(message.data)
        connection.send(message)

    rates = RateLimits(handler_ms=100, burst_ms=1000)
    async with (
        serving(EventHandler(on_message=on_message), clock=clock, rates=rates) as (hub, url),
        raw_peer(url) as greedy,
        raw_peer(url) as modest,
    ):
        greedy.send(Frame.text("0.06"))
        greedy.send(Frame.text("0.06"))
        greedy.send(Frame.text("0.0"))
        assert [(await greedy.frame()).payload for _ in range(2)] == [b"0.06"] * 2
        modest.send(Frame.text("0.01"))
        assert (await modest.frame()).payload == b"0.01"
        assert await settled(hub) == 3
        hub._sweep()
        clock.pass_for(1, hub)
        assert (await greedy.frame()).payload == b"0.0"


async def test_a_message_in_more_fragments_than_allowed_is_1008_and_empty_ones_count() -> None:
    for payload in (b"", b"x"):
        async with serving(EventHandler(), max_fragments=1000) as (_, url), raw_peer(url) as peer:
            peer.send(Frame(Opcode.BINARY, payload, fin=False))
            for _ in range(1001):
                peer.send(Frame(Opcode.CONTINUATION, payload, fin=False))
            assert await peer.close_code() == 1008
        async with serving(EventHandler(), max_fragments=1000) as (hub, url), raw_peer(url) as peer:
            for _ in range(2):
                peer.send(Frame(Opcode.BINARY, payload, fin=False))
                for _ in range(999):
                    peer.send(Frame(Opcode.CONTINUATION, payload, fin=False))
                peer.send(Frame(Opcode.CONTINUATION, payload))
            assert await settled(hub) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", -1),
        ("bytes", 1.5),
        ("control_frames", None),
        ("handler_ms", 1001),
        ("burst_ms", 0),
        ("excess", "no"),
    ],
)
def test_rates_that_cannot_be_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RateLimits(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rates"):
        HubConfig(rates=5)  # type: ignore[arg-type]


async def test_who_is_held_to_a_rate_can_be_closed_at_once(clock: Clock) -> None:
    opened = asyncio.get_running_loop().create_future()
    closed = asyncio.get_running_loop().create_future()
    handler = EventHandler(
        on_open=opened.set_result,
        on_message=lambda connection, message: None,
        on_close=lambda connection, code, reason: closed.set_result(code),
    )
    rates = RateLimits(messages=1, burst_ms=1000)
    async with serving(handler, clock=clock, rates=rates) as (hub, url), raw_peer(url) as peer:
        connection = await opened
        for _ in range(100):
            peer.send(Frame.text("too much"))
        await settled(hub)
        connection.close(4000, "enough")
        assert await peer.close_code() == 4000
        peer.send(Frame.close(4000))
        peer.writer.write_eof()
        # The clock stands still.
        assert await closed == 4000


@pytest.mark.parametrize("rates", [RateLimits(messages=1000, burst_ms=1), RateLimits(control_frames=1000, burst_ms=1)])
async def test_a_short_burst_does_not_lower_the_rate(clock: Clock, rates: RateLimits) -> None:
    frame = Frame.text("x") if rates.messages else Frame.pong(b"x")

    handled = []
    handler = EventHandler(
        on_message=lambda connection, message: handled.append(message),
        on_pong=lambda connection, payload: handled.append(payload),
    )
    async with serving(handler, clock=clock, rates=rates) as (hub, url), raw_peer(url) as peer:
        for _ in range(3000):
            peer.send(frame)
        seconds = 0.0
        while len(handled) < 3000 and seconds < 10:
            await unchanged(lambda: len(handled))
            clock.pass_for(rates.sweep_period, hub)
            seconds += rates.sweep_period
        assert 1.9 <= seconds <= 3.1


@pytest.mark.parametrize("excess", ["delay", "close"])
async def test_who_goes_on_sending_when_it_is_closed_is_not_read_without_end(clock: Clock, excess) -> None:
    opened = asyncio.get_running_loop().create_future()
    closed = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result, on_close=lambda connection, code, reason: closed.set_result(code))
    rates = RateLimits(messages=10, bytes=10_000, excess=excess)
    async with serving(handler, clock=clock, rates=rates) as (hub, url), raw_peer(url) as peer:
        (await opened).close(4000)
        assert await peer.close_code() == 4000
        message = masked(Frame.binary(bytes(100)))
        # Send several times what the kernel can buffer. The clock stands still.
        for _ in range(64):
            peer.write(message * 5000)
            await asyncio.sleep(0)
            if closed.done():
                break
        assert await closed == 1006
        assert hub.stats().bytes_received < 5 << 20
