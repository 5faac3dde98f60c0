"""The clients of the torture test: ``python -m tests.torture.load``, with a JSON object on stdin.

They print "warm" when each path has been used. After a line on stdin they act at random for the given time. Then they
print their findings and counts as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from tests.support.frame_protocol import CLOSE, PING, PONG
from tests.torture import malformed
from tests.torture.client import Client
from tests.torture.wire import ALL, DIRECT, ECHO, JOIN, LEAVE, LOSSY, ROOM, TAME, Message, draw_policy, encode, filler

REFUSALS = (0, 408, 429, 503)
"""The statuses with which a hub's limits refuse a handshake. 0 stands for no response."""

END = 40.0
"""Maximum seconds to wait for the end of a connection: every timeout of a hub, on a busy machine."""

MOST = 20


class NotOpenError(Exception):
    """The connection is not open: the server has refused it, or is not running."""


class Load:
    """All clients of a round."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.orders = orders
        self.targets: list[dict[str, Any]] = orders["targets"]
        self.end = 0.0
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.number = 1000
        self.context = ssl.create_default_context(cafile=orders["certificate"]) if orders["certificate"] else None

    def found(self, finding: str) -> None:
        if len(self.findings) < MOST:
            self.findings.append(finding)

    async def warm_up(self) -> None:
        """Use each path once, so that the server makes everything that it makes only once."""
        for target in self.targets:
            for path, _ in target["paths"]:
                while not await self._use(target, path):
                    await asyncio.sleep(0.05)

    async def _use(self, target: dict[str, Any], path: str) -> bool:
        """Connect and exchange a message. Return False if a random act of the server prevents it."""
        try:
            async with self.connected(random.Random(0), target, path) as client:
                client.say(ECHO)
                while not client.received and not client.ended.done():
                    await asyncio.sleep(0.01)
                if not client.transport.is_closing():
                    client.close()
                await asyncio.wait_for(client.ended, END)
        except NotOpenError:
            return False
        return client.received > 0

    async def run(self) -> None:
        self.end = self.loop.time() + self.orders["seconds"]
        async with asyncio.TaskGroup() as group:
            for number in range(self.orders["clients"]):
                chance = random.Random(f"{self.orders['seed']}/{number}")
                group.create_task(self.again_and_again(chance))

    async def again_and_again(self, chance: random.Random) -> None:
        lives = (self.steady, self.slow, self.malformed, self.half_open, self.reset)
        life = chance.choices(lives, (8, 5, 2, 1, 2))[0]
        while self.loop.time() < self.end:
            await asyncio.sleep(chance.expovariate(5))
            target = chance.choice(self.targets)
            path, kind = chance.choice(target["paths"])
            self.counts[life.__name__] += 1
            try:
                await life(chance, target, path, kind)
            except NotOpenError:
                self.counts["not open"] += 1
                await asyncio.sleep(0.1)
            except Exception as error:
                self.found(f"{life.__name__} at {path} of {target}: {error!r}")

    # Connections

    async def connect(self, target: dict[str, Any], protocol: Any, *, plain: bool = False, buffer: int = 0) -> Any:
        """Return a transport to the server. Raises NotOpenError."""
        family = socket.AF_UNIX if target["kind"] == "unix" else socket.AF_INET
        connecting = socket.socket(family)
        connecting.setblocking(False)
        if buffer:
            # With a small kernel buffer, more messages wait in the hub.
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        tls = target["kind"] == "tls" and not plain
        try:
            await self.loop.sock_connect(
                connecting, target["path"] if family == socket.AF_UNIX else ("127.0.0.1", target["port"])
            )
            transport, _ = await self.loop.create_connection(
                protocol,
                sock=connecting,
                ssl=self.context if tls else None,
                server_hostname="localhost" if tls else None,
            )
        except (OSError, ssl.SSLError) as error:
            connecting.close()
            raise NotOpenError from error
        return transport

    @contextlib.asynccontextmanager
    async def connected(
        self, chance: random.Random, target: dict[str, Any], path: str, *, buffer: int = 0
    ) -> AsyncIterator[Client]:
        self.number += 1
        client = Client(self.number, path, chance)
        failures: list[BaseException] = []

        def protected(data: bytes, receive: Any = client.data_received) -> None:
            # The loop only logs an exception of a protocol.
            try:
                receive(data)
            except BaseException as error:
                failures.append(error)
                client.transport.abort()

        client.data_received = protected  # type: ignore[method-assign]
        await self.connect(target, lambda: client, buffer=buffer)
        try:
            try:
                await asyncio.wait_for(client.opened, END)
            except ConnectionResetError:
                if client.status not in REFUSALS:
                    raise AssertionError(f"the handshake was answered with {client.status}") from None
                raise NotOpenError from None
            self.counts["connections"] += 1
            yield client
        finally:
            client.transport.abort()
            self.counts["messages"] += client.received
            if failures:
                raise AssertionError(f"{failures[0]!r}; {client.describe()}") from failures[0]
        self.counts[f"code {client.close_code}"] += 1

    async def ended(self, client: Client) -> None:
        """Wait for the end of a connection that is closing."""
        try:
            await asyncio.wait_for(client.ended, END)
        except TimeoutError:
            raise AssertionError(f"a connection does not end: {client.describe()}") from None

    # Kinds of clients

    def act(self, client: Client, chance: random.Random, kind: str) -> None:
        """Send a random message. A client of kind "lossy" sends only messages whose answer may be dropped."""
        what = chance.random()
        room = chance.choice(LOSSY if kind == "lossy" else TAME)
        if kind == "echo" or (kind == "full" and what < 0.3):
            client.say(ECHO)
        elif what < 0.5:
            if room not in client.awaited:
                client.ask(LEAVE if room in client.entered else JOIN, room)
        elif what < 0.9:
            to = chance.choices((ROOM, DIRECT, ALL), (10, 4, 1))[0]
            client.say(to, room=room, policy=draw_policy(chance, room if to == ROOM else None), largest=5000)
        elif what < 0.95:
            client.ping()
        else:
            client.pong()

    async def live(self, client: Client, chance: random.Random, kind: str, seconds: float, rate: float) -> None:
        end = min(self.end, self.loop.time() + seconds)
        while self.loop.time() < end and not client.transport.is_closing() and not client.close_code:
            self.act(client, chance, kind)
            await asyncio.sleep(chance.expovariate(rate))

    async def steady(self, chance: random.Random, target: dict[str, Any], path: str, kind: str) -> None:
        """Read all the time, and close properly."""
        async with self.connected(chance, target, path) as client:
            await self.live(client, chance, kind, chance.expovariate(1 / 4), 10)
            if not client.close_code and not client.transport.is_closing():
                client.close()
            await self.ended(client)
            if not client.close_code and client.error is None:
                raise AssertionError(f"a connection ended without a close frame: {client.describe()}")

    async def slow(self, chance: random.Random, target: dict[str, Any], path: str, kind: str) -> None:
        """Stop reading now and then. At the end, read everything or disappear."""
        async with self.connected(chance, target, path, buffer=chance.choice((4096, 32_768))) as client:
            end = min(self.end, self.loop.time() + chance.expovariate(1 / 5))
            kind = "lossy" if kind == "full" else kind
            while self.loop.time() < end and not client.ended.done() and not client.close_code:
                await self.live(client, chance, kind, 0.3, 30)
                if client.transport.is_closing():
                    break
                client.transport.pause_reading()
                await asyncio.sleep(chance.expovariate(1))
                if chance.random() < 0.2:
                    return
                if client.transport.is_closing():
                    break
                client.transport.resume_reading()
                await asyncio.sleep(chance.expovariate(5))
            if not client.close_code and not client.transport.is_closing():
                client.close()
            await self.ended(client)

    async def malformed(self, chance: random.Random, target: dict[str, Any], path: str, kind: str) -> None:
        """Send a frame that violates the protocol. The server must end the connection."""
        async with self.connected(chance, target, path) as client:
            await self.live(client, chance, kind, chance.expovariate(2), 20)
            if not client.close_code and not client.transport.is_closing():
                client.transport.write(malformed.frame(chance))
            await self.ended(client)

    async def reset(self, chance: random.Random, target: dict[str, Any], path: str, kind: str) -> None:
        """Send up to any byte of a conversation, then stop sending or disappear."""
        client = Client(self.number, path, chance)
        request = client.request()
        data = b""
        for number in range(chance.randrange(4)):
            message = encode(Message(ECHO, 0, 0, self.number, number + 1, number + 1), filler(chance, 300))
            data += client.frame(0x82, message)
            if chance.random() < 0.3:
                data += client.frame(0x80 | chance.choice((CLOSE, PING, PONG)), b"")
        reader = asyncio.StreamReader()
        transport = await self.connect(target, lambda: asyncio.StreamReaderProtocol(reader), buffer=4096)
        if not target.get("drops_early_bytes"):
            data = request + data
        elif chance.random() < 0.5:
            data = request
        else:
            transport.write(request)
            await _has_answered(reader)
        data = data[: chance.randrange(len(data) + 1)]
        for start in range(0, len(data), size := chance.choice((1, 20, 1000))):
            if transport.is_closing():
                break
            transport.write(data[start : start + size])
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        await asyncio.sleep(chance.choice((0, 0.01, 0.3)))
        if chance.random() < 0.3 and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()
            await asyncio.sleep(0.1)
        if chance.random() < 0.3:
            transport.close()
            await asyncio.sleep(0.05)
        transport.abort()

    async def half_open(self, chance: random.Random, target: dict[str, Any], path: str, kind: str) -> None:
        """Begin a TLS or WebSocket handshake, and wait until the server ends the connection."""
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport = await self.connect(target, lambda: protocol, plain=chance.random() < 0.5)
        beginnings = (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\0\1\2")
        if not transport.is_closing():
            transport.write(chance.choice(beginnings))
        with contextlib.suppress(ConnectionError):
            # uvicorn waits for a request without a time limit.
            await asyncio.wait([protocol._get_close_waiter(None)], timeout=chance.expovariate(1))  # type: ignore[attr-defined]
        transport.abort()


async def _has_answered(reader: asyncio.StreamReader) -> None:
    """Wait for the first byte of the response, or for the end of the connection."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)


async def main() -> None:
    # uvloop warns about data written to a connection that is just ending.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    load = Load(json.loads(sys.stdin.readline()))
    await load.warm_up()
    print("warm", flush=True)
    await load.loop.run_in_executor(None, sys.stdin.readline)
    await load.run()
    print(json.dumps({"counts": load.counts, "findings": load.findings}), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
