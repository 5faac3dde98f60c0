"""Nodes of a mesh of workers in one process, and a program that is one in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.support.programs import environment
from wshub.brokers.interface import NodeInfo, node_channel
from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.workers import WorkersBroker
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds, in steps of one iteration of the loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition does not hold in time"
        await asyncio.sleep(0.001)


class Node:
    """A broker, and the events that it was given, in order."""

    def __init__(
        self, path: Path, *, node_id: str = "", hub: str = "hub", clock: Callable[[], float] = time.monotonic, **options
    ) -> None:
        self.info = NodeInfo(id=node_id or secrets.token_hex(8), hub=hub, host="here", pid=os.getpid())
        self.broker = WorkersBroker(path, several_in_process=True, **options)
        self.reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=clock)
        self.now = clock
        self.log: list[Any] = []
        self.on_receive: Callable[[bytes], None] = lambda envelope: None

    # What the broker calls

    def receive(self, envelope: bytes) -> None:
        self.log.append(envelope)
        self.on_receive(envelope)

    def interrupted(self, channels: Any, reason: str) -> None:
        assert channels is None
        self.log.append(("interrupted", reason))

    def restored(self, channels: Any) -> None:
        assert channels is None
        self.log.append(("restored",))

    # What tests call

    @property
    def received(self) -> list[bytes]:
        return [event for event in self.log if isinstance(event, bytes)]

    @property
    def own_channel(self) -> str:
        return node_channel(self.info.id)

    @property
    def peers(self) -> int:
        return self.broker.stats().peers

    @property
    def session(self) -> Any:
        return self.broker._session

    def peer(self, other: Node) -> Any:
        """Return this node's connection to another one."""
        return self.session._peers[other.info.id]

    async def start(self) -> Node:
        await self.broker.start(self.info, self)
        return self

    async def join(self, *channels: str) -> None:
        for channel in channels:
            self.broker.subscribe(channel)
        await self.broker.subscribed(channels[-1])

    def die(self) -> None:
        """End as a process that is killed: nothing more is sent, and each connection is lost."""
        connections = tuple(self.session._connections)
        self.session.abandon()
        for peer in connections:
            peer.end()

    async def close(self) -> None:
        await self.broker.close()
        self.reactor.close()


@contextlib.asynccontextmanager
async def mesh(path: Path, count: int, *, letters: str = "", **options: Any) -> AsyncIterator[list[Node]]:
    """Start so many nodes, one after the other. Close them at the end of the block.

    Owners follow from the ids of the nodes. Give each node a letter, of which its id consists, if a test needs an owner
    of each.
    """
    nodes = []
    try:
        for letter in letters or [""] * count:
            nodes.append(await Node(path, node_id=letter * 16, **options).start())  # noqa: PERF401
        await until(lambda: all(node.peers == count - 1 for node in nodes))
        yield nodes
    finally:
        for node in nodes:
            await node.close()


def sockets(path: Path) -> list[str]:
    """Return the names in the directory."""
    return sorted(os.listdir(path))


def entries_of(node_id: str, *users: str) -> list[PresenceEntry]:
    """Return entries of a node, one for each user."""
    return [PresenceEntry(f"{node_id}:{user}", user, user.encode()) for user in users]


class Worker:
    """A node in a process of its own. Each command is a line; the answer is a line of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.id = ""

    async def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        return json.loads(await self.process.stdout.readline())

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def memory(self) -> int:
        """Return the resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


@contextlib.asynccontextmanager
async def worker(path: Path, node_id: str = "") -> AsyncIterator[Worker]:
    """Run a node in a process of its own. Kill it at the end of the block if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.brokers.mesh", str(path), node_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
        limit=1 << 26,
    )
    started = Worker(process)
    try:
        started.id = await started.ask("id")
        yield started
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()


async def serve_commands(path: Path, node_id: str) -> None:
    """Be a worker: carry out the commands on the standard input."""
    loop = asyncio.get_running_loop()
    node = await Node(path, node_id=node_id).start()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    def sweep() -> None:
        node.broker.sweep(time.monotonic())
        loop.call_later(0.1, sweep)

    sweep()
    while line := await reader.readline():
        name, *arguments = json.loads(line)
        print(json.dumps(await getattr(Commands, name)(node, *arguments)), flush=True)
    await node.close()


class Commands:
    """The commands of a worker."""

    @staticmethod
    async def id(node: Node) -> str:
        return node.info.id

    @staticmethod
    async def join(node: Node, *channels: str) -> None:
        await node.join(*channels)

    @staticmethod
    async def send(node: Node, channel: str, count: int, size: int) -> int:
        """Send numbered envelopes as fast as they are made. Return how many were taken."""
        taken = 0
        for number in range(count):
            taken += node.broker.send(channel, b"%d " % number + bytes(size))
            if number % 100 == 99:
                await asyncio.sleep(0)
        return taken

    @staticmethod
    async def numbers(node: Node) -> list[int]:
        return [int(envelope.split(b" ")[0]) for envelope in node.received]

    @staticmethod
    async def events(node: Node) -> list[Any]:
        return [event for event in node.log if not isinstance(event, bytes)]

    @staticmethod
    async def stats(node: Node) -> Any:
        return dataclasses.asdict(node.broker.stats())

    @staticmethod
    async def enter(node: Node, channel: str, *users: str) -> list[bool]:
        """Enter these users into a channel."""
        await node.broker.presence_beat()
        return await node.broker.presence_enter(channel, entries_of(node.info.id, *users))

    @staticmethod
    async def beat(node: Node) -> list[str]:
        """Return the ids of entries of this node that others have taken over."""
        return list((await node.broker.presence_beat()).lost)

    @staticmethod
    async def ids(node: Node, channel: str) -> list[str]:
        """Return the ids of all entries of a channel."""
        return [entry.id for entry in (await node.broker.presence_read(channel, "", 1000)).entries]

    @staticmethod
    async def block(node: Node, seconds: float) -> None:
        """Keep the loop from running, as a handler that computes does."""
        time.sleep(seconds)  # noqa: ASYNC251


if __name__ == "__main__":
    asyncio.run(serve_commands(Path(sys.argv[1]), sys.argv[2]))
