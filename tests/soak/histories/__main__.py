"""The histories' soak test: ``python -m tests.soak.histories [--minutes 30] [--engine redis] [--seed 1]``.

Four workers and 400 clients share an engine, which is restarted, killed, failed over by Sentinels, emptied and cut off
at random. Workers are replaced and killed as well. Each client must get each message of its rooms once and in order, or
be told what it misses and why. At the end, the presence of all rooms must be right.

It prints a line after each fault, and one each minute with what the clients have got so far. The last line is
"soak: pass" or "soak: FAIL", and the exit code is 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from tests.soak.histories.engine import replicated_engine
from tests.soak.histories.faults import HistoryFaults
from tests.soak.histories.wire import TOKEN, WORKERS
from tests.soak.line_reader import LineReader, SoakFailure
from tests.support.tcp_proxy import TcpProxy, proxy_to
from tests.support.wshub_serve import serving

APPLICATION = "tests.soak.histories.application:app"

RECOVERY_SECONDS = 60
"""Seconds after a fault in which all workers must be well again."""

PRESENCE_SECONDS = 30
"""Seconds after the last client has come, in which presence must be right: a dead node, the grace, and some more."""

IGNORED_ALLOWED = {"own", "late", "duplicate", "no_receiver"}
"""Envelopes that a worker may have ignored."""


class Run:
    """One run. Its parts end with the stack."""

    def __init__(self, stack: contextlib.ExitStack, arguments: argparse.Namespace) -> None:
        self.failures: list[str] = []
        self.seed = arguments.seed
        self.has_clients = False
        """Whether the clients have begun."""
        self.here: dict[str, list[str]] | None = None
        self.result: dict[str, Any] = {}
        self.workers: list[dict[str, Any]] = []
        self.missing = 0
        self.injected: Counter[str] = Counter()
        """The faults so far, by their kind."""
        self.publisher_proxy: TcpProxy | None = None
        self.engine = stack.enter_context(replicated_engine(arguments.engine, self.engine_moved))
        # The workers ask the Sentinels. The publisher has one address, which leads to the primary.
        worker_proxies = {port: stack.enter_context(proxy_to("127.0.0.1", port)) for port in self.engine.ports}
        self.publisher_proxy = stack.enter_context(proxy_to("127.0.0.1", self.engine.port))
        os.environ["SOAK_BROKER"] = self.engine.url
        os.environ["SOAK_PROXIES"] = json.dumps({port: proxy.port for port, proxy in worker_proxies.items()})
        options = ["--workers", str(WORKERS), "--loop", arguments.loop, "--no-access-log"]
        # On a busy machine, workers take long to start. A worker that is killed while it is asked whether it lives is
        # replaced after this time only.
        options += ["--timeout-worker-healthcheck", "30"]
        self.server = stack.enter_context(serving(APPLICATION, *options))
        self.http = stack.enter_context(
            httpx.Client(base_url=f"http://{self.server.address}", trust_env=False, timeout=5)
        )
        self.wait_for("the workers", self.is_well)
        self.load = LineReader(
            self.take,
            *("tests.soak.histories.load", str(self.server.port), f"redis://127.0.0.1:{self.publisher_proxy.port}"),
            *(str(arguments.clients), str(arguments.seed), str(int(arguments.losses))),
        )
        stack.callback(self.load.kill)
        self.wait_for("the clients", lambda: self.has_clients)
        self.faults = HistoryFaults(
            self.engine,
            [list(worker_proxies.values()), [self.publisher_proxy]],
            arguments.longest,
            random.Random(arguments.seed),
            self.server.process.pid,
            lambda: {worker["process"] for worker in self.workers},
            loses=arguments.losses,
        )

    def engine_moved(self, port: int) -> None:
        if self.publisher_proxy is not None:
            self.publisher_proxy.retarget(port)

    def take(self, line: dict[str, Any]) -> None:
        """Take a line of the clients."""
        if "failure" in line:
            self.failures.append(line["failure"])
        elif "ready" in line:
            self.has_clients = True
        elif "here" in line:
            self.here = line["here"]
        elif "minute" in line:
            self.print_minute(**line)
        else:
            self.result = line

    def print_minute(self, minute: int, members: int, counts: dict[str, int]) -> None:
        """Print what has happened so far."""
        gaps = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()) if name.startswith("gaps"))
        print(
            f"minute {minute}: {sum(self.injected.values())} faults, {counts.get('messages', 0):,} messages, "
            f"{counts.get('messages recovered', 0):,} of them in {counts.get('recoveries', 0):,} recoveries, "
            f"{gaps or 'no gaps'}; {members:,} memberships",
            flush=True,
        )

    # Waiting

    def wait_for(self, what: str, is_there: Callable[[], bool], seconds: float = RECOVERY_SECONDS) -> None:
        """Wait for a condition. Raise SoakFailure after so many seconds, or if a program has ended."""
        deadline = time.monotonic() + seconds
        while not is_there():
            if self.server.process.poll() is not None:
                raise SoakFailure(f"the server has ended with {self.server.process.returncode}")
            if hasattr(self, "load") and self.load.process.poll() is not None:
                raise SoakFailure(f"the clients have ended with {self.load.process.returncode}")
            if time.monotonic() > deadline:
                states = {worker["process"]: worker["state"] for worker in self.workers}
                raise SoakFailure(f"{what} took more than {seconds:.0f} s; {self.missing} are missing of {states}")
            time.sleep(0.1)

    def is_well(self) -> bool:
        """Whether all workers answer, and are connected to the engine."""
        try:
            response = self.http.get("/report")
        except httpx.HTTPError:
            return False
        if response.status_code != 200:
            return False
        self.workers = response.json()["workers"]
        self.missing = response.json()["missing"]
        is_complete = len(self.workers) == WORKERS and not self.missing
        return is_complete and all(worker["ok"] for worker in self.workers)

    # The run

    def soak(self, seconds: float, longest: float) -> None:
        """Let one thing after the other fail."""
        began = time.monotonic()
        chance = random.Random(f"{self.seed} pauses")
        while time.monotonic() < began + seconds:
            time.sleep(chance.uniform(1, longest / 2))
            fault = self.faults.inject()
            self.injected[fault.kind] += 1
            mended = time.monotonic()
            self.wait_for(f"recovery after this: {fault.text}:", lambda: self.is_well() and self.faults.is_noticed())
            resident = max(worker["resident"] for worker in self.workers) / 2**20
            print(
                f"{mended - began:6.0f} s  {resident:5.1f} MiB  {fault.text}; "
                f"well after {time.monotonic() - mended:.1f} s",
                flush=True,
            )
            if self.failures:
                raise SoakFailure("the clients have found the failures above")

    def end(self) -> None:
        """Have all clients come back, compare the presence, and end everything."""
        self.load.process.send_signal(signal.SIGUSR1)
        self.wait_for("the last messages", lambda: self.here is not None, 200)
        self.check_presence()
        self.is_well()
        self.load.process.send_signal(signal.SIGTERM)
        if code := self.load.finish(60):
            raise SoakFailure(f"the clients have ended with {code}")
        self.failures += [f"the server has logged:\n{text}" for text in errors_in(self.server.end())]

    def check_presence(self) -> None:
        """Wait until each room has exactly the members that are there."""
        assert self.here is not None
        expected = {room: sorted(users) for room, users in self.here.items()}
        deadline = time.monotonic() + PRESENCE_SECONDS
        while (found := {room: self.users_in(room) for room in expected}) != expected:
            if time.monotonic() > deadline:
                for room, users in expected.items():
                    ghosts, missing = Counter(found[room]) - Counter(users), Counter(users) - Counter(found[room])
                    if ghosts or missing:
                        self.failures.append(f"{room}: presence has {dict(ghosts)} too much, and lacks {dict(missing)}")
                return
            time.sleep(0.5)

    def users_in(self, room: str) -> list[str]:
        """Return the users in a room, as the HTTP API tells them."""
        users: list[str] = []
        cursor = ""
        while True:
            parameters = {"room": room, "limit": "50", "cursor": cursor}
            response = self.http.get("/api/presence", params=parameters, headers={"authorization": f"Bearer {TOKEN}"})
            if response.status_code != 200:
                raise SoakFailure(f"the presence could not be read: {response.text}")
            users += [member["user"] for member in response.json()["members"]]
            cursor = response.json()["cursor"]
            if not cursor:
                return sorted(users)

    def check(self) -> None:
        """Compare the counts."""
        for worker in self.workers:
            wrong = {name: n for name, n in worker["ignored"].items() if n and name not in IGNORED_ALLOWED}
            if wrong:
                self.failures.append(f"worker {worker['process']} has ignored envelopes: {wrong}")
        for room, epochs in self.result["epochs"].items():
            if epochs > self.faults.losses + 1:
                self.failures.append(
                    f"{room} had {epochs} epochs, and the engine has lost messages {self.faults.losses} times"
                )
        counts = self.result["counts"]
        if not counts.get("recoveries"):
            self.failures.append("no client has come back")

    def print_counts(self) -> None:
        """Print the summary."""
        print("\nfaults:")
        for name, count in sorted(self.injected.items()):
            print(f"{count:10,} {name}")
        print(f"{self.faults.losses:10,} of them with losses")
        print("clients:")
        for name, count in sorted(self.result["counts"].items()):
            print(f"{count:10,} {name}")
        for worker in self.workers:
            print(f"worker {worker['process']}: {worker['history']} {worker['presence']} {worker['ignored']}")


def errors_in(output: str) -> list[str]:
    """Return the tracebacks in the output of the server, each with the two lines before it and the last one."""
    lines = output.splitlines()
    found = []
    for number, line in enumerate(lines):
        if line.startswith("Traceback"):
            end = number + 1
            while end < len(lines) and lines[end].startswith(" "):
                end += 1
            found.append("\n".join(lines[max(number - 2, 0) : end + 1]))
    return found


def last_lines(output: str) -> str:
    """Return the last lines of the output of the server, without those of uvicorn and those on gaps."""
    lines = [line for line in output.splitlines() if not line.startswith("INFO") and " miss messages " not in line]
    return "\n".join(lines[-60:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--engine", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds that a fault lasts at most")
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--losses", action="store_true", help="let replicas take over that lack the last messages, too")
    parser.add_argument("--fault", choices=["skip"], help="let members miss some messages, to see that it is found")
    arguments = parser.parse_args()
    if arguments.fault:
        os.environ["SOAK_SKIPS"] = "1"
    print(f"seed {arguments.seed}; node 0 stands for the workers, node 1 for the publisher", flush=True)
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            run = Run(stack, arguments)
            # The same list: the clients add to it.
            failures = run.failures
            run.soak(arguments.minutes * 60, arguments.longest)
            run.end()
            run.check()
            run.print_counts()
        except (SoakFailure, subprocess.TimeoutExpired, OSError, RuntimeError) as failure:
            failures.append(f"{type(failure).__name__}: {failure}")
            with contextlib.suppress(subprocess.TimeoutExpired, NameError):
                failures.append(f"the last lines of the server:\n{last_lines(run.server.end(signal.SIGKILL))}")
    for text in failures[:50]:
        print(text)
    print("soak: FAIL" if failures else "soak: pass")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
