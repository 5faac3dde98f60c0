"""Rooms whose messages are kept, in one process without a broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import websockets

from tests.support.broker_node import until
from tests.support.serving_hub import Clock, connected, serving
from wshub import Connection, Hub, Message, MisuseError
from wshub.brokers.interface import Gap, HistoryConfig, Position, Publication

KEPT = HistoryConfig(size=5)


def as_json(publication: Publication) -> str:
    return json.dumps([publication.offset, publication.epoch, publication.data, publication.publisher])


class Room:
    """A served hub whose clients come back to one room with the position of their first message."""

    def __init__(self, hub: Hub, url: str) -> None:
        self.hub = hub
        self.url = url

    async def publish(self, *texts: str) -> Position:
        for text in texts:
            published = await self.hub.publish(text, room="room")
            assert published.position is not None
        return published.position


async def serve(connection: Connection) -> None:
    """Answer a client's position with the outcome of the recovery, behind what was sent."""
    async for asked in connection.iter_json():
        position = Position(*asked["position"]) if asked["position"] is not None else None
        recovery = await connection.recover("room", position, limit=asked.get("limit", 10_000))
        connection.send_json([recovery.sent, recovery.gap, recovery.position.offset, recovery.position.epoch])


@contextlib.asynccontextmanager
async def room_with(config: HistoryConfig, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Room]:
    async with serving(serve, clock=clock, **settings) as (hub, url):
        hub.configure_room("room", history=config)
        yield Room(hub, url)


@contextlib.asynccontextmanager
async def back(room: Room, position: Position | None, **further: Any) -> AsyncIterator[Any]:
    async with connected(room.url) as client:
        place = None if position is None else [position.offset, position.epoch]
        await client.send(json.dumps({"position": place, **further}))
        yield client


async def received(client: websockets.ClientConnection, count: int) -> list[str]:
    return [str(await client.recv()) for _ in range(count)]


async def outcome(client: websockets.ClientConnection) -> tuple[int, Gap, Position]:
    sent, gap, offset, epoch = json.loads(await client.recv())
    return sent, gap, Position(offset, epoch)


async def test_offsets_begin_with_one_and_have_no_holes() -> None:
    async with room_with(KEPT) as room:
        positions = [await room.publish(str(number)) for number in range(3)]
        assert [position.offset for position in positions] == [1, 2, 3]
        assert len({position.epoch for position in positions}) == 1
        history = await room.hub.history("room")
        assert [(entry.offset, entry.data) for entry in history.publications] == [(1, "0"), (2, "1"), (3, "2")]
        assert history.position == positions[-1]


async def test_a_client_gets_what_it_has_missed_and_then_what_follows() -> None:
    async with room_with(KEPT) as room:
        first = await room.publish("1")
        await room.publish("2", "3")
        async with back(room, first) as client:
            assert await received(client, 2) == ["2", "3"]
            assert await outcome(client) == (2, "", Position(3, first.epoch))
            room.hub.broadcast("4", room="room")
            assert await received(client, 1) == ["4"]


async def test_a_client_that_has_nothing_gets_a_position_to_begin_with() -> None:
    async with room_with(KEPT) as room:
        async with back(room, None) as client:
            sent, gap, position = await outcome(client)
            assert (sent, gap, position.offset) == (0, "", 0)
        await room.publish("1", "2")
        async with back(room, position) as client:
            assert await received(client, 2) == ["1", "2"]


async def test_a_client_that_has_missed_more_than_is_kept_is_told_and_gets_what_follows() -> None:
    async with room_with(KEPT) as room:
        first = await room.publish("1")
        await room.publish(*map(str, range(2, 8)))
        async with back(room, first) as client:
            assert await outcome(client) == (0, "trimmed", Position(7, first.epoch))
            await room.publish("8")
            assert await received(client, 1) == ["8"]


async def test_a_client_may_have_missed_more_than_the_handler_wants_to_send() -> None:
    async with room_with(KEPT) as room:
        first = await room.publish("1")
        await room.publish("2", "3", "4")
        async with back(room, first, limit=2) as client:
            assert await outcome(client) == (0, "too_much", Position(4, first.epoch))
        async with back(room, first, limit=3) as client:
            assert await received(client, 3) == ["2", "3", "4"]


@pytest.mark.parametrize("position", [Position(1, "zzzzzzzz"), Position(99, ""), Position(-1, "?"), Position(1, "é")])
async def test_a_position_of_another_epoch_is_told(position: Position) -> None:
    async with room_with(KEPT) as room:
        await room.publish("1", "2")
        async with back(room, position) as client:
            sent, gap, _ = await outcome(client)
            assert (sent, gap) == (0, "epoch")


async def test_a_position_beyond_the_newest_message_is_told() -> None:
    async with room_with(KEPT) as room:
        last = await room.publish("1", "2")
        async with back(room, Position(3, last.epoch)) as client:
            assert (await outcome(client))[:2] == (0, "epoch")


