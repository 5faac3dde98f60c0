"""Measures what the mesh of workers costs: CPU time for each envelope and peer, and the latency of single envelopes.

    python benchmarks/brokers_workers.py
    python benchmarks/brokers_workers.py --readers 3 --seconds 5

The writer has one core and all readers the other. A reader counts envelopes natively, as a hub takes them. The writer
sends a group in each iteration of its loop, and waits while too much is pending. The CPU time is user and kernel time
of the whole process, loop included. An empty iteration is measured too.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from wshub.brokers.envelope import encode_envelope
from wshub.brokers.envelope_receiver import EnvelopeReceiver
from wshub.brokers.interface import NodeInfo, node_channel
from wshub.brokers.workers import WorkersBroker
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor

ROOM = "room:benchmark"
MAX_WAITING = 256 * 1024
LOOKS = 16
"""Groups between two looks at how much waits."""


class Events(EnvelopeReceiver):
    """The hub's side of a broker. It takes envelopes natively, and does nothing with them."""

    def __init__(self) -> None:
        self.reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=time.monotonic)

    def now(self) -> float:
        return time.monotonic()

    def interrupted(self, channels: Any, reason: str) -> None:
        raise AssertionError(reason)

    def restored(self, channels: Any) -> None:
        pass


class CallingEvents:
    """The same for a hub that is not native: it calls a function with each envelope."""

    def __init__(self, receive: Callable[[bytes], object]) -> None:
        self.receive = receive
        self._events = Events()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events, name)


async def join(directory: str, events: Any, *channels: str) -> tuple[WorkersBroker, str]:
    node = NodeInfo(id=secrets.token_hex(8), hub="benchmark", pid=os.getpid())
    broker = WorkersBroker(directory)
    for channel in channels:
        broker.subscribe(channel)
    await broker.start(node, events)
    return broker, node.id


def read(directory: str, core: int, echoes: bool, connection: Any) -> None:
    """Be a reader: count envelopes, or send each back. Answer every command of the parent."""
    os.sched_setaffinity(0, {core})

    async def run() -> None:
        events = CallingEvents(lambda envelope: broker.send("room:back", envelope)) if echoes else Events()
        broker, node_id = await join(directory, events, *([] if echoes else [ROOM]))
        ended = asyncio.Event()

        def command() -> None:
            if connection.recv() == "count":
                connection.send((broker.stats().received, time.process_time()))
            else:
                ended.set()

        asyncio.get_running_loop().add_reader(connection.fileno(), command)
        connection.send(node_id)
        await ended.wait()
        await broker.close()

    asyncio.run(run())


class Reader:
    """A reader, from the parent's side."""

    def __init__(self, directory: str, core: int, *, echoes: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=read, args=(directory, core, echoes, theirs))
        self._process.start()

    async def answer(self) -> Any:
        return await asyncio.to_thread(self._connection.recv)

    async def count(self) -> tuple[int, float]:
        """Return how many envelopes have arrived, and the CPU time until now."""
        self._connection.send("count")
        received, cpu = await self.answer()
        return received, cpu

    async def end(self) -> None:
        self._connection.send("end")
        await asyncio.to_thread(self._process.join)


async def saturate(broker: WorkersBroker, seconds: float, group: int, envelope: bytes) -> tuple[int, float]:
    """Send for a while. Return how many envelopes, and the CPU time."""
    sent = 0
    began, ends = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < ends:
        # health() costs as much as some envelopes.
        if sent % (LOOKS * group) == 0:
            while broker.health().pending_bytes > MAX_WAITING:  # noqa: ASYNC110
                await asyncio.sleep(0.0001)
        for _ in range(group):
            broker.send(ROOM, envelope)
        sent += group
        await asyncio.sleep(0)
    while broker.health().pending_bytes:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return sent, time.process_time() - began


async def iterate(count: int) -> float:
    """Return the CPU time of an iteration of the loop in which nothing is sent."""
    began = time.process_time()
    for _ in range(count):
        await asyncio.sleep(0)
    return (time.process_time() - began) / count


async def round_trips(broker: WorkersBroker, arrived: asyncio.Event, count: int, reader: str) -> list[float]:
    """Send an envelope to one reader, and wait until it has come back. Return half of each time, in microseconds."""
    took = []
    for number in range(count):
        arrived.clear()
        began = time.perf_counter()
        broker.send(node_channel(reader), b"%d" % number + bytes(64))
        await arrived.wait()
        took.append((time.perf_counter() - began) / 2 * 1e6)
        await asyncio.sleep(0.001)
    return took


async def measure(options: argparse.Namespace) -> dict[str, float]:
    os.sched_setaffinity(0, {options.cores[0]})
    envelope = encode_envelope("room", "benchmark", bytes(options.size), node=1, number=1, sent_at=1)
    with tempfile.TemporaryDirectory(prefix="wshub-") as directory:
        arrived = asyncio.Event()
        broker, _ = await join(directory, CallingEvents(lambda envelope: arrived.set()), "room:back")
        readers = [Reader(directory, options.cores[-1]) for _ in range(options.readers)]
        for reader in readers:
            await reader.answer()
        iteration = await iterate(20_000)
        await saturate(broker, 0.3, options.group, envelope)
        await asyncio.sleep(0.3)
        before = [await reader.count() for reader in readers]
        sent, cpu = await saturate(broker, options.seconds, options.group, envelope)
        await asyncio.sleep(0.5)
        after = [await reader.count() for reader in readers]
        received = [later[0] - earlier[0] for earlier, later in zip(before, after, strict=True)]
        assert received == [sent] * options.readers, (received, sent)
        for reader in readers:
            await reader.end()
        echo = Reader(directory, options.cores[-1], echoes=True)
        node_id = await echo.answer()
        await broker.subscribed("room:back")
        latencies = await round_trips(broker, arrived, options.singles, node_id)
        await echo.end()
        stats = broker.stats()
        await broker.close()
    assert not any(stats.dropped.values()), stats
    return {
        "loop of the writer, an envelope": iteration / options.group * 1e6,
        "writer, an envelope to a peer": cpu / sent / options.readers * 1e6,
        "reader, an envelope": max(
            (later[1] - earlier[1]) / sent * 1e6 for earlier, later in zip(before, after, strict=True)
        ),
        "latency of a single one, median": statistics.median(latencies),
        "latency of a single one, 99 %": statistics.quantiles(latencies, n=100)[98],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--group", type=int, default=32, help="envelopes in one iteration of the writer's loop")
    parser.add_argument("--size", type=int, default=64, help="bytes of the message in an envelope")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--singles", type=int, default=1000)
    parser.add_argument("--cores", type=lambda text: [int(core) for core in text.split(",")], default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    samples = [asyncio.run(measure(options)) for _ in range(options.rounds)]
    print(f"| {options.readers} readers, {options.size} bytes, {options.group} in an iteration | µs | range |")
    print("| --- | --- | --- |")
    for name in samples[0]:
        found = [sample[name] for sample in samples]
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |")


if __name__ == "__main__":
    main()
