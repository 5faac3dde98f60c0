"""Epochs in JetStream: all nodes use one stream, whatever happens while it is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from tests.brokers.test_nats_history import FEW, broker, fill, store, texts
from tests.support.broker_node import BrokerNode, joined
from tests.support.nats_engine import PROGRAMS, NatsEngine, running_jetstream
from wshub.brokers.history_interface import HistoryQuery
from wshub.brokers.interface import HistoryConfig, Position
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_streams import StreamLimits, Streams, new_epoch
from wshub.errors import BrokerUnavailable, BrokerUncertain

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


@contextlib.asynccontextmanager
async def nodes_of(
    engine: NatsEngine, hub: str, count: int
) -> contextlib.AbstractAsyncContextManager[list[BrokerNode]]:  # type: ignore[misc]
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(joined(NatsBroker(engine.url), hub=hub)) for _ in range(count)]


def streams_of(node: BrokerNode) -> Streams:
    return broker(node)._session.storing._streams


async def names(node: BrokerNode, config: HistoryConfig = FEW) -> list[str]:
    """Return the names of all streams with the limits of a configuration."""
    streams = streams_of(node)
    subjects = streams._stream(StreamLimits.of(config), "*").subjects + ">"
    answer = await streams._requests.ask("STREAM.NAMES", {"subject": subjects})
    return answer.get("streams") or []


async def begin_at_once(nodes: list[BrokerNode], sizes: range) -> None:
    """Have all nodes publish at once, on channels for which there is no stream yet. Check that they agree."""
    for size in sizes:
        config = HistoryConfig(size=size)
        positions = await asyncio.gather(*(store(node, b"1", config=config) for node in nodes))
        assert len({position.epoch for position in positions}) == 1, size
        assert sorted(position.offset for position in positions) == list(range(1, len(nodes) + 1))


async def renew_at_once(nodes: list[BrokerNode], rounds: int) -> None:
    """Have all nodes find at once that the engine has lost messages. Check that they agree on the next epoch."""
    for _ in range(rounds):
        last = await store(nodes[0], b"1")
        ahead = Position(last.offset + 50, last.epoch)
        # An envelope that waits in a stream while that is deleted gets no answer.
        stores = asyncio.gather(*(store(node, b"2") for node in nodes[::2]), return_exceptions=True)
        read = await asyncio.gather(
            *(broker(node).history("room:a", FEW, HistoryQuery(since=ahead, is_own=True)) for node in nodes),
        )
        for outcome in await stores:
            assert isinstance(outcome, Position | BrokerUncertain), outcome
        epochs = {found.position.epoch for found in read}
        assert len(epochs) == 1
        assert last.epoch not in epochs
        assert {(await store(node, b"3")).epoch for node in nodes} == epochs


async def test_nodes_that_begin_at_once_have_one_epoch(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 6) as nodes:
        await begin_at_once(nodes, range(1, 21))
        # Nothing is left of the streams that were made in vain.
        assert len(await names(nodes[0], HistoryConfig(size=1))) == 1


async def test_nodes_that_begin_an_epoch_at_once_have_the_same(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 6) as nodes:
        await renew_at_once(nodes, 8)
        assert len(await names(nodes[0])) == 1


@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
async def test_many_nodes_agree_hundreds_of_times(engine: NatsEngine, hub: str, part: int) -> None:
    async with nodes_of(engine, hub, 12) as nodes:
        await begin_at_once(nodes, range(1, 31))
        await renew_at_once(nodes, 15)


async def test_a_stream_that_was_deleted_begins_a_new_epoch(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 2) as (one, other):
        positions = await fill(one, 3)
        await fill(other, 1, "room:b")
        (name,) = await names(one)
        await streams_of(one)._delete(name)
        # Both still know the old stream.
        (new,) = await fill(other, 1)
        assert new.epoch != positions[0].epoch
        found = await broker(one).history("room:a", FEW, HistoryQuery(since=positions[2]))
        assert (texts(found), found.gap, found.position) == ([0], "epoch", new)
        assert (await fill(one, 1))[0].epoch == new.epoch


async def test_what_is_on_its_way_to_a_deleted_stream_keeps_its_order(engine: NatsEngine, hub: str) -> None:
    config = HistoryConfig(size=2000)
    async with nodes_of(engine, hub, 2) as (one, other):
        await store(one, b"0", config=config)
        (name,) = await names(one, config)
        deleting = asyncio.create_task(streams_of(other)._delete(name))
        for number in range(1000):
            assert broker(one).send_stored("room:a", b"%d" % number, config)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await deleting
        last = await store(one, b"1000", config=config)
        found = await broker(one).history("room:a", config, HistoryQuery(limit=2000))
        assert found.position == last
        # Those that were stored before are lost with the stream.
        assert texts(found) == list(range(texts(found)[0], 1001))


async def test_a_stream_that_comes_back_empty_under_its_name_is_not_used(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 2) as (one, other):
        before = await fill(one, 5)
        streams = streams_of(one)
        stream = await streams.find(StreamLimits.of(FEW))
        # So does a cluster that has lost the data, and not the settings.
        await streams._delete(stream.name)
        await streams._create(stream)
        after = await fill(one, 1)
        assert after[0].epoch != before[0].epoch
        assert await names(one) != [stream.name]
        assert (await fill(other, 1))[0].epoch == after[0].epoch
        found = await broker(other).history("room:a", FEW, HistoryQuery(since=before[4], is_own=True))
        assert (texts(found), found.gap) == ([0, 0], "epoch")


# Nodes that die


async def test_a_stream_of_a_node_that_died_before_it_was_in_use_is_deleted(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 2) as (one, other):
        streams = streams_of(one)
        abandoned = await streams._create(streams._stream(StreamLimits.of(FEW), new_epoch()))
        (position,) = await fill(other, 1)
        assert abandoned.name not in await names(other)
        # Another one dies while it begins a new epoch: the former stream is gone, and nobody has claimed the next.
        abandoned = await streams._create(streams._stream(StreamLimits.of(FEW), new_epoch()))
        current = await streams.find(StreamLimits.of(FEW))
        await streams._delete(current.name)
        results = await asyncio.gather(*(fill(node, 1) for node in (one, other, one, other)))
        assert len({each.epoch for (each,) in results}) == 1
        assert results[0][0].epoch != position.epoch
        assert len(await names(one)) == 1
        assert abandoned.name not in await names(one)


async def test_claims_that_were_lost_begin_a_new_epoch_for_all(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 2) as (one, other):
        before = (await fill(one, 1))[0]
        assert (await fill(other, 1))[0].epoch == before.epoch
        await streams_of(one)._delete(streams_of(one)._claims)
        streams_of(one).forget_all()
        found = await broker(one).history("room:a", FEW, HistoryQuery(since=before))
        assert found.gap == "epoch"
        # The other one notices it, although it has not asked.
        assert (await fill(other, 1))[0].epoch == found.position.epoch


async def test_a_lost_answer_to_a_claim_does_no_harm(engine: NatsEngine, hub: str) -> None:
    async with nodes_of(engine, hub, 2) as (one, other):
        streams = streams_of(one)
        requests = streams._requests
        stored = requests.store

        async def store_and_lose(*args: object) -> object:
            await stored(*args)  # type: ignore[arg-type]
            raise BrokerUncertain("the answer was lost")

        requests.store = store_and_lose  # type: ignore[method-assign, assignment]
        with pytest.raises(BrokerUnavailable):
            await broker(one).history("room:a", FEW, HistoryQuery())
        requests.store = stored  # type: ignore[method-assign]
        (first,), (second,) = await fill(one, 1), await fill(other, 1)
        assert first.epoch == second.epoch
        assert len(await names(one)) == 1
