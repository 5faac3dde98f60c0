"""The soak test: ``python -m tests.soak [--minutes 30] [--loop uvloop]``.

The last line is "soak: pass" or "soak: FAIL", and the exit code is 0 or 1. The server has a process and a core; so do
the clients. Connections and rooms come and go, under every policy at once. A client that keeps up must get every
message, in order. The counters must add up at all times, and agree with the messages that the clients have received.
Memory and descriptors must not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

WARM_UP = 60
"""Seconds after which memory must stay flat."""

GROWTH_ALLOWED = 0.03
"""Maximum growth of resident memory: from its maximum in the first third to its maximum in the last third."""


def pinned(core: int, *arguments: str) -> subprocess.Popen[str]:
    cores = sorted(os.sched_getaffinity(0))

    def pin() -> None:
        os.sched_setaffinity(0, {cores[core % len(cores)]})

    return subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, preexec_fn=pin)


def check(reports: list[dict[str, Any]], load: dict[str, Any], descriptors: int) -> list[str]:
    """Return the failures."""
    failures = []
    final = reports[-1]
    orderly, reset = final["hubs"]
    received = load["counts"]["received"]
    if orderly["messages_delivered"] != received:
        failures.append(f"{orderly['messages_delivered']} messages delivered, {received} received")
    # Fewer may be missing than were dropped. Clients cannot miss the last message of a room, or one to no room.
    dropped = sum(orderly["dropped"][reason] for reason in ("newest", "oldest", "replaced"))
    if load["counts"]["missing"] > dropped:
        failures.append(f"{load['counts']['missing']} messages are missing, {dropped} were dropped")
    for stats in (orderly, reset):
        if stats["opened"] != stats["closed"] or stats["connections"] or stats["rooms"] or stats["messages_pending"]:
            failures.append(f"not all has ended: {stats}")
        if sum(stats["closes"].values()) != stats["opened"]:
            failures.append(f"{stats['opened']} opened, but closes are {stats['closes']}")
    if orderly["opened"] + reset["opened"] != load["counts"]["connections"]:
        failures.append(f"{orderly['opened'] + reset['opened']} opened, {load['counts']['connections']} connected")
    if final["descriptors"] != descriptors:
        failures.append(f"{final['descriptors']} descriptors at the end, {descriptors} at the start")
    steady = [report["resident"] for report in reports if report["elapsed"] >= WARM_UP]
    third = len(steady) // 3
    if not third:
        print("the run is too short to tell whether memory grows")
        return failures
    early, late = max(steady[:third]), max(steady[-third:])
    if late > early * (1 + GROWTH_ALLOWED):
        failures.append(f"memory grew from {early} to {late}")
    print(
        f"resident, MiB: least {min(steady) / 2**20:.1f}, most early {early / 2**20:.1f}, most late {late / 2**20:.1f}"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    server = pinned(0, "tests.soak.server", arguments.loop)
    assert server.stdout is not None
    started = json.loads(server.stdout.readline())
    load = pinned(1, "tests.soak.load", str(seconds), *map(str, started["ports"]))
    reports: list[dict[str, Any]] = []
    began = time.monotonic()
    told = False
    try:
        next_print = 0.0
        for line in server.stdout:
            elapsed = time.monotonic() - began
            reports.append({"elapsed": elapsed, **json.loads(line)})
            if elapsed >= next_print:
                next_print = elapsed + 60
                orderly, reset = reports[-1]["hubs"]
                print(
                    f"{elapsed:6.0f} s  {reports[-1]['resident'] / 2**20:6.1f} MiB  "
                    f"{orderly['connections'] + reset['connections']} connections  {orderly['rooms']} rooms  "
                    f"{orderly['messages_delivered'] + reset['messages_delivered']} delivered",
                    flush=True,
                )
            if load.poll() is not None and not told:
                if load.returncode:
                    break
                told = True
                server.terminate()
            if elapsed > seconds + 120:
                print("the run does not end")
                break
        output, _ = load.communicate(timeout=10)
        if not told:
            server.terminate()
        server.wait(60)
    finally:
        for process in (load, server):
            if process.poll() is None:
                process.kill()
            process.wait()
    failures = [
        f"the {name} ended with {code}"
        for name, code in (("load", load.returncode), ("server", server.returncode))
        if code
    ]
    if failures and reports:
        print(f"the last report: {reports[-1]}")
    if not failures:
        found = json.loads(output)
        print(f"clients: {found}")
        for name, stats in zip(("orderly", "reset"), reports[-1]["hubs"], strict=True):
            print(f"{name}: {stats}")
        failures = check(reports, found, started["descriptors"])
    for failure in failures:
        print(failure)
    print("soak: FAIL" if failures else "soak: pass")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
