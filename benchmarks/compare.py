"""Measures another build of wshub beside this one, in every row of the other benchmarks; README.md says how and why."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import applications
import compression
import run
import tls

# What a change may cost: a figure beyond so many times what it was is named as one that is slower.
AT_MOST = 1.05


@dataclass(frozen=True)
class Case:
    """A server under a load: what it costs, by the name of the figure."""

    name: str
    measure: Callable[[], dict[str, float]]
    # Memory does not depend on how busy the machine is.
    once: bool = False


def under_load(name: str, server: run.Server, mode: str, load: tuple[str, ...], figure: str, seconds: float) -> Case:
    """One server under `load.c`."""

    def measure() -> dict[str, float]:
        server_core, load_core = run.choose_cores()
        with run.running(server, mode, server_core) as (pid, port):
            return {name: run.run_load(load, pid, port, load_core, 0.5, seconds)[figure]}

    return Case(name, measure, once=load[0] == "idle")


def of_application(work: str, server: run.Server, seconds: float) -> Case:
    """One application under one work of `applications.py`."""
    name = f"{work}; {server.name}"
    return Case(name, lambda: {name: applications.measure(work, server, seconds)})


def over_tls(transport: str, chain: str, key: str, seconds: float) -> Case:
    """One transport under all workloads of `tls.py`."""
    name = f"TLS, {transport}"

    def measure() -> dict[str, float]:
        figures = tls.measure(transport, chain, key, seconds)
        return {f"{workload}; {name}": figure for workload, figure in figures.items()}

    return Case(name, measure)


def all_cases(seconds: float, chain: str, key: str) -> Iterator[Case]:
    """What the other benchmarks measure of wshub; `chain` and `key` are files with a certificate for localhost."""
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
    for transport in tls.TRANSPORTS:
        yield over_tls(transport, chain, key, seconds)


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
    """The samples of one figure, those of one round at the same place."""

    name: str
    before: list[float]
    now: list[float]

    @property
    def ratios(self) -> list[float]:
        """One for each round: what comes and goes with the machine meets both of its samples."""
        return [now / before for before, now in zip(self.before, self.now, strict=True)]


def compare(case: Case, source: Path, rounds: int) -> list[Comparison]:
    """Each round measures both builds, the one first that was second before."""
    found: dict[str, Comparison] = {}
    for number in range(1 if case.once else rounds):
        order = [source, None] if number % 2 else [None, source]
        for build in order:
            with imported_from(build):
                figures = case.measure()
            for name, value in figures.items():
                comparison = found.setdefault(name, Comparison(name, [], []))
                (comparison.now if build is None else comparison.before).append(value)
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the directory src of a checkout in which the other build is")
    parser.add_argument("--only", default="", help="cases, by parts of their names, with '|' between them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    if not list(arguments.source.glob("wshub/hub/*.so")):
        parser.error(f"no build in {arguments.source}: run setup.py build_ext --inplace beside it")

    run.compile_tools()
    run.raise_descriptor_limit()
    slower = []
    print(run.markdown_row("work", "before", "now", "ratio", "lowest", "highest"))
    print(run.markdown_row(*["---"] * 6), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        chain, key = tls.make_certificate(directory)
        for case in all_cases(arguments.seconds, chain, key):
            if not any(part in case.name for part in arguments.only.split("|")):
                continue
            for comparison in compare(case, arguments.source.resolve(), arguments.rounds):
                ratios = comparison.ratios
                medians = [statistics.median(values) for values in (comparison.before, comparison.now, ratios)]
                cells = (*medians, min(ratios), max(ratios))
                print(run.markdown_row(comparison.name, *(f"{cell:.3f}" for cell in cells)), flush=True)
                if medians[-1] > AT_MOST:
                    slower.append(comparison.name)
    print("\nMore than", AT_MOST, "times what it was:", "; ".join(slower) or "nothing")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
