"""Nodes of a cluster that serve clients: hubs of this process, and programs that are one in a process of their own.

A client joins the room that the path of its URL names. A message that it sends goes to that room, unless it asks for
the counts of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import websockets

from tests.support.programs import environment
from tests.support.serving_hub import Clock, connected
from wshub import Connection, EventHandler, Hub, HubConfig, Message
from wshub.brokers.interface import Broker
from wshub.core.cluster_types import ClusterStats

SECOND = 0.05
"""Seconds of real time in which what is under way arrives, while a second of the test's clock passes."""

COUNTS = "counts?"
"""The message that asks for the counts of a node."""

LARGE_BUFFER = 64 * 1024 * 1024


class Node:
    """A node whose clients a test connects."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, room: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}/{room}"


class HubNode(Node):
    """A hub of this process."""

    def __init__(self, hub: Hub, port: int) -> None:
        super().__init__(port)
        self.hub = hub

    @property
    def id(self) -> str:
        return self.stats.node

    @property
    def stats(self) -> ClusterStats:
        """The counts of the cluster at this node."""
        cluster = self.hub.stats().cluster
        assert cluster is not None
        return cluster

    @property
    def dropped(self) -> Mapping[str, int]:
        """Envelopes that the node did not send, by reason."""
        return self.stats.broker.dropped

    def sweep(self) -> None:
        assert self.hub._cluster is not None
        self.hub._cluster.sweep(self.hub.now())


class ProcessNode(Node):
    """A hub in a process of its own. It answers surveys on ``subscribed`` when the messages to a room arrive."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, node_id: str) -> None:
        super().__init__(port)
        self.id = node_id
        self.process = process

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def serving_node(
    broker: Broker | str, *, name: str = "hub", clock: Clock | None = None, **settings: Any
) -> AsyncIterator[HubNode]:
    """Serve a hub that a broker joins to others."""

    def join(connection: Connection) -> None:
        path = connection.request.path.removeprefix("/")
        if path.startswith("user:"):
            connection.user = path.removeprefix("user:")
        elif path:
            connection.join(path)

    def pass_on(connection: Connection, message: Message) -> None:
        if message.data == COUNTS:
            connection.send(json.dumps(hub.stats().asdict()["cluster"]))
            return
        hub.broadcast(message, room=connection.request.path.removeprefix("/"))

    hub = Hub(HubConfig(**settings), broker=broker, name=name, **({"clock": clock} if clock else {}))
    async with hub.serve("127.0.0.1", 0, EventHandler(on_open=join, on_message=pass_on), close_hub=True) as server:
        await hub.broker_started()
        yield HubNode(hub, server.port)


@contextlib.asynccontextmanager
async def process_node(broker: str, **further: str) -> AsyncIterator[ProcessNode]:
    """Run a node in a process of its own, with further variables in its environment. Kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.cluster_nodes", broker),
        stdout=subprocess.PIPE,
        env=environment(**further),
    )
    assert process.stdout is not None
    try:
        port, node_id = (await process.stdout.readline()).split()
        yield ProcessNode(process, int(port), node_id.decode())
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()


async def serve(broker: str) -> None:
    """Be such a process: print the port and the id, and serve."""
    async with serving_node(broker, max_send_buffer=LARGE_BUFFER) as node:
        node.hub.answer_survey("subscribed", node.hub.subscribed)
        print(node.port, node.id, flush=True)
        await asyncio.get_running_loop().create_future()


# Waiting


async def all_know(*nodes: HubNode, count: int = 0) -> None:
    """Wait until each node knows all others, or so many nodes in all."""
    async with asyncio.timeout(10):
        while any([len(await each.hub.nodes()) < (count or len(nodes)) for each in nodes]):
            await asyncio.sleep(0.001)


async def pass_until(condition: Callable[[], object], clock: Clock, *nodes: HubNode, seconds: int = 60) -> int:
    """Let the nodes' clock go on until a condition holds. Return the seconds that have passed on it."""
    for passed in range(seconds):
        if condition():
            return passed
        clock.now += 1
        for node in nodes:
            node.sweep()
        for _ in range(10):
            if condition():
                break
            await asyncio.sleep(SECOND / 10)
    raise AssertionError(f"the condition does not hold within {seconds} s")


async def pass_for(seconds: int, clock: Clock, *nodes: HubNode) -> None:
    """Let the nodes' clock go on for some seconds."""
    until = clock.now + seconds
    await pass_until(lambda: clock.now >= until, clock, *nodes)
    await asyncio.sleep(SECOND)


@contextlib.asynccontextmanager
async def member(of: HubNode, room: str) -> AsyncIterator[websockets.ClientConnection]:
    """Connect a client that is a member of a room, whose messages arrive from all nodes."""
    async with connected(of.url(room), max_size=None) as client:
        # The answer to a ping comes after on_open.
        await (await client.ping())
        if not room.startswith("user:"):
            await of.hub.subscribed(room)
        else:
            await of.hub.broker.subscribed(room)  # type: ignore[union-attr]
        yield client


async def counts_for(client: websockets.ClientConnection) -> Any:
    """Return the counts of the node of a client, for which no other message is under way."""
    await client.send(COUNTS)
    return json.loads(await client.recv())


@contextlib.asynccontextmanager
async def remote_member(of: ProcessNode, room: str, asked: HubNode) -> AsyncIterator[websockets.ClientConnection]:
    """Connect a member of a room to a node in another process, which a node of this one knows then."""
    async with connected(of.url(room), max_size=None) as client:
        await (await client.ping())
        await all_know(asked, count=2)
        while of.id not in (await asked.hub.survey("subscribed", room)).answers:
            await asyncio.sleep(0.01)
        yield client


async def receive(client: websockets.ClientConnection, count: int) -> list[str]:
    """Return the next messages to a client."""
    return [str(await client.recv()) for _ in range(count)]


async def receive_until(client: websockets.ClientConnection, last: str) -> list[str]:
    """Return the messages to a client before this one."""
    received: list[str] = []
    while (message := str(await client.recv())) != last:
        received.append(message)
    return received


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
