"""The counts of all nodes together account for every message to a room."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_node import until
from tests.support.cluster_nodes import (
    LARGE_BUFFER,
    HubNode,
    all_know,
    member,
    pass_for,
    receive_until,
    serving_node,
)
from tests.support.nats_engine import PROGRAMS as NATS_PROGRAMS
from tests.support.nats_engine import running_nats
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.serving_hub import Clock
from tests.support.tcp_proxy import TcpProxy, proxy_to
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker

MESSAGES = 2_000


@pytest.fixture(params=["redis", "valkey", "workers", "2.9", "current"])
def create_broker(request: pytest.FixtureRequest, socket_directory: Path) -> Iterator[Callable[[], Broker]]:
    """A function that returns a broker for each node."""
    if request.param == "workers":
        yield lambda: WorkersBroker(socket_directory, several_in_process=True)
        return
    if request.param in NATS_PROGRAMS:
        with running_nats(request.param) as server:
            yield lambda: NatsBroker(server.url)
        return
    with running_engine(request.param) as engine:
        yield lambda: RedisBroker(engine.url)


async def test_without_faults_each_node_with_members_receives_what_was_published(
    create_broker: Callable[[], Broker], clock: Clock
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one, two, three, empty = [
            await stack.enter_async_context(serving_node(create_broker(), clock=clock, max_send_buffer=LARGE_BUFFER))
            for _ in range(4)
        ]
        clients = [await stack.enter_async_context(member(node, "room")) for node in (one, two, two, three)]
        await all_know(one, two, three, empty)
        before = {node: node.stats for node in (one, two, three, empty)}
        for number in range(MESSAGES - 1):
            one.hub.broadcast(str(number), room="room")
            if number % 100 == 0:
                await asyncio.sleep(0)
        await one.hub.publish("end", room="room")
        for client in clients:
            assert await receive_until(client, "end") == [str(number) for number in range(MESSAGES - 1)]

        def counted(node: HubNode, name: str) -> int:
            return getattr(node.stats, name) - getattr(before[node], name)

        assert counted(one, "published") == MESSAGES
        others = [node for node in (two, three, empty) if node.hub.room_size("room")]
        assert sum(counted(node, "received") for node in (two, three, empty)) == MESSAGES * len(others)
        assert [counted(node, "delivered") for node in (two, three, empty)] == [MESSAGES, MESSAGES, 0]
        for node in (one, two, three, empty):
            assert node.stats.rejected == sum(node.dropped.values()) == 0
            assert node.stats.interruptions == {}
            assert node.stats.received == node.stats.delivered + node.stats.ignored.total


class Stream:
    """Numbers that one node sends to a room, and what it has said about each."""

    def __init__(self, sender: HubNode) -> None:
        self.count = 0
        self.not_taken: set[int] = set()
        """Numbers that the broker did not take: the sender knows."""
        self._sender = sender

    async def flow(self) -> None:
        """Send one number after the other, until this is cancelled."""
        while True:
            for _ in range(20):
                rejected = self._sender.stats.rejected
                self._sender.hub.broadcast(str(self.count), room="room")
                if self._sender.stats.rejected > rejected:
                    self.not_taken.add(self.count)
                self.count += 1
            await asyncio.sleep(0.001)

    async def go_on(self) -> None:
        """Wait until some more numbers are sent."""
        enough = self.count + 200
        await until(lambda: self.count >= enough)


def record_interruptions(node: HubNode) -> list[int]:
    """Return a list that gets the number of messages to the room's only member before each interruption."""
    places: list[int] = []
    cluster: Any = node.hub._cluster
    interrupted = cluster.interrupted

    def recorded(channels: Any, reason: str) -> None:
        places.append(node.hub.stats(room="room").messages_accepted)
        interrupted(channels, reason)

    cluster.interrupted = recorded
    return places


def lost_without_a_word(numbers: list[int], count: int, interrupted_at: list[int]) -> set[int]:
    """Return the numbers that are missing where the receiver was not interrupted."""
    lost: set[int] = set()
    last = -1
    for place, number in enumerate([*numbers, count]):
        if place not in interrupted_at:
            lost.update(range(last + 1, number))
        last = number
    return lost


@contextlib.asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside the block."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def time_passes(clock: Clock, *nodes: HubNode) -> None:
    """Have the clock of the nodes go on, ten times as fast as time."""
    while True:
        clock.now += 1
        for node in nodes:
            node.sweep()
        await asyncio.sleep(0.1)


def reconnects(*nodes: HubNode) -> int:
    return sum(node.stats.broker.reconnects for node in nodes)


async def cause(fault: str, engine: RedisEngine, proxy: TcpProxy, one: HubNode, two: HubNode) -> None:
    """Have a fault happen, which may be over when this returns."""
    if fault == "the engine is restarted":
        engine.stop(signal.SIGKILL)
        await asyncio.to_thread(engine.start)
        return
    name = f"{one.id}:publisher" if fault == "the sender is reset" else f"{two.id}:subscriber"
    (connection,) = proxy.open_connections(name.encode())
    connection.reset()


@pytest.mark.parametrize("fault", ["the sender is reset", "the receiver is reset", "the engine is restarted"])
async def test_what_a_member_misses_was_counted_at_the_sender_or_told_at_the_receiver(
    own_engine: RedisEngine, clock: Clock, fault: str
) -> None:
    with proxy_to("127.0.0.1", own_engine.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with (
            serving_node(RedisBroker(url), clock=clock) as one,
            serving_node(RedisBroker(url), clock=clock, max_send_buffer=LARGE_BUFFER) as two,
            member(two, "room") as far,
        ):
            await all_know(one, two)
            await pass_for(2, clock, one, two)
            interrupted_at = record_interruptions(two)
            stream = Stream(one)
            receiving = asyncio.create_task(receive_until(far, "end"))
            async with running(stream.flow(), time_passes(clock, one, two)):
                for turn in (1, 2):
                    await stream.go_on()
                    await cause(fault, own_engine, proxy, one, two)
                    expected = turn * (4 if fault == "the engine is restarted" else 1)
                    await until(lambda count=expected: reconnects(one, two) >= count)
                    await until(lambda: one.hub.health().ok and two.hub.health().ok)
                    await stream.go_on()
            await two.hub.subscribed("room")
            await one.hub.publish("end", room="room")
            numbers = [int(text) for text in await receiving]
            assert numbers == sorted(set(numbers))
            lost = set(range(stream.count)) - set(numbers)
            assert stream.not_taken <= lost
            untold = lost_without_a_word(numbers, stream.count, interrupted_at) - stream.not_taken
            assert len(untold) <= one.dropped["unanswered"]
            assert one.stats.rejected + one.dropped["unanswered"] == sum(one.dropped.values())
            assert sum(two.stats.interruptions.values()) == len(interrupted_at)
            assert bool(interrupted_at) == (fault != "the sender is reset")
