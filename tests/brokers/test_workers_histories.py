"""Histories between the workers of one machine: one owner for each, handed over when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.brokers.mesh import Node, mesh, until, worker
from wshub.brokers.envelope import decode_stored
from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import HistoryConfig, Position
from wshub.brokers.workers_histories import Histories
from wshub.brokers.workers_history_records import Moving, Read, decode_body
from wshub.brokers.workers_owner_records import Owned
from wshub.brokers.workers_owners import SLOTS, Owners, rendezvous, slot_of
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

CONFIG = HistoryConfig(size=100_000, max_bytes=1 << 30)
CHANNELS = [f"room:{number}" for number in range(40)]


async def store(node: Node, channel: str, envelope: bytes, key: str = "") -> Position:
    published = await node.broker.publish_stored(channel, envelope, CONFIG, idempotency_key=key)
    assert published.position is not None
    return published.position


async def read(node: Node, channel: str) -> StoredHistory:
    return await node.broker.history(channel, CONFIG, HistoryQuery(limit=100_000, max_bytes=1 << 30))


def owners_of(node: Node) -> list[str]:
    return [node.session.histories.members.owners.owner(slot_of(channel)) for channel in CHANNELS]


@contextlib.asynccontextmanager
async def sweeping(*nodes: Node) -> AsyncIterator[None]:
    """Have the brokers of these nodes sweep every now and then."""

    async def sweep() -> None:
        while True:
            for node in nodes:
                node.broker.sweep(node.now())
            await asyncio.sleep(0.02)

    sweeper = asyncio.create_task(sweep())
    try:
        yield
    finally:
        sweeper.cancel()


@contextlib.asynccontextmanager
async def mesh_of(path: Path, founder: Node, count: int, *, letters: str = "") -> AsyncIterator[list[Node]]:
    """Start so many nodes besides one that is there. Close them at the end of the block."""
    nodes: list[Node] = []
    try:
        for letter in letters or [""] * count:
            nodes.append(await Node(path, node_id=letter * 16).start())  # noqa: PERF401
        await until(lambda: founder.peers == count)
        yield nodes
    finally:
        for node in nodes:
            await node.close()


async def test_channels_are_spread_over_the_workers_and_all_agree(path: Path) -> None:
    async with mesh(path, 4, letters="abcd") as nodes:
        for number, channel in enumerate(CHANNELS):
            await store(nodes[number % 4], channel, b"1")
        await until(lambda: all(owners_of(node) == owners_of(nodes[0]) for node in nodes))
        assert set(owners_of(nodes[0])) == {node.info.id for node in nodes}


async def test_workers_that_ask_for_one_channel_at_once_get_one_history(path: Path) -> None:
    nodes = [Node(path) for _ in range(4)]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        for channel in CHANNELS:
            positions = await asyncio.gather(*(store(node, channel, b"1") for node in nodes))
            assert len({position.epoch for position in positions}) == 1
            assert sorted(position.offset for position in positions) == [1, 2, 3, 4]
    finally:
        for node in nodes:
            await node.close()


async def test_a_worker_that_joins_takes_no_history_away(path: Path) -> None:
    async with mesh(path, 2) as (first, second):
        before = {channel: await store(first, channel, b"1") for channel in CHANNELS}
        late = await Node(path).start()
        for node, channel in zip([first, second, late, late] * 10, CHANNELS, strict=True):
            assert await store(node, channel, b"2") == Position(2, before[channel].epoch)
        assert late.info.id not in owners_of(late)
        await late.close()


async def test_workers_that_begin_in_the_same_instant_agree_on_owners(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Histories.started
    monkeypatch.setattr(Histories, "started", lambda histories: None)
    async with mesh(path, 4) as nodes:

        async def publish(node: Node) -> list[Position]:
            return [await store(node, channel, node.info.id.encode()) for channel in CHANNELS]

        for node in nodes:
            begin(node.session.histories)
        positions = await asyncio.gather(*(publish(node) for node in nodes))
        for of_channel in zip(*positions, strict=True):
            assert len({position.epoch for position in of_channel}) == 1
            assert sorted(position.offset for position in of_channel) == [1, 2, 3, 4]
        assert len({tuple(owners_of(node)) for node in nodes}) == 1


async def test_a_worker_that_is_closed_hands_its_histories_over(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with mesh(path, 3) as (first, *others):
        before = {}
        for channel in CHANNELS:
            for number in range(5):
                before[channel] = await store(first, channel, b"%d" % number + bytes(20_000), f"key {number}")
        leaving = next(node for node in others if node.info.id in owners_of(first))
        staying = next(node for node in others if node is not leaving)
        await leaving.close()
        assert leaving.info.id not in owners_of(first)
        for channel, position in before.items():
            found = await read(staying, channel)
            assert found.position == position
            assert [stored.envelope[:1] for stored in found.envelopes] == [b"0", b"1", b"2", b"3", b"4"]
            # The idempotency keys have moved too.
            assert (await store(first, channel, b"again", "key 2")).offset == 3
            assert await store(first, channel, b"next") == Position(6, position.epoch)
        assert caplog.records == []


async def test_what_is_left_of_the_time_to_live_is_handed_over(path: Path) -> None:
    async with mesh(path, 2) as (first, second):
        brief = HistoryConfig(ttl_ms=60_000, position_ttl_ms=90_000)
        for channel in CHANNELS:
            await first.broker.publish_stored(channel, b"1", brief)
        await second.close()
        stores = first.session.histories.keeper.stores
        for channel in CHANNELS:
            history = stores[slot_of(channel)]
            found = history.read(channel, brief, HistoryQuery(), time.monotonic() + 50)
            assert [stored.envelope for stored in found.envelopes] == [b"1"]
            found = history.read(channel, brief, HistoryQuery(), time.monotonic() + 61)
            assert (found.envelopes, found.position.offset) == ((), 1)
            assert history.read(channel, brief, HistoryQuery(), time.monotonic() + 91).position.offset == 0


async def test_nothing_is_lost_or_doubled_while_owners_leave_and_join_under_load(path: Path) -> None:
    """Two nodes publish all the time, by both methods, while others that own histories come and go."""
    # With these ids, each of the owners has some channels.
    owner = await Node(path, node_id="f" * 16).start()
    for channel in CHANNELS:
        await store(owner, channel, b"founder 0")
    async with mesh_of(path, owner, 2, letters="ab") as (first, second):
        await first.join(*CHANNELS)
        sent: dict[str, list[bytes]] = {channel: [b"founder 0"] for channel in CHANNELS}
        count = 0
        done = False

        async def publish(node: Node, name: bytes, channel: str) -> None:
            nonlocal count
            number = 0
            while not done:
                envelope = b"%s %d" % (name, number)
                if number % 2:
                    await store(node, channel, envelope)
                else:
                    assert node.broker.send_stored(channel, envelope, CONFIG)
                sent[channel].append(envelope)
                number += 1
                count += 1
                await asyncio.sleep(0.002)

        async with sweeping(first, second):
            publishers = [
                asyncio.create_task(publish(node, name, channel))
                for channel in CHANNELS
                for node, name in ((first, b"first"), (second, b"second"))
            ]
            for turn, letter in enumerate("cde"):
                # The next one is there before the former one leaves, as when workers are replaced.
                following = await Node(path, node_id=letter * 16).start()
                await until(lambda turn=turn: count > (turn + 1) * 1000)  # type: ignore[misc]
                assert owner.info.id in owners_of(first)
                await owner.close()
                assert owner.info.id not in owners_of(first)
                owner = following
            done = True
            await asyncio.gather(*publishers)
            await owner.close()
        for channel in CHANNELS:
            found = await read(first, channel)
            kept = [stored.envelope for stored in found.envelopes]
            assert sorted(kept) == sorted(sent[channel])
            for name in (b"first", b"second"):
                numbers = [int(envelope.split()[1]) for envelope in kept if envelope.startswith(name)]
                assert numbers == sorted(numbers)
            assert [stored.offset for stored in found.envelopes] == list(range(1, len(kept) + 1))


async def test_each_owner_leaves_in_turn_and_every_envelope_arrives_in_order(path: Path) -> None:
    """The node that publishes stays. All owners before it are replaced, and its envelopes arrive without a hole."""
    owner = await Node(path).start()
    await store(owner, "room:a", b"the first")
    async with mesh_of(path, owner, 1) as (publisher,):
        await publisher.join("room:a")
        count = 0
        for _ in range(4):
            following = await Node(path).start()
            leaving = asyncio.create_task(owner.close())
            while not leaving.done():
                count += 1
                assert publisher.broker.send_stored("room:a", b"%d" % count, CONFIG)
                await asyncio.sleep(0)
            await leaving
            owner = following
            (current,) = {
                node.session.histories.members.owners.owner(slot_of("room:a")) for node in (publisher, following)
            }
            if current == publisher.info.id:
                break
        await until(lambda: len(publisher.received) == count)
        heads = [decode_stored(envelope) for envelope in publisher.received]
        assert len({head.epoch for head, _ in heads}) == 1
        assert sorted(int(envelope) for _, envelope in heads) == list(range(1, count + 1))
        kept = [stored.envelope for stored in (await read(publisher, "room:a")).envelopes]
        assert kept == [b"the first", *(b"%d" % number for number in range(1, count + 1))]
        await owner.close()


@pytest.mark.failure("a worker is killed")
async def test_the_histories_of_a_killed_worker_begin_new_epochs(path: Path) -> None:
    async with worker(path) as process:
        node = await Node(path).start()
        before = {channel: await store(node, channel, b"1") for channel in CHANNELS}
        owned = [channel for channel, owner in zip(CHANNELS, owners_of(node), strict=True) if owner == process.id]
        assert owned
        await process.kill()
        async with sweeping(node):
            for channel in CHANNELS:
                position = await store(node, channel, b"2")
                if channel in owned:
                    assert position.epoch != before[channel].epoch
                    assert position.offset == 1
                else:
                    assert position == Position(2, before[channel].epoch)
        await node.close()


@pytest.mark.failure("a worker hangs")
async def test_requests_to_a_worker_that_hangs_are_bounded_and_fail_in_time(path: Path) -> None:
    skipped = 0.0
    async with worker(path) as process:
        node = await Node(path, clock=lambda: time.monotonic() + skipped, max_pending=1 << 20).start()
        for channel in CHANNELS:
            await store(node, channel, b"1")
        channel = CHANNELS[owners_of(node).index(process.id)]
        process.signal(signal.SIGSTOP)
        reading = asyncio.create_task(read(node, channel))
        publishing = asyncio.create_task(store(node, channel, b"2"))
        await asyncio.sleep(0)
        taken = 0
        while node.broker.send_stored(channel, bytes(65536), CONFIG):
            taken += 1
            assert taken < 200
        with pytest.raises(BrokerUnavailable):
            await store(node, channel, bytes(65536))
        assert node.broker.stats().dropped["full"] == 1
        skipped = 6
        node.broker.sweep(node.now())
        with pytest.raises(BrokerUnavailable):
            await reading
        with pytest.raises(BrokerUncertain):
            await publishing
        process.signal(signal.SIGCONT)
        await node.close()


async def test_a_broker_that_is_not_started_or_closed_stores_nothing(path: Path) -> None:
    node = Node(path)
    assert not node.broker.send_stored("room:a", b"1", CONFIG)
    with pytest.raises(BrokerUnavailable):
        await store(node, "room:a", b"1")
    await node.start()
    await store(node, "room:a", b"1")
    await node.close()
    assert not node.broker.send_stored("room:a", b"1", CONFIG)
    for call in (store(node, "room:a", b"1"), read(node, "room:a")):
        with pytest.raises(BrokerError):
            await call


async def test_all_workers_may_leave_at_once(path: Path) -> None:
    nodes = [await Node(path).start() for _ in range(4)]
    for channel in CHANNELS:
        await store(nodes[0], channel, b"1")
    began = time.monotonic()
    await asyncio.gather(*(node.close() for node in nodes))
    assert time.monotonic() - began < 3


def test_news_of_a_slot_end_in_one_owner_in_whatever_order_they_come() -> None:
    news = [Owned(5, 1, "b"), Owned(5, 1, "a"), Owned(5, 3, "c"), Owned(5, 2, "d"), Owned(5, 3, "d")]
    for turn in range(len(news)):
        owners = Owners("e")
        for owned in news[turn:] + news[:turn]:
            owners.merge(owned)
        assert (owners.term(5), owners.owner(5)) == (3, "c")
    with pytest.raises(ValueError, match="no slot"):
        Owners("e").merge(Owned(SLOTS, 1, "a"))


def test_late_news_do_not_bring_an_ended_owner_back() -> None:
    owners = Owners("a")
    owners.merge(Owned(5, 1, "b"))
    assert owners.node_ended("b") == [5]
    owners.merge(Owned(5, 1, "b"))
    owners.merge(Owned(6, 7, "b"))
    assert (owners.owner(5), owners.owner(6), owners.term(6)) == ("", "", 7)


def test_a_node_that_is_missing_moves_no_slots_of_others() -> None:
    nodes = [secrets.token_hex(8) for _ in range(4)]
    before = [rendezvous(slot, nodes) for slot in range(SLOTS)]
    after = [rendezvous(slot, nodes[1:]) for slot in range(SLOTS)]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != nodes[0])
    assert min(before.count(node) for node in nodes) > SLOTS / 8


def test_histories_move_in_parts_within_bytes() -> None:
    old, new = HistoryStore(), HistoryStore()
    for number in range(50):
        old.store("room:a", b"%d" % number + bytes(100), CONFIG, 100.0, f"key {number}")
    parts = list(old.parts(110.0, 500, 2000))
    assert len(parts) > 5
    for part in parts:
        body = decode_body(Moving(3, part).encode())
        assert isinstance(body, Moving)
        assert body == Moving(3, part)
        new.restore(body.part, 5.0)
    found = new.read("room:a", CONFIG, HistoryQuery(), 5.0)
    assert found.position == old.read("room:a", CONFIG, HistoryQuery(), 110.0).position
    assert [stored.offset for stored in found.envelopes] == list(range(32, 51))
    assert new.store("room:a", b"", CONFIG, 5.0, "key 0").is_duplicate
    assert not new.store("room:a", b"", CONFIG, 296.0, "key 0").is_duplicate


@pytest.mark.parametrize(
    "query",
    [
        HistoryQuery(),
        HistoryQuery(limit=0, max_bytes=1, reverse=True),
        HistoryQuery(since=Position(7, "abcdefgh"), is_own=True, mark=b"mark"),
    ],
)
def test_a_query_arrives_at_another_worker_as_it_was(query: HistoryQuery) -> None:
    read = Read(1, 2, "room:a", CONFIG, query)
    assert decode_body(read.encode()) == read


def test_a_query_that_is_out_of_bounds_is_malformed() -> None:
    query = HistoryQuery()
    object.__setattr__(query, "limit", 1_000_001)
    with pytest.raises(ValueError, match="limit must be an integer from 0 to 1000000"):
        decode_body(Read(1, 2, "room:a", CONFIG, query).encode())


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x01" + b"\xff" * 40, b"\x0a" + bytes(60) + b"\xff" * 8, b"\x06\0"])
def test_malformed_records_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_body(body)


def test_records_of_a_later_release_are_ignored() -> None:
    assert decode_body(b"\xff and more") is None
