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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import hiredis

from wshub.brokers.envelope import encode_envelope
from wshub.brokers.interface import NodeInfo, room_channel
from wshub.brokers.redis import RedisBroker
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor

NODE_CORE, ENGINE_CORE = 0, 1
ROOMS = [f"room-{number}" for number in range(100)]
ENVELOPES = [encode_envelope("room", room, b"x" * 64, node=1, number=1) for room in ROOMS]
NAMES = [f"wshub:hub:{room_channel(room)}" for room in ROOMS]
# A node publishes so many times its envelopes before it waits for an answer.
PUBLISH_TURNS = 10
WARM_UP_SECONDS = 0.5
GROUP = 20
GROUPS_PER_SECOND = 5_000


class Events:
    """Counts what arrives. A hub would find the room and build a frame, natively."""

    def __init__(self) -> None:
        self.reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=time.monotonic)
        self.received = 0
        self.interruptions = 0

    def now(self) -> float:
        return time.monotonic()

    def receive(self, envelope: bytes) -> None:
        self.received += 1

    def interrupted(self, channels: Any, reason: str) -> None:
        self.interruptions += 1

    def restored(self, channels: Any) -> None:
        pass


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


async def broker_receives(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    events, broker = Events(), RedisBroker(url)
    await broker.start(NodeInfo(id="0" * 16, hub="hub"), events)
    for room in ROOMS:
        broker.subscribe(room_channel(room))
    for room in ROOMS:
        await broker.subscribed(room_channel(room))
    ready.send(None)
    figures = await measure(seconds, lambda: events.received)
    assert events.interruptions == 0, "the engine has ended the connection: the node did not keep up"
    await broker.close()
    events.reactor.release()
    return figures


async def broker_publishes(url: str, seconds: float, ready: Pipe) -> dict[str, float]:
    events, broker = Events(), RedisBroker(url)
    await broker.start(NodeInfo(id="0" * 16, hub="hub"), events)
    channels = [room_channel(room) for room in ROOMS]
    ready.send(None)

    async def run() -> None:
        for _ in range(PUBLISH_TURNS):
            for channel, envelope in zip(channels, ENVELOPES, strict=True):
                broker.send(channel, envelope)
            await asyncio.sleep(0)
        await broker.publish(channels[0], ENVELOPES[0])

    figures = await measure(seconds, lambda: broker.stats()["sent"], run)
    await broker.close()
    events.reactor.release()
    return figures


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


PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "wshub": (broker_receives, broker_publishes),
    "redis-py": (redis_py_receives, redis_py_publishes),
}


def node(program: Callable[..., Any], url: str, seconds: float, pipe: Pipe) -> None:
    """Run a node in a process of its own, and send its figures."""
    os.sched_setaffinity(0, {NODE_CORE})
    pipe.send(asyncio.run(program(url, seconds, pipe)))


def flood(path: str, stop: Callable[[], bool], *, paced: bool) -> None:
    """Publish until told to stop: as fast as the engine takes it and its subscriber reads, or in groups at a rate."""
    commands = [hiredis.pack_command(("PUBLISH", *pair)) for pair in zip(NAMES, ENVELOPES, strict=True)]
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
        engine.sendall(hiredis.pack_command(("CLIENT", "LIST", "TYPE", "pubsub")))
        while (clients := reader.gets()) is False:
            reader.feed(engine.recv(65536))
        waiting = [int(word[5:]) for word in str(clients, "ascii").split() if word.startswith("omem=")]
        if max(waiting, default=0) < 1_000_000:
            return
        time.sleep(0.001)


@contextlib.contextmanager
def engine_at(directory: str) -> Iterator[tuple[str, str]]:
    """Run an engine. Yields its URL, and the path of its Unix socket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = str(Path(directory, "engine.sock"))
    command = [
        "taskset",
        "-c",
        str(ENGINE_CORE),
        "redis-server",
        "--port",
        str(port),
        "--save",
        "",
        "--unixsocket",
        path,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=directory)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}", path
    finally:
        process.terminate()
        process.wait()


def sample(program: Callable[..., Any], url: str, path: str, seconds: float, load: str) -> dict[str, float]:
    """Measure one program once."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=node, args=(program, url, seconds, theirs))
    process.start()
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
    with tempfile.TemporaryDirectory() as directory, engine_at(directory) as (url, path):
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
