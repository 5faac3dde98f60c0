"""The bytes that JetStream stores of a channel."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator

import pytest

from tests.support.broker_node import BrokerNode, joined
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream
from wshub.brokers import nats_trimming
from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import HistoryConfig, Position
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_reading import MessageSize
from wshub.brokers.nats_streams import Stream, StreamLimits
from wshub.brokers.nats_trimming import Trimming, first_to_keep
from wshub.errors import BrokerUnavailable

SIZE = 1000
KEPT = HistoryConfig(size=500, max_bytes=20 * SIZE)

ON_BOTH = pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)


@pytest.fixture(scope="module", params=PROGRAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with running_jetstream(request.param) as engine:
        yield engine


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has."""
    return secrets.token_hex(4)


async def store(node: BrokerNode, number: int, size: int = SIZE, channel: str = "room:a") -> Position:
    envelope = (b"%d" % number).ljust(size, b" ")
    published = await node.broker.publish_stored(channel, envelope, KEPT)  # type: ignore[attr-defined]
    assert published.position is not None
    return published.position


async def read(node: BrokerNode, since: Position | None = None, channel: str = "room:a") -> StoredHistory:
    return await node.broker.history(channel, KEPT, HistoryQuery(since=since, limit=1000))  # type: ignore[attr-defined]


def numbers(found: StoredHistory) -> list[int]:
    return [int(stored.envelope) for stored in found.envelopes]


async def trimmed(node: BrokerNode) -> None:
    """Wait until the node has deleted what it is to delete."""
    trimming = node.broker._session.storing._trimming  # type: ignore[attr-defined]
    while trimming._task is not None:
        await asyncio.sleep(0.002)


def state_of(engine: NatsEngine, prefix: str) -> dict[str, int]:
    """Return what the server says of the one stream with histories."""
    names = engine.ask("$JS.API.STREAM.NAMES")["streams"]
    (name,) = [name for name in names if name.startswith(prefix) and not name.endswith("-epochs")]
    state: dict[str, int] = engine.ask(f"$JS.API.STREAM.INFO.{name}")["state"]
    return state


@ON_BOTH
async def test_a_channel_stores_twice_its_bytes_at_most(engine: NatsEngine, prefix: str) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        for number in range(200):
            await store(one, number)
            await trimmed(one)
            # One message beyond the bound has the oldest deleted, and one more than is promised stays.
            assert state_of(engine, prefix)["messages"] <= 41
        assert state_of(engine, prefix)["bytes"] < 42 * (SIZE + 200)
        assert numbers(await read(one)) == list(range(180, 200))


@ON_BOTH
async def test_several_nodes_store_their_share_more(engine: NatsEngine, prefix: str) -> None:
    async with (
        joined(NatsBroker(engine.url, prefix=prefix)) as one,
        joined(NatsBroker(engine.url, prefix=prefix)) as two,
    ):
        for number in range(200):
            await store((one, two)[number % 2], number)
            await trimmed(one)
            await trimmed(two)
            assert state_of(engine, prefix)["messages"] <= 62
        assert numbers(await read(one)) == list(range(180, 200))


