"""One node of the cluster's soak test: ``python -m tests.soak.cluster.node NUMBER URL LOOP``.

It sends to rooms, to users and to all connections. It tells its clients when messages from other nodes may be missing.
It prints a report as a line of JSON twice a second. After SIGUSR1 it ends each stream; after SIGTERM it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import uvloop

from tests.soak.cluster.wire import (
    ALL,
    IDENTIFY,
    INTERRUPTED,
    JOIN,
    LEAVE,
    PUBLISHED,
    READY,
    REQUEST,
    RETURNED,
    ROOM,
    ROOMS,
    SENT,
    STREAMED,
    USER,
    USERS,
    room_name,
    user_name,
)
from tests.soak.server import descriptors, resident
from wshub import (
    BrokerError,
    BrokerUnavailable,
    BrokerUncertain,
    Connection,
    ConnectionClosed,
    Hub,
    HubConfig,
    MisuseError,
)
from wshub.brokers.choosing import broker_from_url
from wshub.brokers.interface import Broker, BrokerEvents, NodeInfo, user_channel

TICK = 0.02
REPORT_PERIOD = 0.5
COLLECTING_PERIOD = 20
"""Reports between two collections of cycles."""

BURST = 300
"""Messages that are sent to one room in one iteration of the loop, now and then."""

PUBLISHING_AT_ONCE = 200
RETRY_SECONDS = 0.05


def watched_broker(url: str, interrupted: Callable[[Collection[str] | None], None]) -> Broker:
    """Return a broker that calls a function at each interruption, before the hub hears of it."""
    broker = broker_from_url(url)
    assert broker is not None
    start = broker.start

    async def watched_start(node: NodeInfo, events: BrokerEvents) -> None:
        tell_hub = events.interrupted

        def tell(channels: Collection[str] | None, reason: str) -> None:
            interrupted(channels)
            tell_hub(channels, reason)

        events.interrupted = tell  # type: ignore[method-assign]
        await start(node, events)

    broker.start = watched_start  # type: ignore[method-assign]
    return broker


class Node:
    """The hub, its clients and its streams."""

    def __init__(self, number: int, url: str) -> None:
        self.number = number
        self.broker = watched_broker(url, self.interrupted)
        self.hub = Hub(HubConfig(ping_interval_ms=5_000), broker=self.broker)
        self.interruptions = 0
        self.connections: set[Connection] = set()
        self.streams: dict[tuple[int, int], tuple[int, float]] = {}
        """The last number of each stream, and when it was sent."""
        self.published = 0
        self.outcomes: list[tuple[int, int, str]] = []
        """Room, number and outcome of each publish() that has ended since the last report."""
        self._publishing: set[asyncio.Task[None]] = set()
        self._reports = 0

    # Clients

    async def serve(self, connection: Connection) -> None:
        self.connections.add(connection)
        try:
            with contextlib.suppress(ConnectionClosed):
                await self.answer(connection)
        finally:
            self.connections.discard(connection)

    async def answer(self, connection: Connection) -> None:
        async for message in connection:
            kind, number = REQUEST.unpack(bytes(message))
            if kind == LEAVE:
                connection.leave(room_name(number))
                connection.send(READY.pack(LEAVE, number, time.monotonic()))
            elif kind == JOIN:
                name = room_name(number)
                connection.join(name)
                await self.wait(lambda name=name: self.hub.subscribed(name))  # type: ignore[misc]
                connection.send(READY.pack(JOIN, number, time.monotonic()))
            elif kind == IDENTIFY:
                name = user_name(number)
                connection.user = name
                await self.wait(lambda name=name: self.broker.subscribed(user_channel(name)))  # type: ignore[misc]
                connection.send(READY.pack(IDENTIFY, number, time.monotonic()))

    async def wait(self, subscribed: Callable[[], Awaitable[None]]) -> None:
        """Return when messages arrive from all nodes, without an interruption since."""
        while True:
            seen = self.interruptions
            try:
                await subscribed()
            except (BrokerUnavailable, MisuseError):
                # There is no engine now, or the hub subscribes in the next iteration of the loop.
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if seen == self.interruptions:
                    return

    def interrupted(self, channels: Collection[str] | None) -> None:
        self.interruptions += 1
        told = {"time": time.monotonic(), "channels": None if channels is None else list(channels)}
        mark = bytes([INTERRUPTED]) + json.dumps(told).encode()
        for connection in self.connections:
            with contextlib.suppress(ConnectionClosed):
                connection.send(mark)

    # Streams

    def next_of(self, way: int, number: int, *, last: bool = False) -> tuple[bytes, int]:
        """Return the next message of a stream, and its number."""
        sequence, before = self.streams.get((way, number), (0, 0.0))
        now = time.monotonic()
        self.streams[way, number] = sequence + 1, now
        head = STREAMED.pack(SENT, self.number, way, number, sequence + 1, now, before, last)
        return head + bytes(48), sequence + 1

    def send(self, way: int, number: int, *, last: bool = False) -> None:
        """Send the next message of a stream."""
        message, sequence = self.next_of(way, number, last=last)
        if way == ROOM:
            self.hub.broadcast(message, room=room_name(number))
        elif way == USER:
            self.hub.send_to_user(user_name(number), message)
        elif way == ALL:
            self.hub.broadcast(message)
        else:
            task = asyncio.get_running_loop().create_task(self.publish(message, number, sequence))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def publish(self, message: bytes, room: int, sequence: int) -> None:
        try:
            published = await self.hub.publish(message, room=room_name(room))
        except BrokerError as error:
            kinds = {BrokerUnavailable: "unavailable", BrokerUncertain: "uncertain"}
            self.outcomes.append((room, sequence, kinds.get(type(error), "refused")))
        else:
            self.published += 1
            self.outcomes.append((room, sequence, f"{RETURNED} with {published.receivers} receivers"))

    def tick(self, chance: random.Random) -> None:
        for _ in range(2):
            self.send(ROOM, chance.randrange(ROOMS))
        if len(self._publishing) < PUBLISHING_AT_ONCE:
            self.send(PUBLISHED, chance.randrange(ROOMS))
        if chance.random() < 0.25:
            self.send(USER, chance.randrange(USERS))
        if chance.random() < TICK:
            self.send(ALL, 0)
        if chance.random() < TICK / 5:
            room = chance.randrange(ROOMS)
            for _ in range(BURST):
                self.send(ROOM, room)

    def end_streams(self) -> None:
        """Send the last message of each stream."""
        for room in range(ROOMS):
            self.send(ROOM, room, last=True)
            self.send(PUBLISHED, room, last=True)
        for user in range(USERS):
            self.send(USER, user, last=True)
        self.send(ALL, 0, last=True)

    def report(self) -> dict[str, Any]:
        if not self._reports % COLLECTING_PERIOD:
            # Memory that grows after a collection is a leak. Cycles would hide it.
            gc.collect()
        self._reports += 1
        stats = self.hub.stats()
        outcomes, self.outcomes = self.outcomes, []
        health = self.hub.health()
        return {
            "time": time.monotonic(),
            "ok": health.ok,
            "state": "" if health.broker is None else f"{health.broker.state} {health.broker.reason}",
            "connections": stats.connections,
            "delivered": stats.messages_delivered,
            "policy_drops": stats.dropped.total - stats.dropped.closed,
            "published": self.published,
            "outcomes": outcomes,
            "resident": resident(),
            "blocks": sys.getallocatedblocks(),
            "descriptors": descriptors(),
            "cluster": stats.asdict()["cluster"],
        }


async def main(number: int, url: str) -> None:
    loop = asyncio.get_running_loop()
    ending, stopping = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, ending.set)
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    node = Node(number, url)
    chance = random.Random(number)
    async with node.hub.serve("127.0.0.1", 0, node.serve, close_hub=True) as server:
        print(json.dumps({"port": server.port}), flush=True)
        due = report_due = loop.time()
        has_ended = False
        while not stopping.is_set():
            if not ending.is_set():
                node.tick(chance)
            elif not has_ended:
                has_ended = True
                node.end_streams()
            if loop.time() >= report_due:
                report_due += REPORT_PERIOD
                print(json.dumps(node.report()), flush=True)
            due = max(due + TICK, loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))
        print(json.dumps(node.report()), flush=True)


if __name__ == "__main__":
    factory = uvloop.new_event_loop if sys.argv[3] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2]))
