"""Measures wshub beside a bare C server and two other libraries; README.md says how and why."""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

_programs = HERE
BUILD = HERE / "build"
START_SECONDS = 10
# load.c bounds itself: this much beyond its warm-up and window, and then it fails with a reason.
LOAD_GRACE_SECONDS = 75
SETTLE_SECONDS = 1.0

IDLE_CONNECTIONS = 10_000
DESCRIPTORS_NEEDED = IDLE_CONNECTIONS + 500


@dataclass(frozen=True)
class Server:
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    unit: str
    server_mode: str
    load: tuple[str, ...]
    figure: str
    decimals: int
    # The targets. `to_limit` is a ratio, or for memory a difference in KB.
    to_limit: float
    to_picows: float


@dataclass
class Cell:
    samples: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None


def python_server(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "servers" / name), *options)


SERVERS = (
    Server("limit", (str(BUILD / "limit"),)),
    Server("wshub", python_server("wshub_server.py", "--loop", "asyncio")),
    Server("wshub+uvloop", python_server("wshub_server.py", "--loop", "uvloop")),
    Server("picows+uvloop", python_server("picows_server.py")),
    Server("websockets+uvloop", python_server("websockets_server.py")),
)
OURS = ("wshub", "wshub+uvloop")


def echo_row(key: str, title: str, load: str, to_limit: float, to_picows: float) -> Row:
    arguments = ("echo", *load.split())
    return Row(key, title, "µs/message", "echo", arguments, "cpu_us_per_message", 2, to_limit, to_picows)


def fanout_row(key: str, title: str, load: str, to_limit: float, to_picows: float) -> Row:
    arguments = ("fanout", "--connections", "1000", *load.split())
    figure = "cpu_us_per_delivery"
    return Row(key, title, "µs/delivery", "broadcast", arguments, figure, 3, to_limit, to_picows)


ROWS = (
    echo_row("echo", "echo, 64 B, 100 connections", "--connections 100 --size 64", 1.15, 0.80),
    echo_row(
        "pipelined",
        "echo, 64 B, 64 connections, 16 in flight",
        "--connections 64 --in-flight 16 --size 64",
        1.6,
        0.15,
    ),
    echo_row("echo16k", "echo, 16 KiB, 16 connections", "--connections 16 --size 16384", 1.3, 0.85),
    fanout_row("fanout32", "fan-out to 1,000, 64 B, 32 in flight", "--in-flight 32", 1.3, 0.06),
    fanout_row("fanout1", "fan-out to 1,000, 64 B, one at a time", "--in-flight 1", 1.15, 0.95),
    Row(
        "handshake",
        "handshakes",
        "µs/handshake",
        "echo",
        ("handshake", "--connections", "32"),
        "cpu_us_per_message",
        1,
        2.0,
        0.35,
    ),
    Row(
        "idle",
        f"resident memory per idle connection, {IDLE_CONNECTIONS:,} of them",
        "KB/connection",
        "echo",
        ("idle", "--connections", str(IDLE_CONNECTIONS)),
        "resident_kb_per_connection",
        2,
        1.5,
        0.10,
    ),
)


class LoadError(Exception):
    pass


class ServerError(Exception):
    pass


def compile_tools() -> None:
    BUILD.mkdir(exist_ok=True)
    for name in ("load", "limit"):
        command = ["gcc", "-O3", "-march=native", "-Wall", "-Wextra", "-o", str(BUILD / name), str(HERE / f"{name}.c")]
        subprocess.run([*command, "-lz"], check=True)


def raise_descriptor_limit(needed: int = DESCRIPTORS_NEEDED) -> None:
    """The server and the load generator inherit it; each holds every idle connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(f"{needed} file descriptors are needed, the hard limit is {hard}: see ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def choose_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("warning: one core only, the server and the load generator share it", file=sys.stderr)
    return cores[0], cores[min(1, len(cores) - 1)]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process, and start others, on one core for a while."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def cpu_of(process: int) -> float:
    """Microseconds that all threads of a process have used."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@contextmanager