async def test_messages_are_forgotten_and_offsets_go_on() -> None:
    clock = Clock()
    async with room_with(HistoryConfig(ttl_ms=60_000), clock) as room:
        first = await room.publish("1", "2")
        clock.pass_for(61, room.hub)
        history = await room.hub.history("room")
        assert (history.publications, history.position) == ((), first)
        async with back(room, first) as client:
            assert await outcome(client) == (0, "", first)
        async with back(room, Position(1, first.epoch)) as client:
            assert (await outcome(client))[1] == "trimmed"
        assert (await room.publish("3")) == Position(3, first.epoch)


async def test_an_epoch_ends_when_its_offsets_are_forgotten() -> None:
    clock = Clock()
    async with room_with(HistoryConfig(ttl_ms=1000, position_ttl_ms=60_000), clock) as room:
        first = await room.publish("1")
        clock.pass_for(61, room.hub)
        second = await room.publish("1")
        assert second.offset == 1
        assert second.epoch != first.epoch


async def test_members_receive_what_encode_returns_made_once_for_each_message() -> None:
    calls: list[Publication] = []

    def encode(publication: Publication) -> str:
        calls.append(publication)
        return as_json(publication)

    async with room_with(HistoryConfig(encode=encode)) as room:
        async with back(room, None) as one, back(room, None) as two:
            start = (await outcome(one))[2]
            await outcome(two)
            await room.hub.publish("hello", room="room", publisher="ann")
            expected = json.dumps([1, start.epoch, "hello", "ann"])
            assert await received(one, 1) == await received(two, 1) == [expected]
            assert len(calls) == 1
            assert calls[0].time > 1_500_000_000
        async with back(room, start) as one, back(room, start) as two:
            assert await received(one, 1) == await received(two, 1) == [expected]
            assert len(calls) == 2


async def test_an_encode_that_fails_costs_its_message_alone() -> None:
    def encode(publication: Publication) -> str:
        if publication.data == "bad":
            raise ValueError("bad")
        return str(publication.data)

    async with room_with(HistoryConfig(encode=encode)) as room, back(room, None) as client:
        start = (await outcome(client))[2]
        await room.publish("1", "bad", "3")
        assert await received(client, 2) == ["1", "3"]
        async with back(room, start) as other:
            assert await received(other, 2) == ["1", "3"]
            assert (await outcome(other))[:2] == (2, "")


async def test_an_encode_that_publishes_keeps_the_order() -> None:
    hub: Hub | None = None

    def encode(publication: Publication) -> str:
        if publication.data == "ping":
            assert hub is not None
            hub.broadcast("pong", room="room")
        return f"{publication.offset} {publication.data}"

    async with room_with(HistoryConfig(encode=encode)) as room, back(room, None) as client:
        hub = room.hub
        await outcome(client)
        await room.publish("ping")
        assert await received(client, 2) == ["1 ping", "2 pong"]


async def test_the_publisher_may_exclude_itself_and_misses_nothing_when_it_comes_back() -> None:
    async def handle(connection: Connection) -> None:
        connection.user = "ann"
        await connection.recover("room")
        async for message in connection:
            connection.hub.broadcast(message, room="room", exclude=connection, publisher=connection)

    async with serving(handle) as (hub, url):
        hub.configure_room("room", history=HistoryConfig(encode=as_json))
        async with connected(url) as one, connected(url) as two:
            await until(lambda: hub.room_size("room") == 2)
            await one.send("from one")
            await two.send("from two")
            assert json.loads(await two.recv())[2:] == ["from one", "ann"]
            assert json.loads(await one.recv())[2:] == ["from two", "ann"]


async def test_an_idempotency_key_publishes_once() -> None:
    clock = Clock()
    async with room_with(KEPT, clock) as room, back(room, None) as client:
        await outcome(client)
        first = await room.hub.publish("1", room="room", idempotency_key="a")
        again = await room.hub.publish("1", room="room", idempotency_key="a")
        other = await room.hub.publish("2", room="room", idempotency_key="b")
        assert (first.is_duplicate, again.is_duplicate, other.is_duplicate) == (False, True, False)
        assert again.position == first.position
        assert await received(client, 2) == ["1", "2"]
        clock.pass_for(301, room.hub)
        assert not (await room.hub.publish("1", room="room", idempotency_key="a")).is_duplicate


async def test_what_has_no_history_takes_no_key_and_no_recovery() -> None:
    async with room_with(KEPT) as room:
        with pytest.raises(MisuseError, match="idempotency key"):
            await room.hub.publish("1", room="other", idempotency_key="a")
        with pytest.raises(MisuseError, match="configure_room"):
            await room.hub.history("other")


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_history_is_read_in_pages(reverse: bool) -> None:
    async with room_with(HistoryConfig(size=7)) as room:
        last = await room.publish(*map(str, range(10)))
        read: list[int] = []
        since: Position | None = None
        while True:
            page = await room.hub.history("room", since=since, limit=3, reverse=reverse)
            assert page.position == last
            assert not page.gap
            if not page.publications:
                break
            read += [entry.offset for entry in page.publications]
            since = page.publications[-1].position
        assert read == (list(range(10, 3, -1)) if reverse else list(range(4, 11)))


