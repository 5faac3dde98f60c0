"""Nodes that die, hang, or differ from the others: what the program sees, what clients see, and where it is counted.

One node is a hub of this process, on a clock that only the test moves. The other one often has a process of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets

from tests.support.broker_node import until
from tests.support.cluster_nodes import (
    LARGE_BUFFER,
    all_know,
    counts_for,
    member,
    pass_for,
    pass_until,
    process_node,
    receive,
    receive_until,
    remote_member,
    serving_node,
)
from tests.support.nats_engine import running_nats
from tests.support.preloading import build_library, preloading
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.serving_hub import Clock, connected
from wshub.brokers.interface import Published
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker
from wshub.core.cluster_types import Survey

MESSAGES = 300
MAX_PENDING = 8 * 1024 * 1024
AN_HOUR = 3600


@pytest.fixture
def directory(socket_directory: Path) -> str:
    """The URL of the workers' broker."""
    return f"workers:{socket_directory}"


@pytest.fixture(params=["redis", "workers", "nats"])
def place(request: pytest.FixtureRequest, directory: str) -> Iterator[str]:
    """The URL of a broker of each kind."""
    if request.param == "workers":
        yield directory
        return
    if request.param == "nats":
        with running_nats("current") as server:
            yield server.url
        return
    with running_engine(request.param) as engine:
        yield engine.url


def number_of(text: str) -> int:
    return int(text.split(" ", 1)[0])


def numbered(number: int) -> str:
    return f"{number} ".ljust(65_536)


@pytest.mark.failure("a node dies")
async def test_a_node_that_dies_is_missing_in_surveys_and_leaves_after_ten_seconds(place: str, clock: Clock) -> None:
    async with serving_node(place, clock=clock) as one, process_node(place) as two:
        async with connected(two.url("room")) as client:
            await all_know(one, count=2)
            assert one.stats.nodes == 2
            one.hub.answer_survey("where", lambda body: "here")
            await two.kill()
            with pytest.raises(websockets.ConnectionClosedError):
                await client.recv()
        # The client comes back elsewhere.
        async with member(one, "room") as client:
            await one.hub.publish("hello", room="room")
            assert await client.recv() == "hello"
        await pass_for(1, clock, one)
        here = {one.id: "here"}
        assert await one.hub.survey("where", timeout_ms=200) == Survey(answers=here, missing=(two.id,))
        await pass_for(9, clock, one)
        assert one.stats.nodes == len(await one.hub.nodes()) == 2
        await pass_for(1, clock, one)
        assert one.stats.nodes == len(await one.hub.nodes()) == 1
        assert await one.hub.survey("where") == Survey(answers=here)


@pytest.mark.failure("a worker hangs")
async def test_a_worker_that_hangs_for_a_moment_has_messages_late_up_to_eight_mebibytes(
    directory: str, clock: Clock
) -> None:
    async with (
        serving_node(directory, clock=clock) as one,
        process_node(directory) as two,
        remote_member(two, "room", one) as far,
    ):
        two.signal(signal.SIGSTOP)
        for number in range(MESSAGES):
            one.hub.broadcast(numbered(number), room="room")
            await asyncio.sleep(0)
        dropped = one.dropped["full"]
        assert 0 < dropped == sum(one.dropped.values())
        assert MAX_PENDING - 70_000 < one.hub.health().broker.pending_bytes <= MAX_PENDING
        two.signal(signal.SIGCONT)
        assert [number_of(text) for text in await receive(far, MESSAGES - dropped)] == list(range(MESSAGES - dropped))
        # It knows that it has missed something.
        assert (await counts_for(far))["interruptions"] == {"full": 1}
        one.hub.broadcast("later", room="room")
        assert await far.recv() == "later"
        assert one.stats.interruptions == {}


@pytest.mark.failure("a worker hangs")
async def test_a_worker_that_hangs_leaves_the_others_after_eight_seconds(directory: str, clock: Clock) -> None:
    async with (
        serving_node(directory, clock=clock) as one,
        process_node(directory) as two,
        remote_member(two, "room", one) as far,
    ):
        assert one.stats.broker.peers == 1
        # Handle all that it has sent: it would count as a sign of life.
        await pass_for(1, clock, one)
        two.signal(signal.SIGSTOP)
        for number in range(MESSAGES):
            one.hub.broadcast(numbered(number), room="room")
            await asyncio.sleep(0)
        full = one.dropped["full"]
        seconds = await pass_until(lambda: not one.stats.broker.peers, clock, one)
        assert 8 <= seconds <= 10
        assert one.stats.interruptions == {"lost": 1}
        assert full > 0
        heartbeats = one.stats.rejected - full
        dropped = sum(one.dropped.values()) - heartbeats
        # The queue is dropped with the connection.
        assert dropped > full
        await pass_for(4, clock, one)
        assert len(await one.hub.nodes()) == one.stats.nodes == 1
        two.signal(signal.SIGCONT)
        await pass_until(lambda: one.stats.broker.peers == 1, clock, one, seconds=600)
        while (await one.hub.publish("later", room="room")).receivers != 1:
            await asyncio.sleep(0.01)
        # It gets what the kernel had taken. A transport may have taken more, which is lost without a count.
        numbers = [number_of(text) for text in await receive_until(far, "later")]
        assert numbers == list(range(len(numbers)))
        assert 0 < len(numbers) <= MESSAGES - dropped
        assert (await counts_for(far))["interruptions"] == {"lost": 1}


