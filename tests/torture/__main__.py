"""The torture test: ``python -m tests.torture SECONDS [SEED] [--first ROUND] [--round SECONDS] [--fault KIND]``.

Clients, handlers and an application act at random, in rounds. The seed and the number of a round determine its plan,
which is printed before the round begins. ``--first`` begins with the given round. Only the timing differs from run to
run.
The last line is "torture: pass" or "torture: FAIL", and the exit code is 0 or 1.

``--fault`` has the application skip, repeat or damage messages, to check that the clients find the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.certificate import Certificate
from tests.torture.chaos import FAULTS
from tests.torture.plan import draw_plan

PATIENCE = 120.0
"""Maximum seconds to wait for the next line of a process, after the time in which it acts."""

OF_SANITIZERS = ("LD_PRELOAD", "PYTHONMALLOC", "ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS")
"""Variables for the server only: the clients do not run wshub's native code."""


class RoundError(Exception):
    """A round has found a fault."""


class Process:
    """A server or the clients, and their lines of output."""

    def __init__(self, *words: str, environment: dict[str, str], stdin: int = subprocess.DEVNULL) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, stdin=stdin, stdout=subprocess.PIPE, text=True
        )
        self._name = words[0]
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def read(self, seconds: float = 0.0) -> str:
        """Return the next line. Raises RoundError if there is none."""
        try:
            line = self._lines.get(timeout=seconds + PATIENCE)
        except queue.Empty:
            raise RoundError(f"{self._name} prints nothing more") from None
        if not line:
            raise RoundError(f"{self._name} has ended with {self._process.wait()}")
        return line

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Wait until the process ends. Raises RoundError if it fails."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise RoundError(f"{self._name} does not end") from None
        if code not in (0, -signal.SIGTERM):
            raise RoundError(f"{self._name} ended with {code}")

    def discard(self) -> None:
        if self._process.poll() is None:
            # faulthandler writes where it hangs.
            self._process.send_signal(signal.SIGABRT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._reader.join(10)


class Round:
    """A server and its clients, for some seconds."""

    def __init__(self, plan: dict[str, Any], directory: Path, fault: str | None) -> None:
        self._plan = plan
        self._directory = directory
        self._fault = fault
        self._environment = {
            **os.environ,
            "PYTHONFAULTHANDLER": "1",
            "WSHUB_USE_REACTOR": "1" if plan["reactor"] else "0",
            "WSHUB_TORTURE": json.dumps(plan),
            "WSHUB_TORTURE_FAULT": fault or "",
        }

    def _start_server(self) -> tuple[Process, list[dict[str, Any]]]:
        """Start the server. Returns it, and the addresses on which it listens."""
        plan = self._plan
        if plan["server"] == "hub":
            words = ["tests.torture.server", json.dumps(plan), str(self._directory)]
            server = Process(*words, *([self._fault] if self._fault else []), environment=self._environment)
            targets: list[dict[str, Any]] = json.loads(server.read())["targets"]
            return server, targets
        kind = plan["hubs"][0]["transport"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = str(self._directory / "socket-served")
        words = ["wshub", "serve", f"tests.torture.served:{plan['server']}", "--loop", plan["loop"]]
        words += ["--uds", path] if kind == "unix" else ["--host", "127.0.0.1", "--port", str(port)]
        words += ["--log-level", "error"]
        if kind == "tls":
            words += ["--ssl-certfile", str(self._directory / "certificate.pem")]
            words += ["--ssl-keyfile", str(self._directory / "key.pem")]
        server = Process(*words, environment=self._environment)
        paths = json.loads(server.read())["paths"]
        # uvicorn drops bytes that it has read together with a request.
        target = {"kind": kind, "port": port, "path": path, "paths": paths, "drops_early_bytes": True}
        _wait_until_listening(target)
        return server, [target]

    def run(self) -> Counter[str]:
        """Run the round, and return its counts. Raises RoundError."""
        server, targets = self._start_server()
        environment = {name: value for name, value in os.environ.items() if name not in OF_SANITIZERS}
        load = Process("tests.torture.load", environment=environment, stdin=subprocess.PIPE)
        try:
            load.write(
                json.dumps(
                    {
                        "targets": targets,
                        "certificate": str(self._directory / "certificate.pem"),
                        **{name: self._plan[name] for name in ("seed", "seconds", "clients")},
                    }
                )
            )
            return self._follow(server, load)
        finally:
            load.discard()
            server.discard()

    def _follow(self, server: Process, load: Process) -> Counter[str]:
        seconds = self._plan["seconds"]
        load.read()
        server.signal(signal.SIGUSR1)
        before = json.loads(server.read())
        load.write("go")
        if self._plan["ends_early"]:
            time.sleep(seconds * 0.8)
            server.signal(signal.SIGTERM)
        seen = json.loads(load.read(seconds))
        load.end()
        if not self._plan["ends_early"]:
            server.signal(signal.SIGUSR1)
            after = json.loads(server.read())
            self._compare(before["descriptors"], after["descriptors"])
            server.signal(signal.SIGTERM)
        last = json.loads(server.read())
        server.end()
        if last["findings"]:
            # The server wrote them to stderr when it found them.
            seen["findings"].append(f"{len(last['findings'])} findings of the server, above")
        if seen["findings"]:
            raise RoundError("\n".join(seen["findings"]))
        return Counter(seen["counts"]) + Counter(last["totals"])

    def _compare(self, before: list[str], after: list[str]) -> None:
        more = Counter(after) - Counter(before)
        if more:
            raise RoundError(f"descriptors are left: {dict(more)}")


def _wait_until_listening(target: dict[str, Any]) -> None:
    unix = target["kind"] == "unix"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
            probe.connect(target["path"] if unix else ("127.0.0.1", target["port"]))
            return
        time.sleep(0.02)
    raise RoundError("the server does not listen")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--round", type=float, help="seconds of a round, in place of the drawn number")
    parser.add_argument("--fault", choices=FAULTS)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    failed = []
    total: Counter[str] = Counter()
    number = arguments.first
    with tempfile.TemporaryDirectory() as name:
        Certificate(Path(name))
        end = time.monotonic() + arguments.seconds
        while number == arguments.first or time.monotonic() < end:
            plan = draw_plan(arguments.seed, number)
            plan["seconds"] = arguments.round or plan["seconds"]
            print(f"round {number}: {json.dumps(plan)}", flush=True)
            try:
                counts = Round(plan, Path(name), arguments.fault).run()
            except RoundError as error:
                failed.append(number)
                print(f"round {number} FAILED: {error}", flush=True)
            else:
                total += counts
                print(f"round {number}: {dict(sorted(counts.items()))}", flush=True)
            number += 1
    print(f"{number - arguments.first} rounds: {dict(sorted(total.items()))}")
    if failed:
        print(f"failed rounds: {failed}")
    print("torture: FAIL" if failed else "torture: pass")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
