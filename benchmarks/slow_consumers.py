"""Resident memory of a hub that broadcasts to readers of which most have stalled, under each policy.

``python benchmarks/slow_consumers.py``; README.md says how.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

from tls import REQUEST

from wshub import EventHandler, Hub, HubConfig

POLICIES = ("close", "drop_newest", "drop_oldest", "latest")
SIZE = 1024
HEADER = 4
KEYS = 100


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def read_all(host: str, port: int, messages: int) -> None:
    """Read every message of the broadcasts, and see that none is missing."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    for number in range(messages):
        frame = await reader.readexactly(HEADER + SIZE)
        if frame[HEADER : HEADER + 8] != b"%8d" % number:
            raise RuntimeError(f"message {number} is missing")
    writer.close()


async def measure(policy: Any, stalled: int, messages: int) -> dict[str, float]:
    """Broadcast so many messages while so many readers have stalled, and one keeps up."""
    hub = Hub(HubConfig(slow_consumer=policy, send_timeout_ms=0))
    with contextlib.ExitStack() as clients:
        async with hub.serve("127.0.0.1", 0, EventHandler(on_open=lambda connection: connection.join("all"))) as server:
            for _ in range(stalled):
                client = clients.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", server.port))
                client.sendall(REQUEST)
                await asyncio.sleep(0)
            reader = asyncio.create_task(read_all("127.0.0.1", server.port, messages))
            while hub.room_size("all") <= stalled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            before = resident()
            most = before
            spent = 0.0
            for number in range(messages):
                message = (b"%8d" % number).ljust(SIZE)
                begun = time.process_time()
                hub.broadcast(message, room="all", key=f"{number % KEYS}")
                spent += time.process_time() - begun
                # As often as the one that keeps up reads.
                await asyncio.sleep(0)
                if number % 100 == 0:
                    most = max(most, resident())
            most = max(most, resident())
            await reader
            stats = hub.stats(room="all")
            total = hub.stats()
            accounted = total.messages_delivered + total.dropped.total + total.messages_pending
            assert total.messages_accepted == accounted
            return {
                "grown": most - before,
                "left": stats.connections,
                "pending": stats.messages_pending,
                "spent": spent / messages * 1e6,
            }


def run(policy: str, stalled: int, messages: int) -> None:
    """Measure one policy, in a process of its own, and print a row."""
    found = asyncio.run(measure(policy, stalled, messages))
    print(
        f"| `{policy}` | {found['grown'] / 2**20:.1f} | {found['left']} | {found['pending']} | {found['spent']:.0f} |",
        flush=True,
    )


def main() -> None:
    """Measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=10_000)
    arguments = parser.parse_args()
    print("| policy | MiB more | connections left | messages pending | µs of CPU for a broadcast |")
    print("| --- | --- | --- | --- | --- |")
    for policy in POLICIES:
        process = multiprocessing.Process(target=run, args=(policy, arguments.stalled, arguments.messages))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
