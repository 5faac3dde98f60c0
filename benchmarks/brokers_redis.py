"""Measures what a message to and from a Redis engine costs a node, beside redis-py.

``python benchmarks/brokers_redis.py``; it needs redis-server, and for the comparison the package redis. The figures are
microseconds of the node's CPU time for each message of 64 bytes, user and kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import hiredis
from engines import engine_at

from wshub import Connection, EventHandler, Hub, HubConfig
from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import room_channel
from wshub.brokers.redis import RedisBroker
from wshub.core.cluster_types import ClusterStats

NODE_CORE, ENGINE_CORE = 0, 1
MESSAGE = b"x" * 64
ROOMS = [f"room-{number}" for number in range(100)]
ENVELOPES = [encode_envelope("room", room, MESSAGE) for room in ROOMS]
NAMES = [f"wshub:hub:{room_channel(room)}" for room in ROOMS]
# A node publishes so many times its envelopes before it waits for an answer.
PUBLISH_TURNS = 10
WARM_UP_SECONDS = 0.5
GROUP = 20
GROUPS_PER_SECOND = 5_000
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextlib.asynccontextmanager
async def hub_of(url: str) -> AsyncIterator[Hub]:
    """Run a hub with a member of all rooms, which reads nothing: a message for it is framed, and then dropped."""
    hub = Hub(HubConfig(send_timeout_ms=600_000, max_send_buffer=1024), broker=RedisBroker(url), name="hub")
    entered = asyncio.Event()

    def enter(connection: Connection) -> None:
        for room in ROOMS:
            hub.configure_room(room, slow_consumer="drop_newest")
            connection.join(room)
        entered.set()

    async with hub.serve("127.0.0.1", 0, EventHandler(on_open=enter), close_hub=True) as server:
        with socket.socket() as member:
            member.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            member.connect(("127.0.0.1", server.port))
            member.sendall(UPGRADE)
            await entered.wait()
            for room in ROOMS:
                await hub.subscribed(room)
            await fill(hub)
            yield hub


async def fill(hub: Hub) -> None:
    """Send to the member until the kernel takes nothing more."""
    for _ in range(500):
        for _ in range(20):
            next(iter(hub.room_members(ROOMS[0]))).send(bytes(1000), slow_consumer="drop_newest")
        await asyncio.sleep(0.001)


async def measure(seconds: float, count: Callable[[], int], run: Callable[[], Any] | None = None) -> dict[str, float]:
    """Return the CPU time for each message of a window, and the messages in a second."""
    if run is None:
        await asyncio.sleep(WARM_UP_SECONDS)
    began, spent, counted = time.perf_counter(), time.process_time(), count()
    while time.perf_counter() - began < seconds:
        await (asyncio.sleep(0.05) if run is None else run())
    messages = count() - counted
    took = time.perf_counter() - began
    return {"us": (time.process_time() - spent) * 1e6 / max(messages, 1), "rate": messages / took}


async def hub_receives(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    async with hub_of(url) as hub:
        ready.send(None)
        figures = await measure(seconds, lambda: cluster_of(hub).received)
        cluster = cluster_of(hub)
        assert not cluster.interruptions, "the engine has ended the connection: the node did not keep up"
        assert hub.stats().dropped.newest > 0.9 * cluster.received, "the member takes messages"
        return figures


async def hub_publishes(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    async with hub_of(url) as hub:
        ready.send(None)
        rooms = [f"elsewhere-{number}" for number in range(len(ROOMS))]

        async def run() -> None:
            for _ in range(PUBLISH_TURNS):
                for room in rooms:
                    hub.broadcast(MESSAGE, room=room)
                await asyncio.sleep(0)
            await hub.publish(MESSAGE, room=rooms[0])

        return await measure(seconds, lambda: cluster_of(hub).broker.sent, run)


async def redis_py_receives(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    import redis.asyncio as redis

    received = 0
    async with redis.from_url(url, socket_timeout=None) as client, client.pubsub() as subscriber:
        await subscriber.subscribe(*NAMES)

        async def listen() -> None:
            nonlocal received
            async for message in subscriber.listen():
                received += message["type"] == "message"

        listening = asyncio.ensure_future(listen())
        await asyncio.sleep(0.2)
        ready.send(None)
        figures = await measure(seconds, lambda: received)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return figures


async def redis_py_publishes(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    import redis.asyncio as redis

    sent = 0
    async with redis.from_url(url) as client:
        await client.ping()
        ready.send(None)

        async def run() -> None:
            nonlocal sent
            pipeline = client.pipeline(transaction=False)
            for name, envelope in zip(NAMES * PUBLISH_TURNS, ENVELOPES * PUBLISH_TURNS, strict=True):
                pipeline.publish(name, envelope)
            await pipeline.execute()
            sent += len(NAMES) * PUBLISH_TURNS

        return await measure(seconds, lambda: sent, run)


def cluster_of(hub: Hub) -> ClusterStats:
    """Return what a hub counts of its cluster."""
    cluster = hub.stats().cluster
    assert cluster is not None
    return cluster


PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "wshub": (hub_receives, hub_publishes),
    "redis-py": (redis_py_receives, redis_py_publishes),
}


def node(program: Callable[..., Any], url: str, seconds: float, pipe: Pipe) -> None:
    """Run a node in a process of its own, and send its figures."""
    os.sched_setaffinity(0, {NODE_CORE})
    pipe.send(asyncio.run(program(url, seconds, pipe)))


def packed(*words: str | bytes) -> bytes:
    """Return a command as the engine takes it."""
    # The types of hiredis allow a single word.
    return bytes(hiredis.pack_command(cast(Any, words)))


def flood(path: str, stop: Callable[[], bool], *, paced: bool) -> None:
    """Publish until told to stop: as fast as the engine takes it and its subscriber reads, or in groups at a rate."""
    commands = [packed("PUBLISH", *pair) for pair in zip(NAMES, ENVELOPES, strict=True)]
    batch = b"".join(commands * (1 if paced else 10))
    group = b"".join(commands[:GROUP])
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(path)
        reader = hiredis.Reader()
        due = time.perf_counter()
        while not stop():
            engine.sendall(group if paced else batch)
            if paced:
                due = max(due + 1 / GROUPS_PER_SECOND, time.perf_counter() - 0.01)
                while time.perf_counter() < due:
                    pass
            for _ in range(GROUP if paced else 10 * len(commands)):
                while reader.gets() is False:
                    reader.feed(engine.recv(65536))
            if not paced:
                wait_for_subscriber(engine, reader)


def wait_for_subscriber(engine: socket.socket, reader: hiredis.Reader) -> None:
    """Return when little waits for subscribers in the engine, so that it does not end their connections."""
    while True:
        engine.sendall(packed("CLIENT", "LIST", "TYPE", "pubsub"))
        while (clients := reader.gets()) is False:
            reader.feed(engine.recv(65536))
        waiting = [int(word[5:]) for word in str(clients, "ascii").split() if word.startswith("omem=")]
        if max(waiting, default=0) < 1_000_000:
            return
        time.sleep(0.001)


def sample(program: Callable[..., Any], url: str, path: str, seconds: float, load: str) -> dict[str, float]:
    """Measure one program once."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=node, args=(program, url, seconds, theirs))
    process.start()
    theirs.close()
    ours.recv()
    if load:
        flood(path, ours.poll, paced=load == "paced")
    figures: dict[str, float] = ours.recv()
    process.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    options = parser.parse_args()
    os.sched_setaffinity(0, {ENGINE_CORE})
    rows = {
        "receive, saturated": (0, "saturated"),
        "receive, 100,000/s in 20s": (0, "paced"),
        "publish, pipelined": (1, ""),
    }
    print(f"| | {' | '.join(options.programs.split(','))} |")
    with tempfile.TemporaryDirectory() as directory, engine_at(directory, ENGINE_CORE) as (url, path):
        for row, (index, load) in rows.items():
            cells = []
            for name in options.programs.split(","):
                samples = []
                for _ in range(options.rounds):
                    samples.append(sample(PROGRAMS[name][index], url, path, options.seconds, load))
                    print(row, name, samples[-1], file=sys.stderr)
                cost = statistics.median(one["us"] for one in samples)
                cells.append(f"{cost:.2f} ({statistics.median(one['rate'] for one in samples):,.0f}/s)")
            print(f"| {row} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
