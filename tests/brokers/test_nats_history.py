"""Histories in JetStream: recovery since a position, keys, limits and time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.broker_node import BrokerNode, joined, until
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream, running_nats
from wshub.brokers.envelope import decode_stored
from wshub.brokers.history_interface import HistoryQuery, StoredEnvelope, StoredHistory
from wshub.brokers.interface import HistoryConfig, Position
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_streams import StreamLimits
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

FEW = HistoryConfig(size=10)


# Each server has one of the loops: all four pairs take twice as long.
pytestmark = pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param) as engine:
        yield engine


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> str:
    """The name of a hub that no other test has."""
    return request.node.name


def broker(node: BrokerNode) -> NatsBroker:
    assert isinstance(node.broker, NatsBroker)
    return node.broker


async def store(node: BrokerNode, envelope: bytes, channel: str = "room:a", config: HistoryConfig = FEW) -> Position:
    published = await broker(node).publish_stored(channel, envelope, config)
    assert published.position is not None
    return published.position


async def fill(node: BrokerNode, count: int, channel: str = "room:a", size: int = 0) -> list[Position]:
    return [await store(node, (b"%d" % number).ljust(size, b" "), channel) for number in range(count)]


def texts(found: StoredHistory) -> list[int]:
    return [int(stored.envelope) for stored in found.envelopes]


async def test_an_envelope_is_stored_and_sent_with_its_place(engine: NatsEngine, hub: str) -> None:
    async with (
        joined(NatsBroker(engine.url), "room:a", hub=hub) as one,
        joined(NatsBroker(engine.url), "room:a", hub=hub) as other,
    ):
        positions = await fill(one, 3)
        await fill(one, 2, "room:b")
        positions += await fill(other, 1)
        await until(lambda: len(one.received) == len(other.received) == 4)
        assert one.received == other.received
        heads = [decode_stored(stored)[0] for stored in one.received]
        assert [Position(head.offset, head.epoch) for head in heads] == positions
        # Each names the one before it on its channel, whatever is stored on others.
        assert [head.previous for head in heads] == [0, *(head.offset for head in heads[:-1])]
        assert heads[3].offset > heads[2].offset + 1


async def test_a_reader_gets_exactly_what_follows_its_position(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        await fill(one, 5, "room:other")
        positions = await fill(one, 8)
        for known in range(8):
            found = await broker(one).history("room:a", FEW, HistoryQuery(since=positions[known]))
            assert texts(found) == list(range(known + 1, 8))
            assert (found.position, found.gap) == (positions[-1], "")
            assert found.start == positions[known].offset or not found.envelopes
        all_of_it = await broker(one).history("room:a", FEW, HistoryQuery())
        assert [stored.offset for stored in all_of_it.envelopes] == [position.offset for position in positions]
        assert all_of_it.start == 0


async def test_a_position_before_any_envelope_is_complete(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        read = broker(one).history
        # Other channels have messages already.
        top = (await fill(one, 3, "room:other"))[-1]
        empty = await read("room:a", FEW, HistoryQuery(limit=0))
        assert (empty.envelopes, empty.position.offset, empty.gap) == ((), top.offset, "")
        await fill(one, 3, "room:other")
        again = await read("room:a", FEW, HistoryQuery(since=empty.position, is_own=True))
        assert (again.envelopes, again.position, again.gap) == ((), empty.position, "")
        await fill(one, 10)
        found = await read("room:a", FEW, HistoryQuery(since=empty.position))
        assert (texts(found), found.gap) == (list(range(10)), "")
        await fill(one, 1)
        found = await read("room:a", FEW, HistoryQuery(since=empty.position))
        assert (texts(found), found.gap) == ([*range(1, 10), 0], "trimmed")


async def test_what_was_trimmed_is_told(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        positions = await fill(one, 25)
        for known, gap in ((3, "trimmed"), (13, "trimmed"), (14, ""), (15, ""), (23, "")):
            found = await broker(one).history("room:a", FEW, HistoryQuery(since=positions[known]))
            assert found.gap == gap, known
            assert texts(found) == list(range(15 if gap else known + 1, 25))
            assert found.start == positions[14 if gap else known].offset
        assert texts(await broker(one).history("room:a", FEW, HistoryQuery())) == list(range(15, 25))


async def test_answers_are_bounded(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        positions = await fill(one, 9, size=1000)
        read = broker(one).history
        assert texts(await read("room:a", FEW, HistoryQuery(limit=3))) == [0, 1, 2]
        assert texts(await read("room:a", FEW, HistoryQuery(limit=3, since=positions[2]))) == [3, 4, 5]
        assert texts(await read("room:a", FEW, HistoryQuery(max_bytes=2500))) == [0, 1]
        assert texts(await read("room:a", FEW, HistoryQuery(since=positions[2], max_bytes=2000))) == [3, 4]
        # The first one is given whatever its size.
        assert texts(await read("room:a", FEW, HistoryQuery(since=positions[2], max_bytes=1))) == [3]
        assert texts(await read("room:a", FEW, HistoryQuery(max_bytes=1))) == [0]


async def test_large_histories_are_read_in_several_requests(engine: NatsEngine, hub: str) -> None:
    config = HistoryConfig(size=700, max_bytes=1 << 30)
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        await asyncio.gather(*(store(one, b"%d" % number, config=config) for number in range(700)))
        found = await broker(one).history("room:a", config, HistoryQuery(limit=700))
        assert texts(found) == list(range(700))
        assert found.position.offset == found.envelopes[-1].offset
        large = b"x" * 900_000
        for _ in range(6):
            await store(one, large, "room:b", config)
        found = await broker(one).history("room:b", config, HistoryQuery(max_bytes=10_000_000))
        assert [stored.envelope for stored in found.envelopes] == [large] * 6
        found = await broker(one).history("room:b", config, HistoryQuery(max_bytes=2_000_000))
        assert [stored.envelope for stored in found.envelopes] == [large] * 2


async def test_the_newest_come_first_in_reverse(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        read = broker(one).history
        assert (await read("room:a", FEW, HistoryQuery(reverse=True))).envelopes == ()
        positions = await fill(one, 14, size=1000)
        assert texts(await read("room:a", FEW, HistoryQuery(reverse=True))) == list(range(13, 3, -1))
        assert texts(await read("room:a", FEW, HistoryQuery(reverse=True, limit=2))) == [13, 12]
        found = await read("room:a", FEW, HistoryQuery(reverse=True, since=positions[7], limit=2))
        assert (texts(found), found.position) == ([6, 5], positions[-1])
        assert texts(await read("room:a", FEW, HistoryQuery(reverse=True, max_bytes=2500))) == [13, 12]


async def test_a_key_belongs_to_its_channel(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:

        async def is_duplicate(channel: str, key: str) -> bool:
            return (await broker(one).publish_stored(channel, b"", FEW, idempotency_key=key)).is_duplicate

        assert not await is_duplicate("room:a", "key")
        assert not await is_duplicate("room:b", "key")
        assert not await is_duplicate("room:a", "key\ud800 with anything: \0\r\n")
        assert await is_duplicate("room:a", "key")


async def test_after_a_pause_what_was_forgotten_stays_so(engine: NatsEngine, hub: str) -> None:
    brief = HistoryConfig(size=10, ttl_ms=1_500)
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        read = broker(one).history
        first, second = [await store(one, b"%d" % number, config=brief) for number in (1, 2)]
        while (found := await read("room:a", brief, HistoryQuery())).envelopes:
            await asyncio.sleep(0.05)
        assert (found.position, found.gap) == (second, "")
        assert (await read("room:a", brief, HistoryQuery(since=second))).gap == ""
        assert (await read("room:a", brief, HistoryQuery(since=first))).gap == "trimmed"
        third = await store(one, b"3", config=brief)
        assert third.epoch == second.epoch
        found = await read("room:a", brief, HistoryQuery(since=second))
        assert (texts(found), found.gap) == ([3], "")
        for since, gap in ((first, "trimmed"), (None, "")):
            found = await read("room:a", brief, HistoryQuery(since=since))
            assert (texts(found), found.gap, found.start) == ([3], gap, second.offset)


async def test_any_name_and_any_bytes(engine: NatsEngine, hub: str) -> None:
    channels = ["room:", "room:*", "room:>", "room:a b", "room:.", "room:\0", "room:ü", "room:" + "x" * 65_536]
    async with joined(NatsBroker(engine.url), *channels, hub=hub) as one:
        for channel in channels:
            envelope = channel.encode()[:10] + bytes(range(256))
            before = len(one.received)
            for each in (envelope, b""):
                await store(one, each, channel)
            found = await broker(one).history(channel, FEW, HistoryQuery())
            assert [stored.envelope for stored in found.envelopes] == [envelope, b""]
            await until(lambda before=before: len(one.received) == before + 2)
            assert [decode_stored(stored)[1] for stored in one.received[before:]] == [envelope, b""]


async def test_messages_that_are_too_old_are_not_taken_for_none(engine: NatsEngine, hub: str) -> None:
    """Once a stream is older than its messages may be, a position behind deleted ones is not complete."""
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        positions = await fill(one, 3)
        await fill(one, 11, "room:other")
        streams = broker(one)._session.storing._streams
        stream = await streams.find(StreamLimits.of(FEW))
        # Time passes: the stream is old, and its oldest messages are gone.
        streams._known[stream.limits] = replace(stream, created_at=stream.created_at - stream.limits.seconds)
        await streams._requests.ask(f"STREAM.PURGE.{stream.name}", {"seq": positions[1].offset + 1})
        start = Position(0, positions[0].epoch)
        for since, gap in ((start, "trimmed"), (positions[0], "trimmed"), (positions[1], ""), (None, "")):
            found = await broker(one).history("room:a", FEW, HistoryQuery(since=since))
            assert (found.gap, texts(found), found.start) == (gap, [2], positions[1].offset), since
        empty = await broker(one).history("room:none", FEW, HistoryQuery(since=Position(0, "")))
        assert empty.start == positions[1].offset


async def test_a_restart_of_the_server_keeps_histories(engine: NatsEngine) -> None:
    with running_jetstream(engine.kind) as own:
        async with joined(NatsBroker(own.url)) as one:
            positions = await fill(one, 3)
        own.stop(signal.SIGTERM)
        own.start()
        async with joined(NatsBroker(own.url)) as one:
            found = await broker(one).history("room:a", FEW, HistoryQuery(since=positions[0]))
            assert (texts(found), found.gap) == ([1, 2], "")


# Failures


async def test_an_engine_without_jetstream_is_said(engine: NatsEngine) -> None:
    with running_nats(engine.kind) as plain:
        async with joined(NatsBroker(plain.url)) as one:
            with pytest.raises(BrokerUnavailable, match="JetStream"):
                await store(one, b"1")
            with pytest.raises(BrokerUnavailable, match="JetStream"):
                await broker(one).history("room:a", FEW, HistoryQuery())
            assert one.broker.send("room:a", b"plain")


async def test_a_user_without_the_right_is_told(engine: NatsEngine, caplog: pytest.LogCaptureFixture) -> None:
    rights = 'permissions: { publish: "wshub.>", subscribe: "wshub.>" }'
    user = f"authorization {{ users = [{{ user: hub, password: pw, {rights} }}] }}\n"
    with running_jetstream(engine.kind, user) as own:
        async with joined(NatsBroker(own.url.replace("//", "//hub:pw@"))) as one:
            with pytest.raises(BrokerError, match=r"(?i)permissions violation"):
                await store(one, b"1")
            with pytest.raises(BrokerUnavailable, match=r"(?i)permissions violation"):
                await broker(one).history("room:a", FEW, HistoryQuery())
            assert one.broker.health().ok


async def test_a_lost_answer_is_uncertain_and_the_key_makes_it_safe(engine: NatsEngine) -> None:
    with running_jetstream(engine.kind) as own:
        async with joined(NatsBroker(own.url)) as one:
            await fill(one, 1)
            own.pause()
            publishing = asyncio.create_task(broker(one).publish_stored("room:a", b"7", FEW, idempotency_key="key"))
            await asyncio.sleep(0.05)
            own.resume()
            own.stop(signal.SIGTERM)
            # A server that is ending may answer that it has no stream any more: then nothing was stored.
            with contextlib.suppress(BrokerUncertain, BrokerUnavailable):
                await publishing
            await until(lambda: not one.broker.health().ok)
            with pytest.raises(BrokerUnavailable):
                await store(one, b"8")
            with pytest.raises(BrokerUnavailable):
                await broker(one).history("room:a", FEW, HistoryQuery())
            assert not broker(one).send_stored("room:a", b"9", FEW)
        own.start()
        async with joined(NatsBroker(own.url)) as one:
            await broker(one).publish_stored("room:a", b"7", FEW, idempotency_key="key")
            assert texts(await broker(one).history("room:a", FEW, HistoryQuery())) == [0, 7]


async def test_what_is_too_large_is_refused_and_counted(engine: NatsEngine, caplog: pytest.LogCaptureFixture) -> None:
    async with joined(NatsBroker(engine.url, max_pending=4_000_000)) as one:
        with caplog.at_level(logging.ERROR), pytest.raises(BrokerUnavailable, match="max_payload"):
            await store(one, bytes(2 * 1024 * 1024))
        # Nothing is sent before the stream is known, so the fifth one finds no space.
        large = bytes(1_000_000)
        taken = [broker(one).send_stored("room:b", large, HistoryConfig(size=11)) for _ in range(6)]
        assert taken == [True] * 4 + [False] * 2
        dropped = one.broker.stats().dropped
        assert (dropped["too_large"], dropped["full"]) == (1, 2)
        await until(lambda: one.broker.stats().sent == 4)


async def test_close_waits_for_what_was_sent(engine: NatsEngine, hub: str) -> None:
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        for number in range(300):
            assert broker(one).send_stored("room:a", b"%d" % number, HistoryConfig(size=300))
    async with joined(NatsBroker(engine.url), hub=hub) as one:
        found = await broker(one).history("room:a", HistoryConfig(size=300), HistoryQuery(limit=300))
        assert texts(found) == list(range(300))
        assert isinstance(found.envelopes[0], StoredEnvelope)
