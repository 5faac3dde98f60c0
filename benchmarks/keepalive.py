"""Measures the cost of keepalive for very many connections, and how soon it notices a dead peer behind a live one.

``python benchmarks/keepalive.py``; README.md says how.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import resource
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from run import SETTLE_SECONDS, chosen, cpu_of, machine, markdown_row
from tls import REQUEST

from wshub import Connection, EventHandler, Hub, HubConfig

SERVER_CORE, CLIENT_CORE = 0, 1
LOOPS = ("asyncio", "uvloop")
PING = b"\x89\x00"
PONG = b"\x8a\x80\x00\x00\x00\x00"

HOUR_MS = 3_600_000
DEFAULT_MS = HubConfig().ping_interval_ms
SHORT_MS, SHORT_TIMEOUT_MS = 2_000, 1_000

# A client has 28,000 ports on each of its addresses, and finds a free one slowly when half of them are taken.
CONNECTIONS_PER_ADDRESS = 5_000
# A connection that is closed like this is reset, and keeps no port in TIME_WAIT.
RESET = struct.pack("ii", 1, 0)
BATCH = 100
# Descriptors that each process has open besides its connections.
OTHER_DESCRIPTORS = 100
SWEEPS_ALONE_SECONDS = 6
# Beyond the bound, for a dead peer that is noticed too late to be seen as late, rather than as not noticed.
GRACE_SECONDS = 1
ANSWER_SECONDS = 30


# Of a connection: its number, the code that it ended with, and when.
End = tuple[int, int, float]


@dataclass
class Sweeps:
    """How many sweeps there were, and the seconds of CPU time that they took."""

    number: int = 0
    spent: float = 0.0


class TimedHub(Hub):
    """A hub that knows what its sweeps take."""

    sweeps: Sweeps

    def _sweep(self) -> None:
        begun = time.thread_time()
        super()._sweep()
        self.sweeps.spent += time.thread_time() - begun
        self.sweeps.number += 1


def serve(loop: str, config: HubConfig, pipe: Pipe) -> None:
    """Serve on a port that is told, and answer every question with the sweeps and the ends of connections so far."""
    os.sched_setaffinity(0, {SERVER_CORE})
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def main() -> None:
        ends: list[End] = []
        hub = TimedHub(config)
        hub.sweeps = Sweeps()

        def on_close(connection: Connection, code: int, reason: str) -> None:
            ends.append((int(connection.path[1:]), code, time.monotonic()))

        def answer() -> None:
            pipe.recv()
            pipe.send((hub.sweeps, ends))

        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        async with hub.serve("127.0.0.1", 0, EventHandler(on_close=on_close)) as server:
            pipe.send(server.port)
            await server.wait_closed()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


class ServerProcess:
    """A hub in a process of its own."""

    def __init__(self, pid: int, port: int, pipe: Pipe) -> None:
        self.pid = pid
        self.port = port
        self._pipe = pipe

    def ask(self) -> tuple[Sweeps, list[End]]:
        """The sweeps so far, and the connections that have ended."""
        self._pipe.send(None)
        answer: tuple[Sweeps, list[End]] = receive(self._pipe)
        return answer


def receive(pipe: Pipe) -> Any:
    """Return the next message of the other side. Raises RuntimeError if it stays silent for ANSWER_SECONDS."""
    if not pipe.poll(ANSWER_SECONDS):
        raise RuntimeError("the server does not answer")
    return pipe.recv()


@contextlib.contextmanager
def serving(loop: str, config: HubConfig) -> Iterator[ServerProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(loop, config, theirs))
    process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield ServerProcess(process.pid, receive(ours), ours)
    finally:
        process.terminate()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()


class Peers:
    """The clients' ends of all connections, which answer pings while `answer_for` runs."""

    def __init__(self, port: int) -> None:
        self.pings = 0
        self.ended: set[int] = set()
        self._port = port
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._numbers: dict[int, int] = {}

    def connect(self, count: int) -> None:
        """Open so many connections, a batch at a time; those that are there are answered meanwhile."""
        while len(self._sockets) < count:
            first = len(self._sockets)
            batch = range(first, min(first + BATCH, count))
            for number in batch:
                client = socket.create_connection(
                    ("127.0.0.1", self._port),
                    timeout=ANSWER_SECONDS,
                    source_address=(f"127.0.0.{2 + number // CONNECTIONS_PER_ADDRESS}", 0),
                )
                self._sockets[number] = client
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.sendall(REQUEST.replace(b"GET /", b"GET /%d" % number, 1))
            for number in batch:
                client = self._sockets[number]
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    data = client.recv(4096)
                    head += data
                    if not data or not head.startswith(b"HTTP/1.1 101 "[: len(head)]):
                        raise RuntimeError(f"connection {number} is not taken: {head!r}")
                client.setblocking(False)
                self._numbers[client.fileno()] = number
                self._epoll.register(client, select.EPOLLIN)
            self.answer_for(0)

    def answer_for(self, seconds: float) -> None:
        """Answer every ping that comes in that time, and what is there already."""
        end = time.monotonic() + seconds
        while True:
            for descriptor, _ in self._epoll.poll(max(end - time.monotonic(), 0), 1024):
                self._answer(descriptor)
            if time.monotonic() >= end:
                return

    def _answer(self, descriptor: int) -> None:
        number = self._numbers[descriptor]
        client = self._sockets[number]
        try:
            data = client.recv(4096)
        except ConnectionResetError:
            data = b""
        count = len(data) // len(PING)
        if not data:
            self._epoll.unregister(descriptor)
            self.ended.add(number)
        elif data != PING * count:
            raise RuntimeError(f"connection {number} got {data!r}, which is no ping")
        else:
            client.sendall(PONG * count)
            self.pings += count

    def die(self, count: int) -> dict[int, float]:
        """Let so many answer no more, evenly taken from all; return when each gave its last sign of life.

        That is a pong that answers nothing: a last pong that does would always come right after a ping.
        """
        last = {}
        for number in sorted(self._sockets.keys() - self.ended)[:: len(self._sockets) // count][:count]:
            client = self._sockets[number]
            self._epoll.unregister(client)
            last[number] = time.monotonic()
            client.sendall(PONG)
        return last

    def close(self) -> None:
        self._epoll.close()
        for client in self._sockets.values():
            client.close()


@dataclass
class Cost:
    """The CPU time of the server in a window of time, and the work that it did."""

    seconds: float
    cpu: float
    sweeps: Sweeps
    pings: int

    def ping_costs(self, sweep: float) -> float:
        """Seconds of CPU time for a ping and its pong, where a sweep without pings takes so much."""
        return (self.cpu - sweep * self.sweeps.number) / self.pings


def watch(server: ServerProcess, peers: Peers, seconds: float) -> Cost:
    before, _ = server.ask()
    pings = peers.pings
    begun, spent = time.monotonic(), cpu_of(server.pid)
    peers.answer_for(seconds)
    cost = Cost(time.monotonic() - begun, (cpu_of(server.pid) - spent) / 1e6, Sweeps(), peers.pings - pings)
    after, _ = server.ask()
    cost.sweeps = Sweeps(after.number - before.number, after.spent - before.spent)
    return cost


@contextlib.contextmanager
def connected(loop: str, config: HubConfig, count: int) -> Iterator[tuple[ServerProcess, Peers]]:
    with serving(loop, config) as server, contextlib.closing(Peers(server.port)) as peers:
        begun = time.monotonic()
        peers.connect(count)
        print(f"{loop}: {count} connections in {time.monotonic() - begun:.1f} s", file=sys.stderr)
        yield server, peers


def ended(server: ServerProcess, peers: Peers, but: set[int]) -> int:
    """How many connections have ended, other than those, by what the server and the clients know."""
    return len((peers.ended | {number for number, _, _ in server.ask()[1]}) - but)


@dataclass
class Noticed:
    """When the dead peers of a run were noticed, and what it was with the others."""

    delays: list[float]
    others_ended: int
    sweep: float

    @property
    def bound(self) -> float:
        return (SHORT_MS + SHORT_TIMEOUT_MS) / 1000 + 2 * self.sweep


def measure_costs(loop: str, count: int, interval_ms: int, seconds: float) -> tuple[Cost, int]:
    """Return the cost of keepalive in a window, and the number of connections that have ended by then."""
    # Until every connection has had its first ping, or at least what it was opened with is over.
    settling = interval_ms / 1000 if interval_ms < HOUR_MS else SETTLE_SECONDS
    with connected(loop, HubConfig(max_connections=count, ping_interval_ms=interval_ms), count) as (server, peers):
        peers.answer_for(settling)
        return watch(server, peers, seconds), ended(server, peers, set())


def measure_dead(loop: str, count: int, dead: int) -> tuple[Cost, Noticed]:
    """Return the cost of a short interval, and the times at which the dead peers were noticed."""
    config = HubConfig(max_connections=count, ping_interval_ms=SHORT_MS, pong_timeout_ms=SHORT_TIMEOUT_MS)
    with connected(loop, config, count) as (server, peers):
        peers.answer_for(SHORT_MS / 1000)
        cost = watch(server, peers, 2 * SHORT_MS / 1000)
        last = peers.die(dead)
        peers.answer_for((SHORT_MS + SHORT_TIMEOUT_MS) / 1000 + GRACE_SECONDS)
        delays = [when - last[number] for number, code, when in server.ask()[1] if number in last and code == 1006]
        return cost, Noticed(delays, ended(server, peers, set(last)), cost.seconds / cost.sweeps.number)


def allow_descriptors(wanted: int) -> int:
    """Let this process and its children have so many descriptors, or as many as they may; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def costs_row(loop: str, title: str, cost: Cost, count: int, sweep: float, ended: int) -> str:
    each = cost.sweeps.spent / cost.sweeps.number / count
    return markdown_row(
        loop,
        title,
        f"{cost.pings / cost.seconds:,.0f}",
        f"{cost.cpu / cost.seconds * 1000:.2f}",
        f"{cost.sweeps.number / cost.seconds:.1f}",
        f"{each * 1e6:.3f}",
        f"{cost.ping_costs(sweep) * 1e6:.1f}" if cost.pings else "",
        f"{ended}",
    )


def dead_row(loop: str, dead: int, noticed: Noticed) -> str:
    late = sum(delay > noticed.bound for delay in noticed.delays)
    times = [min(noticed.delays), statistics.median(noticed.delays), max(noticed.delays)] if noticed.delays else []
    cells = [f"{value:.2f}" for value in times] or ["", "", ""]
    return markdown_row(loop, f"{len(noticed.delays)} of {dead}", *cells, f"{noticed.bound:.2f}", f"{late}")


def main() -> int:
    """Measure all, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--dead", type=int, default=1_000)
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_MS / 1000, help="window with the default interval: that at least"
    )
    parser.add_argument("--loops", metavar="LOOP,...", help=f"of {', '.join(LOOPS)}")
    arguments = parser.parse_args()
    loops = chosen(arguments.loops, list(LOOPS), "loop")
    count = min(arguments.connections, allow_descriptors(arguments.connections + OTHER_DESCRIPTORS) - OTHER_DESCRIPTORS)
    if count < arguments.connections:
        print(f"warning: {count} connections, by the hard limit of descriptors (ulimit -Hn)", file=sys.stderr)
    if not 0 < arguments.dead <= count or arguments.seconds < DEFAULT_MS / 1000:
        parser.error("there have to be as many connections as dead peers, and a window of a whole interval")
    facts = machine(("uvloop",))
    os.sched_setaffinity(0, {CLIENT_CORE})

    costs, deaths = [], []
    failed = False
    for loop in loops:
        rare, rare_ended = measure_costs(loop, count, HOUR_MS, SWEEPS_ALONE_SECONDS)
        default, default_ended = measure_costs(loop, count, DEFAULT_MS, arguments.seconds)
        short, noticed = measure_dead(loop, count, arguments.dead)
        sweep = rare.cpu / rare.sweeps.number
        costs += [
            costs_row(loop, "none due", rare, count, sweep, rare_ended),
            costs_row(loop, f"every {DEFAULT_MS / 1000:g} s, the default", default, count, sweep, default_ended),
            costs_row(loop, f"every {SHORT_MS / 1000:g} s", short, count, sweep, noticed.others_ended),
        ]
        deaths.append(dead_row(loop, arguments.dead, noticed))
        failed |= bool(rare_ended or default_ended or noticed.others_ended) or len(noticed.delays) < arguments.dead

    print(f"{count:,} connections\n")
    heads = ("loop", "pings", "pings a second", "ms of CPU a second", "sweeps a second", "sweep: µs a connection")
    print(markdown_row(*heads, "ping and pong: µs", "ended that answered"))
    print(markdown_row(*["---"] * (len(heads) + 2)))
    print("\n".join(costs))
    print(f"\nDead, with a ping every {SHORT_MS / 1000:g} s and {SHORT_TIMEOUT_MS / 1000:g} s to answer\n")
    print(markdown_row("loop", "noticed with 1006", "after, at least: s", "median", "at most", "bound", "later"))
    print(markdown_row(*["---"] * 7))
    print("\n".join(deaths))
    print("", *(f"- {name}: {value}" for name, value in facts.items()), sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
