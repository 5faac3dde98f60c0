"""Measures rooms with history and with presence.

    python benchmarks/histories.py --quick
    python benchmarks/histories.py --only presence --rounds 5

It needs redis-server. Each sample has a fresh node on one core; clients, engine and the other worker have the other
core. CPU time is user and kernel time of the whole process. README.md says what the rows are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

import hiredis
import uvloop
from engines import engine_at
from run import raise_descriptor_limit

from wshub import BrokerError, Connection, HistoryConfig, Hub, HubConfig, Position
from wshub.brokers.interface import Broker, room_channel
from wshub.brokers.redis import RedisBroker
from wshub.brokers.workers import WorkersBroker
from wshub.brokers.workers_owners import slot_of

NODE_CORE, OTHER_CORE = 0, 1
TEXT = "x" * 64
ROOMS = [f"room-{number}" for number in range(100)]
RECOVERED = 100
"""Messages that each client recovers."""
BATCH = 1000
PAGE = 1000
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ASK = bytes([0x81, 0x80 | 3]) + bytes(4) + b"ask"
DONE = bytes([0x81, 4]) + b"done"
HANDSHAKES = 256
"""Clients that connect at once. The node drops handshakes above ``max_pending_handshakes``."""
OTHER_DESCRIPTORS = 500
"""Descriptors of a process beside its connections."""
KINDS = ("alone", "workers", "redis")


# Clients, in a process of their own


def be_clients(port: int, count: int, pipe: Pipe) -> None:
    """Connect so many clients. Each time that the node says so, have all ask, and read until all are done."""
    os.sched_setaffinity(0, {OTHER_CORE})
    clients: list[socket.socket] = []
    while len(clients) < count:
        clients += handshakes(port, min(HANDSHAKES, count - len(clients)))
    pipe.send("connected")
    while pipe.recv() == "ask":
        pipe.send(ask_all(clients))


def handshakes(port: int, count: int) -> list[socket.socket]:
    """Connect so many clients, and return once the node has accepted all of them."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for client in clients:
        client.sendall(UPGRADE)
    for client in clients:
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            data = client.recv(4096)
            if not data:
                raise ConnectionError(f"the node has ended a handshake after {answer!r}")
            answer += data
    return clients


def ask_all(clients: list[socket.socket]) -> int:
    """Have all clients ask. Return how many bytes they got until the last one was done."""
    poll = select.epoll()
    by_number = {client.fileno(): client for client in clients}
    ends = dict.fromkeys(by_number, b"")
    received = 0
    for number, client in by_number.items():
        poll.register(number, select.EPOLLIN)
        client.sendall(ASK)
    while ends:
        for number, _ in poll.poll():
            data = by_number[number].recv(1 << 20)
            assert data, "the node has ended a connection"
            received += len(data)
            if number in ends:
                ends[number] = (ends[number] + data)[-len(DONE) :]
                if ends[number] == DONE:
                    del ends[number]
                    poll.unregister(number)
    return received


@contextlib.contextmanager
def process_of(function: Callable[..., None], *arguments: Any) -> Iterator[Pipe]:
    """Run a function in a process of its own, with a pipe as its last argument. It ends at ``"end"``."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=function, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        yield ours
        ours.send("end")
    finally:
        process.join(10)
        process.kill()


async def received(pipe: Pipe) -> Any:
    return await asyncio.to_thread(pipe.recv)


# What is measured


def resident_memory() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Spent:
    """CPU time, memory and time since a moment."""

    def __init__(self) -> None:
        self.memory = resident_memory()
        self._time, self._cpu = time.perf_counter(), time.process_time()

    def us(self, count: int) -> float:
        """Return microseconds of CPU time for each of so many things."""
        return (time.process_time() - self._cpu) * 1e6 / count

    def seconds(self) -> float:
        return time.perf_counter() - self._time

    def bytes(self, count: int) -> float:
        """Return bytes of memory for each of so many things."""
        return (resident_memory() - self.memory) / count


def engine_memory(path: str) -> int:
    """Return the bytes that an engine uses."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(path)
        engine.sendall(hiredis.pack_command(("INFO",)))
        reader = hiredis.Reader(encoding="utf-8")
        while (info := reader.gets()) is False:
            reader.feed(engine.recv(65536))
    return int(info.partition("used_memory:")[2].split()[0])


def broker_of(kind: str, place: str) -> Broker | None:
    if kind == "redis":
        return RedisBroker(place)
    return WorkersBroker(place) if kind == "workers" else None


