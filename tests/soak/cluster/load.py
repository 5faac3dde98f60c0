"""The clients of the cluster's soak test: ``python -m tests.soak.cluster.load PORT...``, with a port for each node.

It prints each gap as a line of JSON, and at the end what was received. After SIGUSR1 clients stay where they are; each
ends when it has the last message of its streams. Any error ends the run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from tests.soak.cluster.client import Client, Gap
from tests.soak.cluster.wire import IDENTIFY, JOIN, LEAVE, NODES, ROOMS, USERS

CLIENTS = 400
ROOMS_OF_A_CLIENT = 3
LIFE_SECONDS = 40
LAST_SECONDS = 60
"""Seconds in which each client must get the last message of its streams."""


class Load:
    """All clients of a run."""

    def __init__(self, ports: list[int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ports = ports
        self.settling = asyncio.Event()
        self.settled = 0
        self.counts: Counter[str] = Counter()
        self.heard: dict[tuple[int, int], set[int]] = {}
        """The numbers of the messages that other nodes have published, by node and room."""

    async def run(self) -> None:
        self.loop.add_signal_handler(signal.SIGUSR1, self.settling.set)
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self.again_and_again(number))

    async def again_and_again(self, number: int) -> None:
        # Each user has a client at each node.
        node, user = number // USERS % NODES, number % USERS
        chance = random.Random(number)
        await asyncio.sleep(chance.uniform(0, 2))
        is_over = False
        while not is_over:
            is_over = await self.live(node, user, chance)

    @contextlib.asynccontextmanager
    async def connected(self, node: int, user: int) -> AsyncIterator[Client]:
        client = Client(node, user, self.found, self.published)
        failures: list[BaseException] = []

        def protected(data: bytes, receive: Any = client.data_received) -> None:
            # The loop only logs exceptions of a protocol.
            try:
                receive(data)
            except BaseException as error:
                failures.append(error)
                client.transport.abort()

        client.data_received = protected  # type: ignore[method-assign]
        await self.loop.create_connection(lambda: client, "127.0.0.1", self.ports[node])
        await client.opened
        self.counts["connections"] += 1
        try:
            yield client
        finally:
            if failures:
                raise failures[0]
        client.close()
        await asyncio.wait_for(client.ended, 30)
        if failures:
            raise failures[0]
        if client.close_code != 1000:
            raise AssertionError(f"a connection has ended: {client.describe()}")
        self.counts["received"] += client.received
        self.counts["interrupted gaps"] += client.interrupted_gaps

    async def live(self, node: int, user: int, chance: random.Random) -> bool:
        """Be a client for a while. Return True at the end of the run."""
        async with self.connected(node, user) as client:
            client.ask(IDENTIFY, user)
            for room in chance.sample(range(ROOMS), ROOMS_OF_A_CLIENT):
                client.ask(JOIN, room)
            end = self.loop.time() + chance.expovariate(1 / LIFE_SECONDS)
            while not self.settling.is_set():
                if self.loop.time() >= end:
                    return False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.settling.wait(), chance.expovariate(1 / 5))
                self.check_open(client)
                if not client.asked and not self.settling.is_set():
                    client.ask(LEAVE, chance.choice(list(client.rooms)))
                    client.ask(JOIN, chance.choice([room for room in range(ROOMS) if room not in client.rooms]))
            while client.asked:
                self.check_open(client)
                await asyncio.sleep(0.05)
            self.settled += 1
            if self.settled == CLIENTS:
                print(json.dumps({"settled": True}), flush=True)
            deadline = self.loop.time() + LAST_SECONDS
            while not client.has_all:
                self.check_open(client)
                if self.loop.time() > deadline:
                    raise AssertionError(f"the last messages are missing: {client.describe()}")
                await asyncio.sleep(0.1)
        return True

    def check_open(self, client: Client) -> None:
        if client.ended.done():
            raise AssertionError(f"a connection has ended: {client.describe()}")

    def found(self, gap: Gap) -> None:
        self.counts["gaps"] += 1
        print(gap.to_json(), flush=True)

    def published(self, node: int, room: int, sequence: int) -> None:
        self.heard.setdefault((node, room), set()).add(sequence)


async def main() -> None:
    load = Load([int(port) for port in sys.argv[1:]])
    await load.run()
    heard = [[node, room, sorted(numbers)] for (node, room), numbers in load.heard.items()]
    print(json.dumps({"counts": load.counts, "heard": heard}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