class NextVersion(RedisBroker):
    """The broker of a node whose messages have the next version of the envelope."""

    speaks_next = False

    def send(self, channel: str, envelope: bytes) -> bool:
        return super().send(channel, self._next(envelope))

    async def publish(self, channel: str, envelope: bytes) -> Published:
        return await super().publish(channel, self._next(envelope))

    def _next(self, envelope: bytes) -> bytes:
        return bytes((envelope[0] + 1,)) + envelope[1:] if self.speaks_next else envelope


@pytest.mark.failure("two nodes run different versions of wshub")
async def test_an_old_node_ignores_and_counts_messages_of_a_newer_version(
    redis_engine: RedisEngine, clock: Clock
) -> None:
    broker = NextVersion(redis_engine.url)
    async with (
        serving_node(broker, clock=clock) as new,
        serving_node(RedisBroker(redis_engine.url), clock=clock) as old,
        member(new, "room") as near,
        member(old, "room") as far,
    ):
        await all_know(new, old)
        broker.speaks_next = True
        new.hub.broadcast("1", room="room")
        await new.hub.publish("2", room="room")
        await until(lambda: old.stats.ignored.unreadable == 2)
        broker.speaks_next = False
        new.hub.broadcast("3", room="room")
        # Nothing else suffers: messages that both know arrive, in both directions.
        assert await far.recv() == "3"
        assert await receive(near, 3) == ["1", "2", "3"]
        old.hub.broadcast("4", room="room")
        assert await near.recv() == "4"
        assert old.stats.received == old.stats.delivered + old.stats.ignored.total
        assert old.hub.health().ok


@pytest.mark.failure("two workers run versions that cannot talk")
async def test_workers_of_versions_that_cannot_talk_leave_each_other_alone(
    socket_directory: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Each of them takes the other one for a worker of version 1.
    monkeypatch.setattr("wshub.brokers.workers_session.VERSION", 2)
    async with (
        serving_node(WorkersBroker(socket_directory, several_in_process=True), clock=clock) as one,
        serving_node(WorkersBroker(socket_directory, several_in_process=True), clock=clock) as two,
        member(one, "room") as near,
        member(two, "room") as far,
    ):
        await pass_for(5, clock, one, two)
        await one.hub.publish("1", room="room")
        await two.hub.publish("2", room="room")
        assert await near.recv() == "1"
        assert await far.recv() == "2"
        assert [node.stats.nodes for node in (one, two)] == [1, 1]
        assert len(await one.hub.nodes()) == 1
        assert one.stats.rejected == sum(one.dropped.values()) == 0
        told = [record for record in caplog.records if "of another version runs" in record.getMessage()]
        assert len(told) == 2


@pytest.fixture(scope="module")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a library that makes the clock of a program an hour fast."""
    source = Path(__file__).parents[1] / "support" / "wrong_clock.c"
    return build_library(source, tmp_path_factory.mktemp("clock"))


@pytest.mark.failure("the clocks of machines differ")
async def test_a_clock_that_is_an_hour_fast_changes_nothing_but_the_lag(place: str, clock: Clock, wrong_clock) -> None:
    async with (
        serving_node(place, clock=clock, max_send_buffer=LARGE_BUFFER) as one,
        process_node(place, LD_PRELOAD=preloading(wrong_clock)["LD_PRELOAD"]) as two,
        member(one, "room") as near,
        remote_member(two, "room", one) as far,
    ):
        own, other = await one.hub.nodes()
        assert AN_HOUR - 60 < other.info.started_at - own.info.started_at < AN_HOUR + 60
        await far.send("from the future")
        assert await near.recv() == await far.recv() == "from the future"
        await one.hub.publish("from the past", room="room")
        assert await near.recv() == await far.recv() == "from the past"
        counts = await counts_for(far)
        # The lag of the last message stays until there is another message.
        await pass_for(2, clock, one)
        assert -AN_HOUR - 60 < one.stats.lag_ms / 1000 < -AN_HOUR + 60
        assert AN_HOUR - 60 < counts["lag_ms"] / 1000 < AN_HOUR + 60
        assert await one.hub.room_count("room") == 2
        assert other.hears_this_node
        for stats in (dataclasses.asdict(one.stats), counts):
            assert stats["interruptions"] == {}
            assert sum(stats["ignored"].values()) == stats["ignored"]["own"]
            assert stats["rejected"] == sum(stats["broker"]["dropped"].values()) == 0
