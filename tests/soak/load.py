"""The clients of the soak test: ``python -m tests.soak.load SECONDS PORT PORT``.

At the end it prints their counts as a line of JSON. Clients of the first port read everything, sooner or later, so
their counts equal the server's. Clients of the second port reset their connections. Any error ends the run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sys
from collections import Counter

import uvloop

from tests.soak.client import Client
from tests.soak.wire import JOIN, LEAVE, ROOMS

STEADY, STALLING, RESETTING, HALF_OPEN = 240, 40, 30, 10
BUSIEST = 12
"""Number of busy rooms. Half of the rooms that a client enters are among them; the other rooms come and go."""


class Load:
    """All clients of a run."""

    def __init__(self, seconds: float, ports: list[int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.end = self.loop.time() + seconds
        self.ports = ports
        self.counts: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()

    @property
    def is_over(self) -> bool:
        return self.loop.time() >= self.end

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(STEADY + STALLING + RESETTING + HALF_OPEN):
                if number < STEADY:
                    life = self.steady
                elif number < STEADY + STALLING:
                    life = self.stalling
                elif number < STEADY + STALLING + RESETTING:
                    life = self.resetting
                else:
                    life = self.half_open
                group.create_task(self.again_and_again(life, random.Random(number)))

    async def again_and_again(self, life, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0, 5))
        while not self.is_over:
            await life(chance)

    @contextlib.asynccontextmanager
    async def connected(self, chance: random.Random, port: int, *, steady: bool):
        client = Client(steady=steady, compresses=chance.random() < 0.4)
        failures: list[BaseException] = []

        def protected(data: bytes, receive=client.data_received) -> None:
            # The loop only logs exceptions of a protocol.
            try:
                receive(data)
            except BaseException as error:
                failures.append(error)
                client.transport.abort()

        client.data_received = protected  # type: ignore[method-assign]
        connecting = socket.socket()
        connecting.setblocking(False)
        if not steady:
            # With a small kernel buffer, more messages wait in the hub.
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        await self.loop.sock_connect(connecting, ("127.0.0.1", port))
        await self.loop.create_connection(lambda: client, sock=connecting)
        await client.opened
        self.counts["connections"] += 1
        try:
            yield client
        finally:
            if failures:
                raise failures[0]
        if port == self.ports[0] and client.close_code:
            self.counts["received"] += client.received
            self.counts["missing"] += client.missing
            self.codes[client.close_code] += 1
        elif port == self.ports[0]:
            raise AssertionError(f"a connection ended without a close frame: {client.describe()}")

    def act(self, client: Client, chance: random.Random) -> None:
        """Send a random message."""
        if client.ended.done():
            raise AssertionError(f"a connection has ended: {client.describe()}")
        what = chance.random()
        if what < 0.6:
            client.echo()
            self.counts["echoes"] += 1
        elif what < 0.85 or not client.rooms:
            room = chance.randrange(BUSIEST if chance.random() < 0.5 else ROOMS)
            if room not in client.rooms and room not in client.asked and len(client.rooms) < 12:
                client.ask(JOIN, room)
        else:
            room = chance.choice(list(client.rooms))
            if room not in client.asked:
                client.ask(LEAVE, room)

    async def steady(self, chance: random.Random) -> None:
        """Read all the time. No message may be missing, and every echo must come back."""
        life = chance.expovariate(1 / 25)
        async with self.connected(chance, self.ports[0], steady=True) as client:
            end = self.loop.time() + life
            while self.loop.time() < end and not client.ended.done() and not self.is_over:
                self.act(client, chance)
                await asyncio.sleep(chance.expovariate(4))
            if not client.close_code:
                waited = self.loop.time()
                while client.echoes_received < client.echoes_sent and not client.close_code:
                    await asyncio.sleep(0.01)
                    if self.loop.time() > waited + 20:
                        raise AssertionError(f"{client.echoes_sent - client.echoes_received} echoes are missing")
                if not client.close_code:
                    client.close()
            await asyncio.wait_for(client.ended, 60)
            if client.close_code not in (1000, 1001):
                raise AssertionError(f"a client that keeps up was closed with {client.close_code}")

    async def stalling(self, chance: random.Random) -> None:
        """Stop reading now and then, for less than the timeout. At the end, read everything."""
        async with self.connected(chance, self.ports[0], steady=False) as client:
            for room in chance.sample(range(ROOMS), 10):
                client.ask(JOIN, room)
            end = self.loop.time() + chance.expovariate(1 / 40)
            while self.loop.time() < end and not client.ended.done() and not self.is_over:
                client.transport.pause_reading()
                await asyncio.sleep(chance.uniform(0.5, 4))
                if client.transport.is_closing():
                    break
                received = client.received
                client.transport.resume_reading()
                await asyncio.sleep(chance.uniform(0.01, 0.5))
                # On a busy machine, that time may have been too short to read anything.
                while client.received == received and not client.close_code and not client.ended.done():
                    await asyncio.sleep(0.05)
                if not client.close_code:
                    self.act(client, chance)
            if not client.transport.is_closing() and not client.close_code:
                client.close()
            await asyncio.wait_for(client.ended, 60)

    async def resetting(self, chance: random.Random) -> None:
        """Read or do not read, then reset the connection."""
        async with self.connected(chance, self.ports[1], steady=False) as client:
            for _ in range(5):
                self.act(client, chance)
            if chance.random() < 0.5:
                client.transport.pause_reading()
            await asyncio.sleep(chance.expovariate(1 / 4))
            client.transport.abort()
            await client.ended

    async def half_open(self, chance: random.Random) -> None:
        """Begin a request and never complete it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[1])
        writer.write(b"GET / HTTP/1.1\r\nHost: soak\r\n"[: chance.randrange(28)])
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 20)
        writer.transport.abort()
        self.counts["half open"] += 1


async def main() -> None:
    load = Load(float(sys.argv[1]), [int(port) for port in sys.argv[2:]])
    await load.run()
    print(json.dumps({"counts": load.counts, "codes": load.codes}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
