"""Measures compression: wshub beside websockets, aiohttp and socketify; README.md says how and why."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run import (
    IDLE_CONNECTIONS,
    LoadError,
    Server,
    ServerError,
    choose_cores,
    compile_tools,
    machine,
    markdown_row,
    python_server,
    raise_descriptor_limit,
    run_load,
    running,
)

# Bytes of one KiB of the load generator's JSON once a hub has compressed it, header included.
COMPRESSED_SIZE = 385

PLAIN = Server("wshub, plain", python_server("wshub_server.py", "--loop", "uvloop"))


def wshub(name: str, compression: str) -> Server:
    return Server(name, python_server("wshub_server.py", "--loop", "uvloop", "--compression", compression))


PEERS = (
    Server("websockets", python_server("websockets_server.py", "--compression")),
    Server("aiohttp", python_server("aiohttp_server.py", "--compression")),
    Server("socketify", python_server("socketify_server.py", "--compression")),
)


@dataclass(frozen=True)
class Measurement:
    """One row: which servers do what under which load."""

    key: str
    title: str
    unit: str
    server_mode: str
    load: str
    figure: str
    # Each server with what it says of its frames: the same for all connections, or other ones for each.
    servers: tuple[tuple[Server, str], ...]


JSON_LOAD = "--text json --size 1024"
FANOUT = "fanout --connections 1000 --in-flight 32"
MEASUREMENTS = (
    Measurement(
        "echo",
        "echo of 1 KiB of JSON, 100 connections",
        "µs/message",
        "echo",
        f"echo --connections 100 {JSON_LOAD}",
        "cpu_us_per_message",
        (
            (wshub("wshub", "default"), "each"),
            (wshub("wshub, zlib", "zlib"), "each"),
            (wshub("wshub, takeover", "takeover"), "each"),
            *((peer, "each") for peer in PEERS),
        ),
    ),
    Measurement(
        "fanout",
        "fan-out of 1 KiB of JSON to 1,000",
        "µs/delivery",
        "broadcast",
        f"{FANOUT} {JSON_LOAD}",
        "cpu_us_per_delivery",
        ((wshub("wshub", "default"), "same"), *((peer, "each") for peer in PEERS)),
    ),
    Measurement(
        "fanout-plain",
        "the same number of bytes, plain",
        "µs/delivery",
        "broadcast",
        f"{FANOUT} --size {COMPRESSED_SIZE - 4}",
        "cpu_us_per_delivery",
        ((PLAIN, "none"),),
    ),
    Measurement(
        "ticks",
        "fan-out of ticks of about 117 bytes to 1,000",
        "µs/delivery",
        "broadcast",
        f"{FANOUT} --text tick",
        "cpu_us_per_delivery",
        (
            (wshub("wshub, each compressed alone", "all"), "same"),
            (wshub("wshub, shared window", "shared"), "same"),
        ),
    ),
    Measurement(
        "idle",
        f"resident memory for each of {IDLE_CONNECTIONS:,} connections that have echoed 1 KiB of JSON",
        "KB/connection",
        "echo",
        f"idle --connections {IDLE_CONNECTIONS} {JSON_LOAD}",
        "resident_kb_per_connection",
        (
            (PLAIN, "none"),
            (wshub("wshub", "default"), "each"),
            (wshub("wshub, takeover", "takeover"), "each"),
            *((peer, "each") for peer in PEERS[:2]),
        ),
    ),
)

Samples = dict[tuple[str, str], list[dict[str, Any]]]


def measure(wanted: list[Measurement], rounds: int, warmup: float, seconds: float) -> tuple[Samples, list[str]]:
    """Servers take turns within each round, so that a busy spell of the machine meets all of them."""
    server_core, load_core = choose_cores()
    samples: Samples = {}
    failures = []
    for row in wanted:
        for number in range(1 if row.key == "idle" else rounds):
            for server, frames in row.servers:
                load = (*row.load.split(), "--compression", frames)
                key = (row.key, server.name)
                try:
                    with running(server, row.server_mode, server_core) as (pid, port):
                        sample = run_load(load, pid, port, load_core, warmup, seconds)
                except (ServerError, LoadError) as error:
                    failures.append(f"{row.key}, {server.name}: {error}")
                    print(f"{row.key:12} {number + 1} {server.name:30} FAILED: {error}", file=sys.stderr)
                    continue
                samples.setdefault(key, []).append(sample)
                print(
                    f"{row.key:12} {number + 1} {server.name:30} {sample[row.figure]:.3f} {row.unit}", file=sys.stderr
                )
    return samples, failures


def report(wanted: list[Measurement], samples: Samples, failures: list[str]) -> str:
    lines = [
        markdown_row("work", "server", "median", "range", "unit", "bytes each"),
        markdown_row(*["---"] * 6),
    ]
    for row in wanted:
        for server, _ in row.servers:
            found = samples.get((row.key, server.name), [])
            values = [sample[row.figure] for sample in found]
            sizes = [sample["bytes_per_delivery"] for sample in found if "bytes_per_delivery" in sample]
            cells = ("failed", "") if not values else (f"{statistics.median(values):.3f}", spread(values))
            size = f"{statistics.median(sizes):.1f}" if sizes else ""
            lines.append(markdown_row(row.title, server.name, *cells, row.unit, size))
    lines += ["", *judged(samples), "", *(f"- failed: {failure}" for failure in failures)]
    names = ("websockets", "aiohttp", "socketify", "uvloop")
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in machine(names).items())])


def spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def judged(samples: Samples) -> list[str]:
    """List the targets, and whether they are met."""

    def median(row: str, server: str, figure: str) -> float:
        return float(statistics.median(sample[figure] for sample in samples[row, server]))

    def best_peer(row: str, figure: str) -> float:
        return min(median(row, peer.name, figure) for peer in PEERS if (row, peer.name) in samples)

    cpu, size = "cpu_us_per_delivery", "bytes_per_delivery"
    alone, shared = "wshub, each compressed alone", "wshub, shared window"
    targets: list[tuple[str, float, Callable[[], float]]] = [
        ("echo, against the best peer", 0.5, lambda: median("echo", "wshub", cpu) / best_peer("echo", cpu)),
        ("fan-out, against the best peer", 0.1, lambda: median("fanout", "wshub", cpu) / best_peer("fanout", cpu)),
        (
            "fan-out, against as many bytes plain",
            1.3,
            lambda: median("fanout", "wshub", cpu) / median("fanout-plain", PLAIN.name, cpu),
        ),
        ("bytes of a shared window", 0.35, lambda: median("ticks", shared, size) / median("ticks", alone, size)),
        ("CPU of a shared window", 1.0, lambda: median("ticks", shared, cpu) / median("ticks", alone, cpu)),
    ]
    lines = [markdown_row("target", "at most", "measured"), markdown_row("---", "---", "---")]
    for title, at_most, ratio in targets:
        try:
            value = ratio()
        except (KeyError, ValueError):
            lines.append(markdown_row(title, f"{at_most} times", "not measured"))
            continue
        verdict = "✓" if value <= at_most else "✗ falls short"
        lines.append(markdown_row(title, f"{at_most} times", f"{value:.3f} times {verdict}"))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute in all")
    parser.add_argument("--only", metavar="ROW,...", help=f"of {', '.join(row.key for row in MEASUREMENTS)}")
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample there")
    arguments = parser.parse_args()

    wanted = [row for row in MEASUREMENTS if arguments.only is None or row.key in arguments.only.split(",")]
    compile_tools()
    raise_descriptor_limit()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    samples, failures = measure(wanted, rounds, *((0.3, 0.7) if arguments.quick else (0.7, 2.5)))
    print(report(wanted, samples, failures))
    if arguments.json:
        found = [{"row": row, "server": server, "samples": all_} for (row, server), all_ in samples.items()]
        arguments.json.write_text(json.dumps(found, indent=2))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