@contextlib.asynccontextmanager
async def served(hub: Hub, handler: Callable[[Connection], Any]) -> AsyncIterator[int]:
    """Serve a hub. Yield the port."""
    async with hub.serve("127.0.0.1", 0, handler, close_hub=True, backlog=16384) as server:
        await hub.broker_started()
        yield server.port


async def be_there(connection: Connection) -> None:
    """Do nothing until the client goes."""
    await connection.wait_closed()


# Publishing


async def publish(kind: str, place: str, engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Publish to rooms with history, as fast as the engine takes it."""
    hub = Hub(HubConfig(), broker=broker_of(kind, place))
    hub.configure_room("*", history=HistoryConfig(size=1000))
    figures = {}
    async with served(hub, be_there):
        for name, turn in (("broadcast()", broadcast_turn), ("await publish(), 100 at once", publish_turn)):
            await turn(hub)
            spent, count = Spent(), 0
            while spent.seconds() < options.seconds:
                count += await turn(hub)
            figures[f"{name}, us"] = spent.us(count)
            figures[f"{name}, each second"] = count / spent.seconds()
        before, used = resident_memory(), engine_memory(engine) if engine else 0
        for number in range(0, options.messages, BATCH):
            await asyncio.gather(*(hub.publish(TEXT, room="kept") for _ in range(BATCH)))
            if not number:
                hub.configure_room("kept", history=HistoryConfig(size=options.messages, max_bytes=1 << 40))
                before, used = resident_memory(), engine_memory(engine) if engine else 0
        kept = options.messages - BATCH
        figures["memory for each message that is kept, bytes"] = (
            (engine_memory(engine) - used) / kept if engine else (resident_memory() - before) / kept
        )
    return figures


async def broadcast_turn(hub: Hub) -> int:
    """Queue messages, and wait until the last one is stored."""
    for _ in range(BATCH // len(ROOMS)):
        for room in ROOMS:
            hub.broadcast(TEXT, room=room)
        await asyncio.sleep(0)
    await hub.publish(TEXT, room=ROOMS[-1])
    return BATCH + 1


async def publish_turn(hub: Hub) -> int:
    await asyncio.gather(*(hub.publish(TEXT, room=room) for room in ROOMS))
    return len(ROOMS)


# Recovery


async def recover(kind: str, place: str, engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Have all clients recover the last messages of a room at once."""
    hub = Hub(HubConfig(), broker=broker_of(kind, place))
    hub.configure_room("room", history=HistoryConfig(size=1000))
    position = Position(0, "")
    problems: list[str] = []

    async def serve(connection: Connection) -> None:
        async for _ in connection:
            outcome = await connection.recover("room", position)
            if (outcome.sent, outcome.gap) != (RECOVERED, ""):
                problems.append(f"{outcome.sent} messages were sent, {outcome.gap!r}")
            connection.send("done")

    async with served(hub, serve) as port:
        for number in range(10 + RECOVERED):
            published = await hub.publish(TEXT, room="room")
            assert published.position is not None
            if number == 9:
                position = published.position
        with process_of(be_clients, port, options.clients) as pipe:
            await received(pipe)
            spent = Spent()
            pipe.send("ask")
            await received(pipe)
            figures = {
                f"recovery of {RECOVERED} messages, us for each client": spent.us(options.clients),
                f"{options.clients:,} clients at once, ms until the last one has all": spent.seconds() * 1000,
            }
    assert not problems, problems[:3]
    return figures


# Presence


def be_other_worker(place: str, pipe: Pipe) -> None:
    """Be another worker, which keeps the room. Answer with the CPU time and the memory."""
    os.sched_setaffinity(0, {OTHER_CORE})

    async def run() -> None:
        hub = Hub(HubConfig(), broker=WorkersBroker(place))
        hub.configure_room("*", presence=True)
        async with served(hub, be_there):
            await hub.presence_counts("any")
            pipe.send("started")
            while await received(pipe) == "look":
                pipe.send((time.process_time(), resident_memory()))

    asyncio.run(run())


async def look_at(other: Pipe | None) -> tuple[float, int]:
    """Return the CPU time and the memory of the other worker."""
    if other is None:
        return 0.0, 0
    other.send("look")
    cpu, memory = await received(other)
    return cpu, memory


async def room_kept_elsewhere(hub: Hub) -> str:
    """Return a room that the other worker keeps."""
    assert isinstance(hub.broker, WorkersBroker)
    while True:
        for number in range(100):
            room = f"room-{number}"
            await hub.presence_counts(room)
            assert hub.broker._session is not None
            members = hub.broker._session.presences.members
            if members.owners.owner(slot_of(room_channel(room))) not in ("", members.own_id):
                return room
        await asyncio.sleep(0.05)


async def counted(hub: Hub, room: str, count: int) -> None:
    """Wait until so many are in a room."""
    while True:
        with contextlib.suppress(BrokerError):
            if (await hub.presence_counts(room)).connections == count:
                return
        await asyncio.sleep(0.005)


async def presence(kind: str, place: str, engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Have many connections join a room with presence, page through them, count them, and have them leave."""
    count = options.members
    hub = Hub(HubConfig(), broker=broker_of(kind, place))
    hub.configure_room("*", presence=True)
    connections: list[Connection] = []

    async def serve(connection: Connection) -> None:
        connections.append(connection)
        await connection.wait_closed()

    with contextlib.ExitStack() as stack:
        other = stack.enter_context(process_of(be_other_worker, place)) if kind == "workers" else None
        if other is not None:
            await received(other)
        async with served(hub, serve) as port:
            room = await room_kept_elsewhere(hub) if other is not None else "room"
            pipe = stack.enter_context(process_of(be_clients, port, count))
            await received(pipe)
            while len(connections) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            used = engine_memory(engine) if engine else 0
            cpu, memory = await look_at(other)
            spent = Spent()
            for connection in connections:
                connection.join(room, info={"name": "a name"})
            await counted(hub, room, count)
            figures = {"join, us": spent.us(count), "memory for each member, bytes of the node": spent.bytes(count)}
            later_cpu, later_memory = await look_at(other)
            if other is not None:
                figures["join, us of the owner"] = (later_cpu - cpu) * 1e6 / count
                figures["memory for each member, bytes of the owner"] = (later_memory - memory) / count
            if engine:
                figures["memory for each member, bytes of the engine"] = (engine_memory(engine) - used) / count
            spent, cursor, found = Spent(), "", 0
            while found == 0 or cursor:
                page = await hub.presence(room, limit=PAGE, cursor=cursor)
                found += len(page.members)
                cursor = page.cursor
            assert found >= count
            figures["a page of 1,000, us for each member"] = spent.us(found)
            spent = Spent()
            for _ in range(100):
                await hub.presence_counts(room)
            figures["presence_counts(), us"] = spent.us(100)
            spent = Spent()
            for connection in connections:
                connection.leave(room)
            await counted(hub, room, 0)
            figures["leave, us"] = spent.us(count)
    return figures


PARTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "publish": (publish, ("alone", "workers", "redis")),
    "recover": (recover, ("alone", "workers", "redis")),
    "presence": (presence, ("alone", "workers", "redis")),
}


def be_node(part: str, kind: str, place: str, engine: str, options: argparse.Namespace, pipe: Pipe) -> None:
    os.sched_setaffinity(0, {NODE_CORE})
    # A worker without others says at its end that nobody takes its histories.
    logging.getLogger("wshub.broker").setLevel(logging.ERROR)
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        pipe.send(runner.run(PARTS[part][0](kind, place, engine, options)))
    pipe.recv()


def sample(part: str, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one part once, with a fresh node, and a fresh engine if it needs one."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="wshub-"))
        place, engine = directory, ""
        if kind == "redis":
            place, engine = stack.enter_context(engine_at(directory, OTHER_CORE))
        pipe = stack.enter_context(process_of(be_node, part, kind, place, engine, options))
        figures: dict[str, float] = pipe.recv()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, and fewer of everything: no figures to keep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--messages", type=int, default=100_000, help="that are kept when their memory is measured")
    parser.add_argument("--clients", type=int, default=1000, help="that recover at once")
    parser.add_argument("--members", type=int, default=10_000, help="of a room with presence")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="of the node")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.messages = 1, 0.3, 5000
        options.clients, options.members = 50, 300
    # The node and the clients inherit it. Each has a descriptor for every connection.
    raise_descriptor_limit(max(options.clients, options.members) + OTHER_DESCRIPTORS)
    for part in options.only.split(","):
        for kind in PARTS[part][1]:
            if kind in options.kinds.split(","):
                report(part, kind, options)


def report(part: str, kind: str, options: argparse.Namespace) -> None:
    samples = []
    for _ in range(options.rounds):
        samples.append(sample(part, kind, options))
        print(part, kind, samples[-1], file=sys.stderr)
    print(f"\n| {part}, {kind} | median | range |\n| --- | --- | --- |")
    for name in samples[0]:
        found = [one[name] for one in samples]
        print(f"| {name} | {statistics.median(found):,.1f} | {min(found):,.1f} to {max(found):,.1f} |", flush=True)


if __name__ == "__main__":
    main()