@ON_BOTH
async def test_a_position_behind_deleted_messages_is_a_gap_and_none_other_is(engine: NatsEngine, prefix: str) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        empty = (await read(one)).position
        positions = []
        for number in range(75):
            positions.append(await store(one, number))
            if number % 3 == 0:
                await store(one, number, SIZE // 2, "room:other")
            await trimmed(one)
            found = await read(one, since=empty)
            # All is there, or a gap is told.
            assert numbers(found) == list(range(max(0, number - 19), number + 1))
            assert found.gap == ("" if number < 20 else "trimmed")
        oldest = state_of(engine, prefix)["first_seq"]
        for known, position in enumerate(positions):
            found = await read(one, since=position)
            if found.gap:
                assert (found.gap, numbers(found)) == ("trimmed", list(range(55, 75)))
                assert position.offset < oldest or known < 54
            else:
                assert numbers(found) == list(range(known + 1, 75))
        assert not (await read(one, since=positions[54])).gap
        assert numbers(await read(one, channel="room:other"))[-1] == 72


@ON_BOTH
async def test_a_message_above_the_bound_stays_until_the_next_one(engine: NatsEngine, prefix: str) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        first = await store(one, 1)
        large = await store(one, 2, 30 * SIZE)
        await trimmed(one)
        assert numbers(await read(one)) == [2]
        await store(one, 3, 30 * SIZE)
        await trimmed(one)
        assert numbers(await read(one)) == [3]
        assert state_of(engine, prefix)["messages"] == 2
        assert (await read(one, since=first)).gap == "trimmed"
        assert numbers(await read(one, since=large)) == [3]


@ON_BOTH
async def test_a_long_channel_is_trimmed_with_several_requests(engine: NatsEngine, prefix: str) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        await asyncio.gather(*(store(one, number, 40) for number in range(499)))
        await store(one, 499, SIZE)
        await trimmed(one)
        assert state_of(engine, prefix)["messages"] == 477
        assert numbers(await read(one)) == list(range(24, 500))


@ON_BOTH
async def test_a_deletion_that_fails_is_tried_again(
    engine: NatsEngine, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        for number in range(20):
            await store(one, number)
        trimming = one.broker._session.storing._trimming  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            # There is no connection for a moment.
            patch.setattr(trimming._reader, "_requests", DetachedRequests())
            await store(one, 20)
            await trimmed(one)
        assert state_of(engine, prefix)["messages"] == 21
        # The pause is over.
        trimming._retry_at = 0
        await store(one, 21)
        await trimmed(one)
        assert state_of(engine, prefix)["messages"] == 21
        assert numbers(await read(one)) == list(range(2, 22))


@ON_BOTH
async def test_deletions_that_the_server_refuses_are_logged_once_and_not_tried_at_each_message(
    engine: NatsEngine, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:
        await store(one, 0)
        name = one.broker._session.storing._streams._known.popitem()[1].name  # type: ignore[attr-defined]
        config = engine.ask(f"$JS.API.STREAM.INFO.{name}")["config"] | {"deny_purge": True}
        assert "error" not in engine.ask(f"$JS.API.STREAM.UPDATE.{name}", json.dumps(config).encode())
        trimming = one.broker._session.storing._trimming  # type: ignore[attr-defined]
        monkeypatch.setattr(nats_trimming, "RETRY_SECONDS", 3600.0)
        monkeypatch.setattr(nats_trimming, "MAX_RETRY_SECONDS", 7200.0)
        attempts = []
        trim = trimming._trim

        async def counted(stream: Stream, tokens: str, max_bytes: int) -> None:
            attempts.append(tokens)
            await trim(stream, tokens, max_bytes)

        monkeypatch.setattr(trimming, "_trim", counted)
        for number in range(1, 60):
            await store(one, number)
            await trimmed(one)
        # The first one has found nothing to delete.
        assert len(attempts) == 2
        trimming._retry_at = 0
        for number in range(60, 70):
            await store(one, number)
            await trimmed(one)
        assert len(attempts) == 3
        assert trimming._delay == 7200
        assert numbers(await read(one)) == list(range(50, 70))
        assert sum("cannot be deleted" in record.message for record in caplog.records) == 1


class DetachedRequests:
    """Requests without a connection."""

    async def ask(self, subject: str, question: object = None) -> object:
        raise BrokerUnavailable("there is no connection to the engine")


@ON_BOTH
@pytest.mark.parametrize("is_recovery", [True, False])
async def test_what_is_deleted_between_two_batches_is_no_hole(
    engine: NatsEngine, prefix: str, monkeypatch: pytest.MonkeyPatch, is_recovery: bool
) -> None:
    config = HistoryConfig(size=300)
    async with joined(NatsBroker(engine.url, prefix=prefix)) as one:

        async def publish(number: int) -> Position:
            published = await one.broker.publish_stored("room:a", b"%d" % number, config)  # type: ignore[attr-defined]
            assert published.position is not None
            return published.position  # type: ignore[no-any-return]

        positions = await asyncio.gather(*map(publish, range(300)))
        session = one.broker._session  # type: ignore[attr-defined]
        (stream,) = session.storing._streams._known.values()
        several = session._requests.several
        batches = 0

        def publish_before_the_second(subject: str, question: dict[str, object]) -> object:
            nonlocal batches
            batches += 1
            if batches == 2:
                for number in range(300, 580):
                    engine.ask(stream.subjects + session._epochs.tokens("room:a"), b"%d" % number)
            return several(subject, question)

        monkeypatch.setattr(session._requests, "several", publish_before_the_second)
        since = positions[5] if is_recovery else None
        found = await one.broker.history("room:a", config, HistoryQuery(since=since, limit=1000))  # type: ignore[attr-defined]
        first, *_, last = numbers(found)
        assert numbers(found) == list(range(first, last + 1))
        assert first >= 279
        assert found.gap == ("trimmed" if is_recovery else "")
        assert found.start > positions[200].offset


@pytest.mark.parametrize(
    ("sizes", "first"),
    [([], 0), ([5], 0), ([50], 0), ([5, 5], 0), ([5, 6], 1), ([1, 50], 1), ([50, 1], 1), ([3, 4, 5, 5], 2)],
)
def test_one_message_more_than_is_promised_is_kept(sizes: list[int], first: int) -> None:
    messages = [MessageSize(index + 1, size) for index, size in enumerate(sizes)]
    assert first_to_keep(reversed(messages), 10) == first


class CountingReader:
    """A reader that is asked for nothing but sizes, and finds none."""

    def __init__(self) -> None:
        self.readings = 0

    async def read_sizes(self, stream: str, subject: str, limit: int) -> list[MessageSize]:
        self.readings += 1
        return []


async def test_more_channels_than_are_counted_are_trimmed_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.brokers.nats_trimming.MAX_COUNTED", 10)
    reader = CountingReader()
    trimming = Trimming(None, reader)  # type: ignore[arg-type]
    stream = Stream("stream", "epoch", "stream.", StreamLimits.of(KEPT), 0.0)
    for _ in range(4000):
        # Each of them is forgotten before it has its next message.
        for channel in range(11):
            trimming.count(stream, str(channel), SIZE, 5 * SIZE)
        await asyncio.sleep(0)
        assert len(trimming._stored) <= 10
    # 8800 are expected, and the standard deviation is less than 100.
    assert 8000 < reader.readings < 9600
    trimming.close()
