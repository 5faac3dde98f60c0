"""Measures applications on uvicorn: its own WebSocket protocols beside wshub's, and HTTP with and without wshub.

``python benchmarks/applications.py``; README.md says how.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time

from run import (
    Server,
    choose_cores,
    compile_tools,
    cpu_of,
    machine,
    markdown_row,
    on_core,
    python_server,
    run_load,
    running,
)

REQUEST = b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n"
HTTP_CONNECTIONS = 32
WARMUP = 0.5


def application(name: str, ws: str) -> Server:
    return Server(f"{name}, {ws}", python_server("application_server.py", "--application", name, "--ws", ws))


SERVERS = [
    application("app", "serve"),
    application("app", "wshub"),
    application("hub", "serve"),
    *(application("starlette", ws) for ws in ("serve", "websockets", "websockets-sansio", "wsproto")),
    *(application("fastapi", ws) for ws in ("serve", "websockets-sansio")),
]

# How the names of the servers end whose WebSockets are wshub's.
WITH_WSHUB = (", serve", ", wshub")

LOADS = {
    "handshakes": ("handshake", "--connections", "32"),
    "echo, 64 B, 100 connections": ("echo", "--connections", "100", "--size", "64"),
    "echo, 64 B, 64 connections, 16 in flight": ("echo", "--connections", "64", "--in-flight", "16", "--size", "64"),
}
KEPT_ALIVE = "HTTP requests, connections kept alive"
EACH_ITS_OWN = "HTTP requests, each on its own connection"
WORKS = (*LOADS, KEPT_ALIVE, EACH_ITS_OWN)


def receive(client: socket.socket) -> None:
    """A whole answer."""
    answer = b""
    while not answer.endswith(b"hello"):
        data = client.recv(4096)
        if not data:
            raise RuntimeError("the server has ended the connection")
        answer += data


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def run_http(pid: int, port: int, seconds: float, *, keep_alive: bool) -> float:
    """Microseconds of CPU time for each request."""
    clients = [connect(port) for _ in range(HTTP_CONNECTIONS)] if keep_alive else []
    requests = 0
    before = cpu_of(pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not keep_alive:
            clients = [connect(port) for _ in range(HTTP_CONNECTIONS)]
        for client in clients:
            client.sendall(REQUEST)
        for client in clients:
            receive(client)
            if not keep_alive:
                client.close()
        requests += len(clients)
    spent = cpu_of(pid) - before
    for client in clients:
        client.close()
    return spent / requests


def measure(work: str, pid: int, port: int, load_core: int, warmup: float, seconds: float) -> float:
    """Microseconds of CPU time that the server takes for each handshake, message or request of that work."""
    if work in LOADS:
        return float(run_load(LOADS[work], pid, port, load_core, warmup, seconds)["cpu_us_per_message"])
    with on_core(load_core):
        run_http(pid, port, warmup, keep_alive=True)
        return run_http(pid, port, seconds, keep_alive=work == KEPT_ALIVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", help="works, by a part of their names, with commas")
    arguments = parser.parse_args()
    compile_tools()
    server_core, load_core = choose_cores()
    works = list(WORKS)
    if arguments.only:
        works = [work for work in works if any(part in work for part in arguments.only.split(","))]
    print(markdown_row("µs of the server's CPU", *works))
    print(markdown_row("---", *["---"] * len(works)))
    table: dict[str, dict[str, list[float]]] = {server.name: {work: [] for work in works} for server in SERVERS}
    for work in works:
        for number in range(arguments.rounds):
            for server in SERVERS:
                with running(server, "echo", server_core) as (pid, port):
                    value = measure(work, pid, port, load_core, WARMUP, arguments.seconds)
                table[server.name][work].append(value)
                print(f"{work} {number + 1} {server.name} {value:.1f}", file=sys.stderr)
    for name, row in table.items():
        print(markdown_row(name, *(f"{statistics.median(values):.1f}" for values in row.values())))
    print(
        "\nMedians;", ", ".join(f"{k} {v}" for k, v in machine(("uvicorn", "starlette", "fastapi", "uvloop")).items())
    )


if __name__ == "__main__":
    main()
