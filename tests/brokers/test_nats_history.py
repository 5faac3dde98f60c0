"""Histories in JetStream: one order, recovery since a position, keys, limits and epochs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.broker_node import until
from tests.support.nats_engine import PROGRAMS, NatsEngine, nats_engine_of, running_nats
from wshub.brokers.nats_connection import MessageSink
from wshub.brokers.nats_history import JetStreamHistory, StoredHead, StoredPosition, head_of
from wshub.brokers.nats_streams import Storage, StreamLimits
from wshub.brokers.nats_subjects import SubjectNames
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

LIMITS = StreamLimits(size=10)


def jetstream(engine: NatsEngine) -> str:
    return f"jetstream {{ store_dir: {engine.directory!r} }}\n"


@contextlib.contextmanager
def running_jetstream(kind: str) -> Iterator[NatsEngine]:
    with nats_engine_of(kind) as engine:
        engine.configure(jetstream(engine))
        engine.start()
        yield engine


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param) as engine:
        yield engine


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> str:
    """The name of a hub that no other test has."""
    return request.node.name


class Node:
    """A connection, its history, and what arrives on a channel."""

    def __init__(self, client: Client, hub: str, storage: Storage) -> None:
        self.client = client
        self.hub = hub
        self.history = JetStreamHistory(client, "wshub", hub, storage=storage)
        self.arrived: list[tuple[StoredHead | None, bytes]] = []

    async def listen(self, channel: str) -> None:
        subject = SubjectNames("wshub", self.hub).subject(channel)
        await self.client.subscribe(subject, future=MessageSink(self._take))
        await self.client.flush()

    def _take(self, message: Msg) -> None:
        self.arrived.append((head_of(message.headers), message.data))


@contextlib.asynccontextmanager
async def node(engine: NatsEngine, hub: str, storage: Storage = "memory") -> AsyncIterator[Node]:
    client = await nats.connect(engine.url, allow_reconnect=False)
    try:
        yield Node(client, hub, storage)
    finally:
        await client.close()


async def fill(history: JetStreamHistory, count: int, channel: str = "room:a", size: int = 0) -> list[StoredPosition]:
    positions = []
    for number in range(count):
        published = await history.publish_stored(channel, (b"%d" % number).ljust(size, b" "), LIMITS)
        positions.append(published.position)
    return positions


def texts(found: tuple[tuple[int, bytes], ...]) -> list[int]:
    return [int(envelope) for _, envelope in found]


async def test_an_envelope_is_stored_and_sent_with_its_place(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one, node(engine, hub) as other:
        await other.listen("room:a")
        await one.listen("room:a")
        positions = await fill(one.history, 3)
        await fill(one.history, 2, "room:b")
        positions += await fill(other.history, 1)
        await until(lambda: len(one.arrived) == len(other.arrived) == 4)
        assert one.arrived == other.arrived
        heads = [head for head, _ in one.arrived]
        assert [StoredPosition(head.offset, head.epoch) for head in heads] == positions
        # Each names the one before it on its channel, whatever is stored on others.
        assert [head.previous for head in heads] == [0, *(head.offset for head in heads[:-1])]
        assert len({head.epoch for head in heads}) == 1
        assert len(heads[0].epoch) == 8


async def test_eight_publishers_have_one_order(engine: NatsEngine, hub: str) -> None:
    limits = StreamLimits(size=1000)
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(engine, hub)) for _ in range(8)]
        for each in nodes[:3]:
            await each.listen("room:a")

        async def publish(number: int, each: Node) -> None:
            for count in range(25):
                await each.history.publish_stored("room:a", b"%d" % (number * 100 + count), limits)

        await asyncio.gather(*(publish(number, each) for number, each in enumerate(nodes)))
        await until(lambda: all(len(each.arrived) == 200 for each in nodes[:3]))
        assert nodes[0].arrived == nodes[1].arrived == nodes[2].arrived
        in_order = sorted(nodes[0].arrived)
        if engine.kind == "current":
            assert nodes[0].arrived == in_order
        # With 2.9, now and then one arrives before the one that it names as the one before it.
        offsets = [head.offset for head, _ in in_order]
        assert [head.previous for head, _ in in_order] == [0, *offsets[:-1]]
        stored = await nodes[7].history.history("room:a", limits, limit=1000)
        assert list(stored.envelopes) == [(head.offset, envelope) for head, envelope in in_order]


async def test_a_reader_gets_exactly_what_follows_its_position(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one:
        await fill(one.history, 5, "room:other")
        positions = await fill(one.history, 8)
        for known in range(8):
            found = await one.history.history("room:a", LIMITS, since=positions[known])
            assert texts(found.envelopes) == list(range(known + 1, 8))
            assert (found.position, found.gap) == (positions[-1], "")
        assert [offset for offset, _ in found.envelopes] == []
        all_of_it = await one.history.history("room:a", LIMITS)
        assert [offset for offset, _ in all_of_it.envelopes] == [position.offset for position in positions]


async def test_a_position_before_any_envelope_is_complete(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one:
        empty = await one.history.history("room:a", LIMITS, limit=0)
        assert (empty.envelopes, empty.position.offset, empty.gap) == ((), 0, "")
        again = await one.history.history("room:a", LIMITS, since=empty.position)
        assert again == empty
        await fill(one.history, 10)
        found = await one.history.history("room:a", LIMITS, since=empty.position)
        assert (texts(found.envelopes), found.gap) == (list(range(10)), "")
        await fill(one.history, 1)
        found = await one.history.history("room:a", LIMITS, since=empty.position)
        assert (texts(found.envelopes), found.gap) == ([*range(1, 10), 0], "trimmed")


async def test_what_was_trimmed_is_told(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one:
        positions = await fill(one.history, 25)
        for known, gap in ((3, "trimmed"), (13, "trimmed"), (14, ""), (15, ""), (23, "")):
            found = await one.history.history("room:a", LIMITS, since=positions[known])
            assert found.gap == gap, known
            assert texts(found.envelopes) == list(range(15 if gap else known + 1, 25))
        assert texts((await one.history.history("room:a", LIMITS)).envelopes) == list(range(15, 25))


async def test_answers_are_bounded(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one:
        positions = await fill(one.history, 9, size=1000)
        history = one.history.history
        assert texts((await history("room:a", LIMITS, limit=3)).envelopes) == [0, 1, 2]
        assert texts((await history("room:a", LIMITS, limit=3, since=positions[2])).envelopes) == [3, 4, 5]
        assert texts((await history("room:a", LIMITS, max_bytes=2500)).envelopes) == [0, 1]
        assert texts((await history("room:a", LIMITS, since=positions[2], max_bytes=2000)).envelopes) == [3, 4]
        # The first one is given whatever its size.
        assert texts((await history("room:a", LIMITS, since=positions[2], max_bytes=1)).envelopes) == [3]
        assert texts((await history("room:a", LIMITS, max_bytes=1)).envelopes) == [0]


async def test_large_histories_are_read_in_several_requests(engine: NatsEngine, hub: str) -> None:
    limits = StreamLimits(size=700)
    async with node(engine, hub) as one:
        envelopes = [b"%d" % number for number in range(700)]
        await asyncio.gather(*(one.history.publish_stored("room:a", each, limits) for each in envelopes))
        found = await one.history.history("room:a", limits, limit=700)
        assert sorted(texts(found.envelopes)) == list(range(700))
        offsets = [offset for offset, _ in found.envelopes]
        assert offsets == sorted(offsets)
        assert found.position.offset == offsets[-1]
        large = b"x" * 900_000
        for _ in range(4):
            await one.history.publish_stored("room:b", large, limits)
        found = await one.history.history("room:b", limits, max_bytes=10_000_000)
        assert [envelope for _, envelope in found.envelopes] == [large] * 4
        found = await one.history.history("room:b", limits, max_bytes=2_000_000)
        assert [envelope for _, envelope in found.envelopes] == [large] * 2


async def test_the_newest_come_first_in_reverse(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one:
        assert (await one.history.history("room:a", LIMITS, reverse=True)).envelopes == ()
        positions = await fill(one.history, 14, size=1000)
        history = one.history.history
        assert texts((await history("room:a", LIMITS, reverse=True)).envelopes) == list(range(13, 3, -1))
        assert texts((await history("room:a", LIMITS, reverse=True, limit=2)).envelopes) == [13, 12]
        found = await history("room:a", LIMITS, reverse=True, since=positions[7], limit=2)
        assert (texts(found.envelopes), found.position) == ([6, 5], positions[-1])
        assert texts((await history("room:a", LIMITS, reverse=True, max_bytes=2500)).envelopes) == [13, 12]


async def test_a_key_stores_once(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one, node(engine, hub) as other:
        await one.listen("room:a")
        publishing = [each.history.publish_stored("room:a", b"1", LIMITS, "key") for each in (one, other) * 5]
        published = await asyncio.gather(*publishing)
        assert len({each.position for each in published}) == 1
        assert sorted(each.is_duplicate for each in published) == [False] + [True] * 9
        # A key belongs to its channel.
        assert not (await one.history.publish_stored("room:b", b"2", LIMITS, "key")).is_duplicate
        assert not (await one.history.publish_stored("room:a", b"3", LIMITS, "other")).is_duplicate
        await until(lambda: len(one.arrived) == 2)
        assert [envelope for _, envelope in one.arrived] == [b"1", b"3"]


async def test_after_the_time_to_live_the_history_is_empty_and_offsets_go_on(engine: NatsEngine, hub: str) -> None:
    limits = StreamLimits(size=10, ttl_ms=300)
    async with node(engine, hub) as one:
        history = one.history
        first = (await history.publish_stored("room:a", b"1", limits)).position
        second = (await history.publish_stored("room:a", b"2", limits)).position
        while (found := await history.history("room:a", limits)).envelopes:
            await asyncio.sleep(0.05)
        assert (found.position, found.gap) == (second, "")
        assert (await history.history("room:a", limits, since=second)).gap == ""
        assert (await history.history("room:a", limits, since=first)).gap == "trimmed"
        third = (await history.publish_stored("room:a", b"3", limits)).position
        assert third.epoch == second.epoch
        found = await history.history("room:a", limits, since=second)
        assert (texts(found.envelopes), found.gap) == ([3], "")


async def test_any_name_and_any_bytes(engine: NatsEngine, hub: str) -> None:
    channels = ["room:", "room:*", "room:>", "room:a b", "room:.", "room:\0", "room:ü", "room:" + "x" * 65_536]
    async with node(engine, hub) as one:
        for channel in channels:
            envelope = channel.encode()[:10] + bytes(range(256))
            await one.listen(channel)
            await one.history.publish_stored(channel, envelope, LIMITS)
            await one.history.publish_stored(channel, b"", LIMITS)
            found = await one.history.history(channel, LIMITS)
            assert [each for _, each in found.envelopes] == [envelope, b""]
            await until(lambda: len(one.arrived) == 2)
            assert [each for _, each in one.arrived] == [envelope, b""]
            one.arrived.clear()


# Epochs


async def test_a_stream_that_was_deleted_begins_a_new_epoch(engine: NatsEngine, hub: str) -> None:
    async with node(engine, hub) as one, node(engine, hub) as other:
        positions = await fill(one.history, 3)
        await fill(other.history, 1, "room:b")
        await delete_streams(one.client, positions[0].epoch)
        # Both still know the old stream.
        (new,) = await fill(other.history, 1)
        assert new.epoch != positions[0].epoch
        found = await one.history.history("room:a", LIMITS, since=positions[2])
        assert (texts(found.envelopes), found.gap, found.position) == ([0], "epoch", new)
        assert (await fill(one.history, 1))[0].epoch == new.epoch


async def delete_streams(client: Client, epoch: str) -> None:
    manager = client.jsm()
    for info in await manager.streams_info():
        if str(info.config.name).endswith(epoch):
            await manager.delete_stream(str(info.config.name))


async def test_a_position_of_the_future_begins_a_new_epoch_if_it_is_the_node_s_own(
    engine: NatsEngine, hub: str
) -> None:
    async with node(engine, hub) as one, node(engine, hub) as other:
        positions = await fill(one.history, 3)
        ahead = StoredPosition(positions[2].offset + 5, positions[2].epoch)
        found = await one.history.history("room:a", LIMITS, since=ahead)
        assert (texts(found.envelopes), found.gap) == ([0, 1, 2], "epoch")
        results = await asyncio.gather(
            *(each.history.history("room:a", LIMITS, since=ahead, is_own=True) for each in (one, other))
        )
        assert [(each.envelopes, each.gap) for each in results] == [((), "epoch")] * 2
        assert len({each.position for each in results}) == 1
        assert results[0].position.epoch != positions[0].epoch
        assert (await fill(other.history, 1))[0].epoch == results[0].position.epoch


async def test_nodes_that_begin_at_once_have_one_epoch(engine: NatsEngine, hub: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(engine, hub)) for _ in range(6)]
        for size in range(1, 16):
            limits = StreamLimits(size=size)
            published = await asyncio.gather(*(each.history.publish_stored("room:a", b"1", limits) for each in nodes))
            assert len({each.position.epoch for each in published}) == 1
            assert len({each.position.offset for each in published}) == 6


@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_a_restart_keeps_what_is_in_files(engine: NatsEngine, storage: Storage) -> None:
    with running_jetstream(engine.kind) as own:
        async with node(own, "hub", storage) as one:
            positions = await fill(one.history, 3)
        own.stop(signal.SIGTERM)
        own.start()
        async with node(own, "hub", storage) as one:
            found = await one.history.history("room:a", LIMITS, since=positions[0])
            if storage == "file":
                assert (texts(found.envelopes), found.gap) == ([1, 2], "")
            else:
                assert (found.envelopes, found.gap) == ((), "epoch")


# Failures


async def test_an_engine_without_jetstream_is_said(engine: NatsEngine) -> None:
    with running_nats(engine.kind) as plain:
        async with node(plain, "hub") as one:
            with pytest.raises(BrokerError, match="JetStream"):
                await one.history.publish_stored("room:a", b"1", LIMITS)
            with pytest.raises(BrokerError, match="JetStream"):
                await one.history.history("room:a", LIMITS)


async def test_a_lost_answer_is_uncertain_and_the_key_makes_it_safe(engine: NatsEngine) -> None:
    with running_jetstream(engine.kind) as own:
        async with node(own, "hub", "file") as one:
            await fill(one.history, 1)
            own.pause()
            publishing = asyncio.create_task(one.history.publish_stored("room:a", b"7", LIMITS, "key"))
            await asyncio.sleep(0.05)
            own.resume()
            own.stop(signal.SIGTERM)
            # A server that is ending may answer that it has no stream any more: then nothing was stored.
            with contextlib.suppress(BrokerUncertain, BrokerUnavailable):
                await publishing
            await until(lambda: one.client.is_closed)
            with pytest.raises(BrokerUnavailable):
                await one.history.publish_stored("room:a", b"8", LIMITS)
            with pytest.raises(BrokerUnavailable):
                await one.history.history("room:a", LIMITS)
        own.start()
        async with node(own, "hub", "file") as one:
            await one.history.publish_stored("room:a", b"7", LIMITS, "key")
            assert texts((await one.history.history("room:a", LIMITS)).envelopes) == [0, 7]