async def test_a_page_is_bounded_in_bytes_and_has_one_message_at_least() -> None:
    async with room_with(KEPT) as room:
        await room.publish("a" * 1000, "b" * 1000, "c" * 1000)
        page = await room.hub.history("room", max_bytes=2100)
        assert [entry.data[0] for entry in page.publications] == ["a", "b"] or len(page.publications) == 1
        page = await room.hub.history("room", max_bytes=1)
        assert len(page.publications) == 1


async def test_what_is_kept_is_bounded_in_bytes() -> None:
    async with room_with(HistoryConfig(size=100, max_bytes=3000)) as room:
        await room.publish(*("x" * 1000 for _ in range(10)))
        assert len((await room.hub.history("room")).publications) == 2
        await room.publish("y" * 10_000)
        assert [entry.data[0] for entry in (await room.hub.history("room")).publications] == ["y"]


async def test_a_slow_client_gets_all_that_it_has_missed_without_a_drop() -> None:
    big = "x" * 100_000
    config = HistoryConfig(size=100, max_bytes=100_000_000)
    async with room_with(config, max_send_buffer=400_000, slow_consumer="drop_newest") as room:
        start = (await room.hub.history("room")).position
        await room.publish(*(f"{number} {big}" for number in range(60)))
        async with back(room, start) as client:
            got = await received(client, 60)
            assert [int(text.split()[0]) for text in got] == list(range(60))
            assert (await outcome(client))[:2] == (60, "")


async def test_messages_while_a_client_comes_back_are_not_missed_or_doubled() -> None:
    big = "x" * 20_000
    config = HistoryConfig(size=500, max_bytes=100_000_000)
    async with room_with(config, max_send_buffer=100_000) as room:
        last = await room.publish(*(f"{number} {big}" for number in range(50)))
        async with back(room, Position(0, last.epoch)) as client:
            numbers: list[int] = []
            outcomes: list[list[Any]] = []
            for number in range(50, 150):
                text = str(await client.recv())
                if text.startswith("["):
                    outcomes.append(json.loads(text))
                else:
                    numbers.append(int(text.split()[0]))
                room.hub.broadcast(f"{number} {big}", room="room")
            while len(numbers) < 150:
                text = str(await client.recv())
                if text.startswith("["):
                    outcomes.append(json.loads(text))
                else:
                    numbers.append(int(text.split()[0]))
            assert numbers == list(range(150))
            while not outcomes:
                outcomes.append(json.loads(await client.recv()))
            ((sent, gap, *_),) = outcomes
            assert not gap
            assert 50 < sent <= 150


async def test_a_binary_message_and_a_message_object_are_kept_as_they_are() -> None:
    async with room_with(KEPT) as room:
        await room.hub.publish(b"\x00\xff", room="room")
        await room.hub.publish(Message("text"), room="room")
        await room.hub.publish("", room="room")
        history = await room.hub.history("room")
        assert [entry.data for entry in history.publications] == [b"\x00\xff", "text", ""]


async def test_a_room_without_members_keeps_what_is_published_from_any_thread() -> None:
    async with room_with(KEPT) as room:
        await asyncio.to_thread(room.hub.broadcast, "from a thread", room="room")
        await asyncio.sleep(0)
        history = await room.hub.history("room")
        assert [entry.data for entry in history.publications] == ["from a thread"]


async def test_a_hub_that_nobody_has_used_yet_keeps_what_is_published() -> None:
    async with Hub() as hub:
        hub.configure_room("news:*", history=KEPT)
        hub.broadcast("1", room="news:a")
        assert [entry.data for entry in (await hub.history("news:a")).publications] == ["1"]
        assert hub.broadcast("1", room="other") == 0


async def test_two_recoveries_of_one_connection_are_refused() -> None:
    outcomes: list[Callable[[], object] | BaseException] = []

    async def handle(connection: Connection) -> None:
        results = await asyncio.gather(connection.recover("room"), connection.recover("room"), return_exceptions=True)
        outcomes.extend(results)
        await connection.receive()

    async with serving(handle) as (hub, url):
        hub.configure_room("room", history=KEPT)
        async with connected(url):
            await until(lambda: outcomes)
            assert hub.room_size("room") == 1


async def test_a_member_that_recovers_gets_no_message_twice() -> None:
    async with room_with(KEPT) as room, back(room, None) as client:
        start = (await outcome(client))[2]
        await room.publish("1")
        assert await received(client, 1) == ["1"]
        await client.send(json.dumps({"position": [start.offset, start.epoch]}))
        assert await received(client, 1) == ["1"]
        await outcome(client)
        await room.publish("2")
        assert await received(client, 1) == ["2"]


async def test_the_counts_of_histories() -> None:
    async with room_with(KEPT) as room:
        first = await room.publish("1")
        async with back(room, first) as client:
            await outcome(client)
            async with back(room, Position(1, "zzzzzzzz")) as other:
                await outcome(other)
                stats = room.hub.stats().history
                assert stats is not None
                assert stats.rooms == 1
                assert stats.recoveries == {"complete": 1, "epoch": 1}
    assert Hub().stats().history is None