def programs_of(directory: Path) -> Iterator[None]:
    """Start servers meanwhile from that directory of another checkout."""
    global _programs
    before, _programs = _programs, directory
    try:
        yield
    finally:
        _programs = before


def started_from(command: Iterable[str]) -> list[str]:
    """Return the command with the program of the checkout that ``programs_of`` has chosen."""
    return [word.replace(str(HERE), str(_programs)) for word in command]


@contextmanager
def running(server: Server, mode: str, core: int) -> Iterator[tuple[int, int]]:
    """A fresh server process on its core, reachable; yields its pid and port, and stops it by its pid."""
    port = free_port()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [
                *started_from(server.command),
                "--mode",
                mode,
                "--port",
                str(port),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

        def failed(what: str) -> ServerError:
            errors.seek(0)
            return ServerError(f"{what}: {last_line(errors.read())}")

        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise failed(f"exited with {process.returncode} at its start") from None
                    if time.monotonic() > deadline:
                        raise failed(f"did not listen within {START_SECONDS} s") from None
                    time.sleep(0.02)
            yield process.pid, port
            if process.poll() is not None:
                raise failed(f"exited with {process.returncode} while measured")
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_load(load: tuple[str, ...], pid: int, port: int, core: int, warmup: float, seconds: float) -> dict[str, Any]:
    command = [str(BUILD / "load"), *load, "--port", str(port), "--pid", str(pid)]
    command += ["--warmup", str(warmup), "--seconds", str(seconds)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ) as process:
        assert process.stdout
        if load[0] == "idle" and process.stdout.readline() == "ready\n":
            time.sleep(SETTLE_SECONDS)
        try:
            # Closes its stdin, which is what ends the idle mode.
            output, errors = process.communicate(timeout=LOAD_GRACE_SECONDS + warmup + seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LoadError("the load generator did not end") from None
    if process.returncode != 0:
        raise LoadError(f"{last_line(errors)} (exit code {process.returncode})")
    result: dict[str, Any] = json.loads(output)
    return result


def find_missing(servers: list[Server], core: int) -> dict[str, str]:
    missing = {}
    for server in servers:
        try:
            with running(server, "echo", core):
                pass
        except (ServerError, OSError) as error:
            missing[server.name] = str(error)
    return missing


Table = dict[str, dict[str, Cell]]


def measure(rows: list[Row], servers: list[Server], rounds: int, warmup: float, seconds: float) -> Table:
    """Servers take turns within each round, so that a busy spell of the machine meets all of them."""
    server_core, load_core = choose_cores()
    table: Table = {row.key: {server.name: Cell() for server in servers} for row in rows}
    for row in rows:
        # Memory does not depend on how busy the machine is.
        for number in range(1 if row.key == "idle" else rounds):
            for server in servers:
                cell = table[row.key][server.name]
                if cell.failure:
                    continue
                try:
                    with running(server, row.server_mode, server_core) as (pid, port):
                        sample = run_load(row.load, pid, port, load_core, warmup, seconds)
                except (ServerError, LoadError) as error:
                    cell.failure = str(error)
                    print(f"{row.key:10} {number + 1} {server.name:18} FAILED: {error}", file=sys.stderr)
                    continue
                cell.samples.append(sample)
                value = f"{sample[row.figure]:.{row.decimals}f}"
                print(f"{row.key:10} {number + 1} {server.name:18} {value} {row.unit}", file=sys.stderr)
    return table


def median(cell: Cell | None, row: Row) -> float | None:
    if cell is None or cell.failure or not cell.samples:
        return None
    return float(statistics.median(sample[row.figure] for sample in cell.samples))


def figure_text(cell: Cell, row: Row) -> str:
    value = median(cell, row)
    if value is None:
        return "failed"
    text = f"{value:.{row.decimals}f}"
    if len(cell.samples) > 1:
        values = [sample[row.figure] for sample in cell.samples]
        text += f" ({min(values):.{row.decimals}f} to {max(values):.{row.decimals}f})"
    return text


def judged(row: Row, against: str, ours: float | None, theirs: float | None) -> str:
    """Ours beside theirs, and whether it reaches the target."""
    if ours is None or theirs is None:
        return "not measured"
    if row.key == "idle" and against == "limit":
        more = ours - theirs
        return f"{more:+.2f} KB {'✓' if more <= row.to_limit else '✗ falls short'}"
    target = row.to_limit if against == "limit" else row.to_picows
    ratio = ours / theirs if theirs > 0 else float("inf")
    return f"{ratio:.3f} times {'✓' if ratio <= target else '✗ falls short'}"


def markdown_row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def machine(packages: tuple[str, ...]) -> dict[str, str]:
    """Describe the machine, the interpreter, and the versions of wshub and of these packages."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    facts = {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }
    for name in ("wshub", *packages):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def report(rows: list[Row], table: Table, missing: dict[str, str], facts: dict[str, str]) -> str:
    lines = [
        "Server's CPU time per message, delivery or handshake: medians, and in parentheses the range.",
        "",
    ]
    names = list(next(iter(table.values())))
    lines.append(markdown_row("work", "unit", *names))
    lines.append(markdown_row("---", "---", *["---"] * len(names)))
    for row in rows:
        cells = [figure_text(table[row.key][name], row) for name in names]
        lines.append(markdown_row(row.title, row.unit, *cells))

    present = [name for name in OURS if name in names]
    if present:
        lines += ["", markdown_row("work", "against", "target", *present)]
        lines.append(markdown_row("---", "---", "---", *["---"] * len(present)))
        for row in rows:
            for against, peer in (("limit", "limit"), ("picows", "picows+uvloop")):
                theirs = median(table[row.key].get(peer), row)
                cells = [judged(row, against, median(table[row.key][name], row), theirs) for name in present]
                if against == "picows":
                    target = f"at most {row.to_picows:.2f} times"
                elif row.key == "idle":
                    target = f"at most {row.to_limit} KB more"
                else:
                    target = f"at most {row.to_limit:.2f} times"
                lines.append(markdown_row(row.title, against, target, *cells))

    notes = [f"missing: {name}: {reason}" for name, reason in missing.items()]
    for row in rows:
        for name, cell in table[row.key].items():
            if cell.failure:
                notes.append(f"failed: {row.key} with {name}: {cell.failure}")
    notes += [f"{name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def chosen(wanted: str | None, known: list[str], what: str) -> list[str]:
    if wanted is None:
        return known
    names = wanted.split(",")
    for name in names:
        if name not in known:
            sys.exit(f"no {what} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, about 2 minutes in all")
    parser.add_argument("--only", metavar="ROW,...", help=f"of {', '.join(row.key for row in ROWS)}")
    parser.add_argument("--servers", metavar="SERVER,...", help=f"of {', '.join(s.name for s in SERVERS)}")
    parser.add_argument("--rounds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--seconds", type=float, help="measured window; 2.5, or 0.7 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    arguments = parser.parse_args()

    row_keys = chosen(arguments.only, [row.key for row in ROWS], "row")
    rows = [row for row in ROWS if row.key in row_keys]
    server_names = chosen(arguments.servers, [server.name for server in SERVERS], "server")
    servers = [server for server in SERVERS if server.name in server_names]
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (0.7 if arguments.quick else 2.5)
    warmup = 0.3 if arguments.quick else 0.7

    compile_tools()
    raise_descriptor_limit()
    facts = machine(("picows", "aiofastnet", "uvloop", "websockets"))
    missing = find_missing(servers, choose_cores()[0])
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    servers = [server for server in servers if server.name not in missing]
    if not servers:
        return 1

    table = measure(rows, servers, rounds, warmup, seconds)
    print(report(rows, table, missing, facts))
    if arguments.json:
        cells = {
            key: {name: {"samples": cell.samples, "failure": cell.failure} for name, cell in by_server.items()}
            for key, by_server in table.items()
        }
        arguments.json.write_text(json.dumps({"machine": facts, "missing": missing, "rows": cells}, indent=2))
    return 1 if any(cell.failure for by_server in table.values() for cell in by_server.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
