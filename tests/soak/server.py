"""The server of the soak test: ``python -m tests.soak.server LOOP``.

It prints each report as a line of JSON. It has two hubs: clients of the first read everything, and clients of the
second reset their connections. After SIGTERM it ends when no client is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from tests.soak.wire import ALL, ECHO, JOIN, LEAVE, NUMBERED, OF_ROOM, ROOM, ROOMS, policy_of, room_name
from wshub import CompressionConfig, Connection, EventHandler, Hub, HubConfig, Message, RateLimits
from wshub.core.stats_types import MessageStats
from wshub.serving.server import Server

TICK = 0.01
ROOMS_A_TICK = 60
REPORT_PERIOD = 2.0
ORDERLY_CODES = (1000, 1001, 1013)


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def check(stats: MessageStats) -> None:
    dropped = stats.dropped.total
    if stats.messages_accepted != stats.messages_delivered + dropped + stats.messages_pending:
        raise AssertionError(f"the counters do not add up: {stats}")


class Service:
    """One of the hubs. Its rooms use all policies."""

    def __init__(self, *, orderly: bool) -> None:
        self.orderly = orderly
        self.hub = Hub(
            HubConfig(
                ping_interval_ms=5_000,
                pong_timeout_ms=15_000,
                max_lifetime_ms=60_000,
                # A client that stalls may take any time to read everything.
                close_timeout_ms=600_000,
                handshake_timeout_ms=2_000,
                max_pending_handshakes=64,
                compression=CompressionConfig(threshold=64),
                rates=RateLimits(messages=200, bytes=1 << 20),
            )
        )
        self.numbers = [0] * ROOMS
        self.number = 0
        self.opened = 0
        self.closed = 0
        self.reasons: Counter[str] = Counter()
        for room in range(ROOMS):
            compression = "shared" if room % 5 == 0 else "message"
            self.hub.configure_room(room_name(room), slow_consumer=policy_of(room), compression=compression)  # type: ignore[arg-type]

    def serve(self) -> Server:
        handler = EventHandler(on_open=self.on_open, on_message=self.on_message, on_close=self.on_close)
        return self.hub.serve("127.0.0.1", 0, handler, close_hub=True)

    def on_open(self, connection: Connection) -> None:
        self.opened += 1
        connection.send(NUMBERED.pack(ALL, self.number))

    def on_message(self, connection: Connection, message: Message) -> None:
        data = bytes(message)
        kind = data[0]
        if kind == ECHO:
            connection.send(message)
            return
        _, room, _ = OF_ROOM.unpack_from(data)
        if kind == JOIN:
            connection.join(room_name(room))
        elif kind == LEAVE:
            connection.leave(room_name(room))
        connection.send(OF_ROOM.pack(kind, room, self.numbers[room]))

    def on_close(self, connection: Connection, code: int, reason: str) -> None:
        self.closed += 1
        self.reasons[f"{code} {reason}"] += 1
        if self.orderly and code not in ORDERLY_CODES:
            print(f"{connection.remote_address} ended with {code} {reason}", file=sys.stderr, flush=True)

    def tick(self, chance: random.Random, filler: bytes) -> None:
        """Send to some rooms, and now and then to all connections."""
        for _ in range(ROOMS_A_TICK):
            room = chance.randrange(ROOMS)
            self.numbers[room] += 1
            size = chance.choice((20, 100, 400, 2000))
            start = chance.randrange(len(filler) - size)
            self.hub.broadcast(
                OF_ROOM.pack(ROOM, room, self.numbers[room]) + filler[start : start + size], room=room_name(room)
            )
        if chance.random() < TICK:
            self.number += 1
            self.hub.broadcast(NUMBERED.pack(ALL, self.number))

    def report(self) -> dict[str, Any]:
        stats = self.hub.stats()
        check(stats)
        for name in self.hub.rooms:
            check(self.hub.stats(room=name))
        return {"opened": self.opened, "closed": self.closed, "reasons": self.reasons, **stats.asdict()}


async def open_a_transport() -> None:
    """Open and close a transport: uvloop keeps a descriptor in reserve from its first one on."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    writer.close()
    await writer.wait_closed()
    theirs.close()


async def main() -> None:
    await open_a_transport()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    services = [Service(orderly=True), Service(orderly=False)]
    chance = random.Random(1)
    filler = b"".join(b"%08x the price of %d is %d; " % (chance.getrandbits(32), n % 97, n * 7) for n in range(2000))
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(service.serve()) for service in services]
        ports = [server.port for server in servers]
        print(json.dumps({"ports": ports, "descriptors": descriptors()}), flush=True)
        due = loop.time()
        report_due = due
        while not (stopping.is_set() and not any(service.hub.connection_count for service in services)):
            for service in services:
                service.tick(chance, filler)
            due += TICK
            if loop.time() >= report_due:
                report_due += REPORT_PERIOD
                report(services)
            await asyncio.sleep(max(0.0, due - loop.time()))
            # After a stall of the machine, missed ticks are skipped.
            due = max(due, loop.time() - 1)
        report(services)


def report(services: list[Service]) -> None:
    found = [service.report() for service in services]
    print(json.dumps({"resident": resident(), "descriptors": descriptors(), "hubs": found}), flush=True)


if __name__ == "__main__":
    factory = uvloop.new_event_loop if sys.argv[1] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
