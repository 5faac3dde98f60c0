"""Measures another build of wshub beside this one, in every row of the other benchmarks; README.md says how and why."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import applications
import compression
import run
import tls

# The largest ratio that a change may have: the report names every figure above it.
AT_MOST = 1.05

# Of a turn's load, in seconds.
WARMUP = 0.1


Measure = Callable[[], dict[str, float]]
"""Has a server work for a while. Returns what that cost, by the name of the figure."""

Cost = Callable[[int, int, int], float]
"""The same for a single figure, of the server with that process and port, from that core."""


@dataclass(frozen=True)
class Case:
    """A server under a load."""

    name: str
    running: Callable[[], AbstractContextManager[Measure]]
    # Memory does not depend on how busy the machine is.
    once: bool = False


def of_server(name: str, server: run.Server, mode: str, cost: Cost, *, once: bool = False) -> Case:
    """One server, and the only figure that is measured of it."""

    @contextmanager
    def running() -> Iterator[Measure]:
        server_core, load_core = run.choose_cores()
        with run.running(server, mode, server_core) as (pid, port):
            yield lambda: {name: cost(pid, port, load_core)}

    return Case(name, running, once)


def under_load(name: str, server: run.Server, mode: str, load: tuple[str, ...], figure: str, seconds: float) -> Case:
    """One server under `load.c`."""

    def cost(pid: int, port: int, load_core: int) -> float:
        return float(run.run_load(load, pid, port, load_core, WARMUP, seconds)[figure])

    return of_server(name, server, mode, cost, once=load[0] == "idle")


def of_application(work: str, server: run.Server, seconds: float) -> Case:
    """One application under one work of `applications.py`."""

    def cost(pid: int, port: int, load_core: int) -> float:
        return applications.measure(work, pid, port, load_core, WARMUP, seconds)

    return of_server(f"{work}; {server.name}", server, "echo", cost)


def over_tls(row: str, name: str, folder: Path, seconds: float) -> Case:
    """One server under a row of `tls.py`."""
    mode, measure = tls.ROWS[row]

    @contextmanager
    def running() -> Iterator[Measure]:
        _, load_core = run.choose_cores()

        def measured() -> dict[str, float]:
            with run.on_core(load_core):
                samples = measure(served, seconds)
            return {f"TLS, {title}; {name}": cost for title, cost in samples.items()}

        with tls.running(name, mode, folder) as served:
            yield measured

    return Case(f"TLS, {row}; {name}", running, once=row == "idle")


def all_cases(seconds: float, folder: Path) -> Iterator[Case]:
    """Yield every case of the other benchmarks. The folder has a certificate for localhost."""
    for row in run.ROWS:
        for server in run.SERVERS:
            if server.name in run.OURS:
                name = f"{row.title}; {server.name}"
                yield under_load(name, server, row.server_mode, row.load, row.figure, seconds)
    for measurement in compression.MEASUREMENTS:
        for server, frames in measurement.servers:
            if server not in compression.PEERS:
                load = (*measurement.load.split(), "--compression", frames)
                name = f"{measurement.title}; {server.name}"
                yield under_load(name, server, measurement.server_mode, load, measurement.figure, seconds)
    for server in applications.SERVERS:
        if server.name.endswith(applications.WITH_WSHUB):
            for work in applications.WORKS:
                yield of_application(work, server, seconds)
    for tls_row in tls.ROWS:
        for name in tls.OURS:
            yield over_tls(tls_row, name, folder, seconds)


@contextmanager
def imported_from(source: Path | None) -> Iterator[None]:
    """Have the servers that start meanwhile import wshub from that directory; None is for what is installed."""
    found = os.environ.pop("PYTHONPATH", None)
    if source is not None:
        os.environ["PYTHONPATH"] = str(source)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        if found is not None:
            os.environ["PYTHONPATH"] = found


@dataclass(frozen=True)
class Comparison:
    """The samples of one figure, those of one turn at the same place."""

    name: str
    before: list[float]
    now: list[float]

    @property
    def ratios(self) -> list[float]:
        """One for each turn: what comes and goes with the machine meets both of its samples. In order."""
        return sorted(now / before for before, now in zip(self.before, self.now, strict=True))


def compare(case: Case, source: Path, rounds: int, turns: int) -> list[Comparison]:
    """Each round starts both builds, which have the load in turns: the one first that was second before."""
    found: dict[str, Comparison] = {}
    for _ in range(1 if case.once else rounds):
        with ExitStack() as servers:
            measures = []
            for build in (source, None):
                programs = build.parent / "benchmarks" if build is not None else run.HERE
                with imported_from(build), run.programs_of(programs):
                    measures.append(servers.enter_context(case.running()))
            for number in range(1 if case.once else turns):
                for which in (0, 1) if number % 2 else (1, 0):
                    for name, value in measures[which]().items():
                        comparison = found.setdefault(name, Comparison(name, [], []))
                        (comparison.before, comparison.now)[which].append(value)
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the directory src of a checkout in which the other build is")
    parser.add_argument("--only", default="", help="cases, by parts of their names, with '|' between them")
    parser.add_argument("--rounds", type=int, default=3, help="how often both servers are started")
    parser.add_argument("--turns", type=int, default=10, help="of each of the two, in a round")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one turn")
    arguments = parser.parse_args()
    if not list(arguments.source.glob("wshub/protocol/*.so")):
        parser.error(f"no build in {arguments.source}: run setup.py build_ext --inplace beside it")

    run.compile_tools()
    run.raise_descriptor_limit()
    slower = []
    print(run.markdown_row("work", "before", "now", "ratio", "a quarter below", "a quarter above"))
    print(run.markdown_row(*["---"] * 6), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        tls.make_certificate(folder)
        for case in all_cases(arguments.seconds, folder):
            if not any(part in case.name for part in arguments.only.split("|")):
                continue
            for comparison in compare(case, arguments.source.resolve(), arguments.rounds, arguments.turns):
                ratios = comparison.ratios
                medians = [statistics.median(values) for values in (comparison.before, comparison.now, ratios)]
                quarter = len(ratios) // 4
                cells = (*medians, ratios[quarter], ratios[-1 - quarter])
                print(run.markdown_row(comparison.name, *(f"{cell:.3f}" for cell in cells)), flush=True)
                if medians[-1] > AT_MOST:
                    slower.append(comparison.name)
    print("\nMore than", AT_MOST, "times what it was:", "; ".join(slower) or "nothing")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
