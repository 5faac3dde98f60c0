"""A client that has missed much gets it in pieces, beside everything else that the hub does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from tests.support.broker_node import until
from tests.support.serving_hub import Clock, connected, serving
from wshub import Connection, ConnectionClosed, Hub, Recovery
from wshub.brokers.interface import HistoryConfig, Position, Publication
from wshub.core import histories
from wshub.core.histories import PIECE_BYTES, PIECE_MESSAGES, PIECES_PER_ITERATION
from wshub.core.history_window import LIVE_MESSAGES, PAGES_BYTES, HistoryWindow, Page, Prepared
from wshub.core.turns import Turns

MANY = 5000
ALL = HistoryConfig(size=2 * MANY, max_bytes=1 << 30)


class Recoveries:
    """A served hub whose clients come back to one room, and what has become of them."""

    def __init__(self, hub: Hub, url: str) -> None:
        self.hub = hub
        self.url = url
        self.connections: list[Connection] = []
        self.outcomes: list[Recovery | Exception] = []

    @property
    def sent(self) -> int:
        """The number of messages that clients were sent."""
        return self.hub.stats().messages_accepted

    async def publish(self, *texts: str) -> Position:
        for text in texts:
            published = await self.hub.publish(text, room="room")
            assert published.position is not None
        return published.position


@contextlib.asynccontextmanager
async def recoveries(config: HistoryConfig, **settings: Any) -> AsyncIterator[Recoveries]:
    async def serve(connection: Connection) -> None:
        world.connections.append(connection)
        async for asked in connection.iter_json():
            try:
                world.outcomes.append(await connection.recover("room", Position(*asked), limit=10 * MANY))
            except ConnectionClosed as error:
                world.outcomes.append(error)
                raise
            connection.send("back")

    async with serving(serve, **settings) as (hub, url):
        hub.configure_room("room", history=config)
        world = Recoveries(hub, url)
        yield world


@contextlib.asynccontextmanager
async def back(world: Recoveries, position: Position) -> AsyncIterator[websockets.ClientConnection]:
    async with connected(world.url) as client:
        await client.send(json.dumps([position.offset, position.epoch]))
        yield client


async def until_back(client: websockets.ClientConnection) -> list[str]:
    """Return what the client gets until it is back."""
    got: list[str] = []
    while (text := str(await client.recv())) != "back":
        got.append(text)
    return got


async def test_no_iteration_of_the_loop_has_more_than_a_piece_of_it() -> None:
    made = 0

    def encode(publication: Publication) -> str:
        nonlocal made
        made += 1
        return str(publication.data)

    config = HistoryConfig(size=2 * MANY, max_bytes=1 << 30, encode=encode)
    async with recoveries(config) as world:
        last = await world.publish(*map(str, range(MANY)))
        most_sent = most_made = 0
        async with back(world, Position(0, last.epoch)) as client:
            reading = asyncio.create_task(until_back(client))
            while not reading.done():
                sent, before = world.sent, made
                await asyncio.sleep(0)
                most_sent = max(most_sent, world.sent - sent)
                most_made = max(most_made, made - before)
            assert await reading == list(map(str, range(MANY)))
        assert 0 < most_sent <= PIECE_MESSAGES + 1
        assert 0 < most_made <= PIECE_MESSAGES
        history = world.hub._histories.cursors.get("room")  # type: ignore[union-attr]
        if history is not None and history.window is not None:
            assert history.window._pages_bytes <= PAGES_BYTES


async def test_messages_that_follow_come_behind_those_that_were_missed() -> None:
    async with recoveries(ALL, max_send_buffer=20_000) as world:
        last = await world.publish(*map(str, range(MANY)))
        async with back(world, Position(0, last.epoch)) as client:
            reading = asyncio.create_task(until_back(client))
            number = MANY
            while not reading.done():
                for _ in range(3):
                    world.hub.broadcast(str(number), room="room")
                    number += 1
                await asyncio.sleep(0)
                if number > 2 * MANY:
                    await asyncio.sleep(0.001)
            got = await reading
            await world.publish("last")
            while got[-1] != "last":
                got.append(str(await client.recv()))
        assert got == [*map(str, range(number)), "last"]
        (recovery,) = world.outcomes
        assert isinstance(recovery, Recovery)
        assert recovery.is_complete
        assert recovery.sent >= MANY


async def test_clients_that_come_back_together_share_what_is_read() -> None:
    async with recoveries(ALL) as world:
        last = await world.publish(*map(str, range(1000)))
        reads = world.hub.stats().history.reads  # type: ignore[union-attr]
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(back(world, Position(number % 7, last.epoch))) for number in range(12)
            ]
            for number, got in enumerate(await asyncio.gather(*map(until_back, clients))):
                assert got == list(map(str, range(number % 7, 1000)))
        pages = 1000 // PIECE_MESSAGES + 1
        assert world.hub.stats().history.reads - reads < 4 * pages  # type: ignore[union-attr]


async def test_a_connection_that_closes_ends_its_recovery() -> None:
    async with recoveries(ALL, max_send_buffer=2000) as world:
        last = await world.publish(*("x" * 1000 for _ in range(MANY)))
        async with back(world, Position(0, last.epoch)) as client:
            await until(lambda: world.sent)
            client.transport.abort()
            await until(lambda: world.outcomes)
        (outcome,) = world.outcomes
        assert isinstance(outcome, ConnectionClosed)
        histories = world.hub._histories
        assert histories is not None
        assert not histories.returning
        await until(lambda: not histories.cursors)


@pytest.mark.parametrize("joins_again", [False, True], ids=["for good", "and joined again"])
async def test_a_room_that_is_left_meanwhile_is_not_joined(joins_again: bool) -> None:
    async with recoveries(ALL, max_send_buffer=2000) as world:
        last = await world.publish(*(str(number) + "x" * 1000 for number in range(MANY)))
        async with back(world, Position(0, last.epoch)) as client:
            await until(lambda: world.sent)
            (connection,) = world.connections
            connection.leave("room")
            if joins_again:
                connection.join("room")
            assert "room" not in connection.rooms
            got = await until_back(client)
            (recovery,) = world.outcomes
            assert isinstance(recovery, Recovery)
            assert len(got) == recovery.sent == recovery.position.offset
            assert ("room" in connection.rooms) is joins_again
            assert (recovery.position == last) is joins_again
            await world.publish("next")
            if joins_again:
                assert await client.recv() == "next"
            else:
                connection.send("end")
                assert await client.recv() == "end"


async def test_what_a_connection_has_not_got_itself_it_does_not_get_when_it_recovers() -> None:
    async with recoveries(HistoryConfig()) as world:
        start = (await world.hub.history("room")).position
        async with back(world, start) as client, back(world, start) as other:
            assert await until_back(client) == await until_back(other) == []
            own = next(one for one in world.connections if one.remote_address == client.local_address)
            world.hub.broadcast("mine", room="room", exclude=own, publisher="ann")
            world.hub.broadcast("all", room="room")
            assert [await other.recv() for _ in range(2)] == ["mine", "all"]
            assert await client.recv() == "all"
            for one, expected in ((client, ["all"]), (other, ["mine", "all"])):
                await one.send(json.dumps([start.offset, start.epoch]))
                assert await until_back(one) == expected
        # Another connection of the same client gets it.
        async with back(world, start) as client:
            assert await until_back(client) == ["mine", "all"]


async def test_each_waits_for_its_turn_and_none_is_passed_over() -> None:
    turns = Turns(asyncio.get_running_loop(), 2)
    order: list[tuple[int, int]] = []
    iteration = 0

    async def work(name: int) -> None:
        for _ in range(3):
            await turns.wait()
            order.append((iteration, name))

    tasks = [asyncio.create_task(work(name)) for name in range(5)]
    gone = asyncio.create_task(work(99))
    await asyncio.sleep(0)
    gone.cancel()
    while not all(task.done() for task in tasks):
        iteration += 1
        await asyncio.sleep(0)
    assert [name for _, name in order] == [*range(5)] * 3
    iterations = [iteration for iteration, _ in order]
    assert all(iterations.count(each) <= 2 for each in iterations)


def test_a_window_has_each_message_behind_an_offset_or_asks_for_its_page() -> None:
    chance = random.Random(7)
    for _ in range(60):
        # Some brokers leave offsets out.
        offsets = sorted(chance.sample(range(1, 3000), 1000))
        at = chance.randrange(1000)
        window = HistoryWindow(offsets[at - 1] if at else 0)
        newest = offsets[at - 1] if at else 0
        for _ in range(60):
            if chance.random() < 0.3 and at < 1000:
                for _ in range(min(chance.randrange(100), 1000 - at)):
                    window.append(prepared(offsets[at]))
                    newest = offsets[at]
                    at += 1
            client = chance.choice([0, *offsets[:at]])
            limit, max_bytes = chance.randrange(1, 50), chance.randrange(1, 5000)
            page = window.following(client, limit, max_bytes)
            kept = [offset for offset in offsets[:at] if offset > client]
            if page is None:
                count = chance.randrange(1, 200)
                read = kept[:count]
                end = read[-1] if len(read) == count else newest
                window.add(Page(client, end, [prepared(offset) for offset in read]))
                continue
            found = [each.offset for each in page.messages]
            assert found == kept[: len(found)]
            assert len(found) <= limit
            assert len(found) == 1 or sum(each.size for each in page.messages) <= max_bytes
            assert page.end == newest or page.end > client
            assert [offset for offset in kept if offset <= page.end] == found


def prepared(offset: int) -> Prepared:
    return Prepared(offset, None, None, offset % 400)


def test_a_window_is_bounded() -> None:
    window = HistoryWindow(0)
    for offset in range(1, 20_001):
        window.append(Prepared(offset, None, None, 1000))
    assert len(window._live) <= 2 * LIVE_MESSAGES
    assert window.following(0, 10, 1000) is None
    for start in range(0, 18_000, 100):
        window.add(Page(start, start + 100, [Prepared(start + each, None, None, 1000) for each in range(1, 101)]))
    assert window._pages_bytes <= PAGES_BYTES
    assert window._pages_bytes == sum(page.size for page in window._pages.values())
    assert window._starts == sorted(window._pages)
    window.add(Page(19_000, 19_001, [Prepared(19_001, None, None, 100 * PAGES_BYTES)]))
    assert list(window._pages) == [19_000]
    assert PIECE_BYTES <= PAGES_BYTES
    assert PIECES_PER_ITERATION >= 1


async def test_windows_that_were_not_used_lately_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(histories, "WINDOWS_BYTES", 100_000)

    async def serve(connection: Connection) -> None:
        async for name, *place in connection.iter_json():
            await connection.recover(name, Position(*place))
            connection.send("back")

    async with serving(serve, clock=clock) as (hub, url), connected(url) as client:
        hub.configure_room("*", history=HistoryConfig())
        kept = []
        for name in ("a", "b", "c"):
            for _ in range(4):
                published = await hub.publish("x" * 10_000, room=name)
            assert published.position is not None
            await client.send(json.dumps([name, 0, published.position.epoch]))
            assert len(await until_back(client)) == 4
            kept.append(hub._histories.cursors[name])  # type: ignore[union-attr]
            clock.now += 1
        assert all(history.window is not None for history in kept)
        hub._histories.sweep(clock.now)  # type: ignore[union-attr]
        assert [history.window is not None for history in kept] == [False, True, True]
        # A client is served all the same.
        await client.send(json.dumps(["a", 2, kept[0].epoch]))
        assert len(await until_back(client)) == 2


async def test_more_than_the_limit_is_counted_before_anything_is_sent() -> None:
    outcomes: list[Recovery] = []

    async def serve(connection: Connection) -> None:
        async for offset, epoch, limit in connection.iter_json():
            outcomes.append(await connection.recover("room", Position(offset, epoch), limit=limit))

    async with serving(serve) as (hub, url), connected(url) as client:
        hub.configure_room("room", history=HistoryConfig(size=3000))
        for number in range(4000):
            published = await hub.publish(str(number), room="room")
        assert published.position is not None
        epoch = published.position.epoch
        for offset, limit, gap in ((1000, 2999, "too_much"), (500, 10, "trimmed"), (3900, 99, "too_much")):
            await client.send(json.dumps([offset, epoch, limit]))
            await until(lambda: outcomes)
            recovery = outcomes.pop()
            assert (recovery.sent, recovery.gap, recovery.position) == (0, gap, published.position)
        await client.send(json.dumps([3900, epoch, 100]))
        assert [await client.recv() for _ in range(100)] == list(map(str, range(3900, 4000)))
