"""CPU time of the server for echoes over TLS, with each of the transports that can carry them.

``python benchmarks/tls.py``: the servers take turns, pinned to one core, the clients to another.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from run import choose_cores, cpu_of, on_core

TRANSPORTS = ("asyncio", "uvloop", "asyncio, aiofastnet", "uvloop, aiofastnet")
WORKLOADS = {"64 B, 32 in flight": (64, 32), "64 B, one at a time": (64, 1), "16 KiB": (16_384, 1)}
CONNECTIONS = 16
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def serve(transport: str, chain: str, key: str) -> None:
    """Serve echoes over TLS on a port that is printed."""
    from wshub import EventHandler, Hub

    if "aiofastnet" not in transport:
        sys.modules["aiofastnet"] = None  # type: ignore[assignment]
    factory = None
    if transport.startswith("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop

    async def main() -> None:
        handler = EventHandler(on_message=lambda connection, message: connection.send(message))
        async with Hub().serve("127.0.0.1", 0, handler, ssl_certfile=chain, ssl_keyfile=key) as server:
            print(server.port, flush=True)
            await server.wait_closed()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def frames(size: int, count: int) -> tuple[bytes, int]:
    """Return `count` masked frames, and the number of bytes in their echoes."""
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return (b"\x82" + length + b"\0\0\0\0" + bytes(size)) * count, (1 + len(length) + size) * count


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A WebSocket connection over TLS."""
    plain = socket.create_connection(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = context.wrap_socket(plain, server_hostname="localhost")
    client.sendall(REQUEST)
    client.recv(4096)
    return client


@contextmanager
def connected(transport: str, chain: str, key: str) -> Iterator[tuple[int, list[ssl.SSLSocket]]]:
    """The process of a server, and connections to it."""
    server_core, _ = choose_cores()
    command = [sys.executable, __file__, "--serve", transport, "--chain", chain, "--key", key]
    with on_core(server_core):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            context = ssl.create_default_context(cafile=chain)
            yield server.pid, [connect(port, context) for _ in range(CONNECTIONS)]
        finally:
            server.terminate()


def measure(pid: int, clients: list[ssl.SSLSocket], seconds: float) -> dict[str, float]:
    """Microseconds of CPU time that the server takes for each message, of each workload."""
    _, load_core = choose_cores()
    with on_core(load_core):
        return {name: measure_workload(pid, clients, *workload, seconds) for name, workload in WORKLOADS.items()}


def measure_workload(pid: int, clients: list[ssl.SSLSocket], size: int, count: int, seconds: float) -> float:
    """The same, of messages of that size, so many in flight on each connection."""
    sent, expected = frames(size, count)
    messages = 0
    before = cpu_of(pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for client in clients:
            client.sendall(sent)
        for client in clients:
            left = expected
            while left:
                left -= len(client.recv(left))
        messages += count * len(clients)
    return (cpu_of(pid) - before) / messages


def make_certificate(directory: str) -> tuple[str, str]:
    """The paths of a new certificate for localhost and of its key."""
    chain, key = f"{directory}/chain.pem", f"{directory}/key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", chain),
        ],
        check=True,
        capture_output=True,
    )
    return chain, key


def main() -> None:
    """Measure all, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--serve")
    parser.add_argument("--chain")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.chain, arguments.key)
        return
    with tempfile.TemporaryDirectory() as directory:
        chain, key = make_certificate(directory)
        rounds: list[dict[str, dict[str, float]]] = []
        for _ in range(arguments.rounds):
            rounds.append({})
            for transport in TRANSPORTS:
                with connected(transport, chain, key) as (pid, clients):
                    rounds[-1][transport] = measure(pid, clients, arguments.seconds)
    print(f"us of CPU time a message, medians of {arguments.rounds} rounds")
    for name in WORKLOADS:
        medians = [
            f"{transport}: {statistics.median(one[transport][name] for one in rounds):.2f}" for transport in TRANSPORTS
        ]
        print(f"{name:20}", "; ".join(medians))


if __name__ == "__main__":
    main()
