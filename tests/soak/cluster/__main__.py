"""The cluster's soak test: ``python -m tests.soak.cluster [--minutes 30] [--loop uvloop] [--engine redis]``.

Four nodes with 400 clients share an engine, which is stopped, killed and cut off at random. Clients look for missing
messages. For each of them, the sending node must have counted a drop, or the broker of the client's node must have
reported an interruption. The last line is "soak: pass" or "soak: FAIL", and the exit code is 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.soak.cluster.client import Gap
from tests.soak.cluster.faults import Fault, Faults
from tests.soak.cluster.ledger import NodeRecord, check_gaps, check_published
from tests.soak.cluster.wire import NODES
from tests.soak.line_reader import LineReader, SoakFailure
from tests.support.nats_engine import NatsEngine, running_nats
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.tcp_proxy import proxy_to

RECOVERY_SECONDS = 60
"""Seconds after a fault in which all nodes must be well again."""

CALM_SECONDS = 8
"""Seconds before the end in which nothing fails."""

WARM_UP = 60
"""Seconds after which memory must stay flat."""

BLOCKS_ALLOWED = 0.02
"""Maximum growth of the blocks that Python has allocated: from their minimum in the first third to that in the last."""

RESIDENT_ALLOWED = 0.25
"""Maximum growth of resident memory. Messages that wait during an outage make it grow, and it does not shrink again."""


ENGINES = ("redis", "valkey", "nats-2.9", "nats-current")


class Node:
    """A node in a process of its own."""

    def __init__(self, number: int, url: str, loop: str) -> None:
        self.record = NodeRecord()
        self.port = 0
        self.program = LineReader(self._take, "tests.soak.cluster.node", str(number), url, loop)

    def _take(self, line: dict[str, Any]) -> None:
        if "port" in line:
            self.port = line["port"]
        else:
            self.record.add(line)


class Clients:
    """All clients, in a process of their own."""

    def __init__(self, ports: list[int]) -> None:
        self.gaps: list[Gap] = []
        self.counts: dict[str, int] = {}
        self.heard: list[tuple[int, int, list[int]]] = []
        self.settled = threading.Event()
        self.program = LineReader(self._take, "tests.soak.cluster.load", *map(str, ports))

    def _take(self, line: dict[str, Any]) -> None:
        if "settled" in line:
            self.settled.set()
        elif "counts" in line:
            self.counts, self.heard = line["counts"], line["heard"]
        else:
            self.gaps.append(Gap(**line))


class Run:
    """One run. Its parts end with the stack."""

    def __init__(self, stack: contextlib.ExitStack, arguments: argparse.Namespace) -> None:
        is_nats = arguments.engine.startswith("nats")
        self.engine: RedisEngine | NatsEngine = stack.enter_context(
            running_nats(arguments.engine.removeprefix("nats-")) if is_nats else running_engine(arguments.engine)
        )
        self.proxies = [stack.enter_context(proxy_to("127.0.0.1", self.engine.port)) for _ in range(NODES)]
        self.nodes = [
            Node(number, f"{'nats' if is_nats else 'redis'}://127.0.0.1:{proxy.port}", arguments.loop)
            for number, proxy in enumerate(self.proxies)
        ]
        for node in self.nodes:
            stack.callback(node.program.kill)
        self.wait_for("the nodes", lambda: all(node.record.last for node in self.nodes) and self.are_well(0))
        self.clients = Clients([node.port for node in self.nodes])
        stack.callback(self.clients.program.kill)

    def wait_for(self, what: str, is_there: Callable[[], bool], seconds: float = RECOVERY_SECONDS) -> None:
        """Wait for a condition. Raise SoakFailure after so many seconds, or if a program has ended."""
        deadline = time.monotonic() + seconds
        while not is_there():
            self.check_running()
            if time.monotonic() > deadline:
                states = [node.record.last.get("state") for node in self.nodes]
                raise SoakFailure(f"{what} took more than {seconds:.0f} s; the nodes are: {states}")
            time.sleep(0.05)

    def check_running(self) -> None:
        programs = [node.program for node in self.nodes]
        if hasattr(self, "clients"):
            programs.append(self.clients.program)
        for program in programs:
            if program.process.poll() is not None:
                raise SoakFailure(f"{program.process.args} has ended with {program.process.returncode}")

    def are_well(self, since: float) -> bool:
        """Whether each node has reported since then that it is well, and knows all others."""
        reports = [node.record.last for node in self.nodes]
        return all(
            report["ok"] and report["cluster"]["nodes"] == NODES and report["time"] > since for report in reports
        )

    def reconnects(self, number: int) -> int:
        """Return how often a node has connected again."""
        count: int = self.nodes[number].record.last["cluster"]["broker"]["reconnects"]
        return count

    def has_recovered(self, fault: Fault, before: list[int], mended: float) -> bool:
        """Whether all is well after a fault, which all nodes have noticed."""
        number = fault.unnoticed_by
        return (number is None or self.reconnects(number) > before[number]) and self.are_well(mended + 1)

    def soak(self, seconds: float, longest: float, chance: random.Random) -> None:
        """Let one thing after the other fail."""
        faults = Faults(self.engine, [[proxy] for proxy in self.proxies], longest, chance)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            time.sleep(chance.uniform(1, longest / 2))
            before = [self.reconnects(number) for number in range(NODES)]
            fault = faults.inject()
            mended = time.monotonic()
            self.wait_for("recovery", lambda: self.has_recovered(fault, before, mended))  # noqa: B023
            resident = max(node.record.last["resident"] for node in self.nodes) / 2**20
            print(
                f"{mended - began:6.0f} s  {resident:5.1f} MiB  {fault.text}; "
                f"well after {time.monotonic() - mended:.1f} s",
                flush=True,
            )

    def end(self) -> None:
        """End the streams, the clients and the nodes, in this order."""
        # A probe shows that each connection works: a message that is the last of its stream has no other behind it.
        calm = time.monotonic()
        self.wait_for("calm", lambda: self.are_well(calm + CALM_SECONDS))
        self.clients.program.process.send_signal(signal.SIGUSR1)
        self.wait_for("the last subscriptions", self.clients.settled.is_set)
        for node in self.nodes:
            node.program.process.send_signal(signal.SIGUSR1)
        if self.clients.program.finish(120):
            raise SoakFailure("a client has found an error")
        for node in self.nodes:
            node.program.process.send_signal(signal.SIGTERM)
        for node in self.nodes:
            if code := node.program.finish(30):
                raise SoakFailure(f"a node has ended with {code}")

    def check(self) -> list[str]:
        """Return the failures."""
        records = [node.record for node in self.nodes]
        failures = check_gaps(records, self.clients.gaps) + check_published(records, self.clients.heard)
        delivered = sum(record.last["delivered"] for record in records)
        if delivered != self.clients.counts["received"]:
            failures.append(f"{delivered} messages delivered, {self.clients.counts['received']} received")
        for number, record in enumerate(records):
            last = record.last
            if last["policy_drops"] or last["connections"]:
                failures.append(f"node {number} has not served its clients to the end: {last}")
            if not last["cluster"]["interruptions"]:
                failures.append(f"node {number} was not told of any interruption")
            failures += check_memory(number, record)
        return failures

    def print_counts(self) -> None:
        for number, node in enumerate(self.nodes):
            print(f"node {number}: {node.record.last}")
        lost = sum(gap.last - gap.first + 1 for gap in self.clients.gaps)
        print(f"clients: {self.clients.counts}")
        print(f"missing without an interruption of the receiver: {lost} in {len(self.clients.gaps)} gaps")
        print(f"dropped by the nodes: {sum(node.record.dropped for node in self.nodes)}")


def check_memory(number: int, record: NodeRecord) -> list[str]:
    """Return whether the memory of a node has grown from the first third of its reports to the last one."""
    began = record.memory[0][0]
    steady = [(resident, blocks) for time, resident, blocks in record.memory if time >= began + WARM_UP]
    third = len(steady) // 3
    if third < 60:
        return []
    early, late = steady[:third], steady[-third:]
    failures = []
    for name, least, most, allowed in (
        ("resident bytes", max(early)[0], max(late)[0], RESIDENT_ALLOWED),
        ("allocated blocks", min(blocks for _, blocks in early), min(blocks for _, blocks in late), BLOCKS_ALLOWED),
    ):
        print(f"node {number}: {least} {name} early, {most} late")
        if most > least * (1 + allowed):
            failures.append(f"the memory of node {number} grew from {least} to {most} {name}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--engine", choices=ENGINES, default="redis")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds that a fault lasts at most")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        try:
            run = Run(stack, arguments)
            run.soak(arguments.minutes * 60, arguments.longest, random.Random(arguments.seed))
            run.end()
            run.print_counts()
            failures = run.check()
        except (SoakFailure, subprocess.TimeoutExpired) as failure:
            failures = [str(failure)]
    for failure in failures[:50]:
        print(failure)
    print("soak: FAIL" if failures else "soak: pass")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
