"""CPU time per delivery of messages to a room whose members are spread over nodes.

``python benchmarks/cluster.py``; README.md says how. It needs redis-server, and python-socketio for the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from engines import engine_at
from run import choose_cores, cpu_of, free_port, on_core, raise_descriptor_limit

NODE = Path(__file__).resolve().parent / "servers" / "cluster_node.py"
TEXT = "x" * 64
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Protocol:
    """The path and the message of the clients of one kind of server, and the length of the frame that arrives."""

    def __init__(self, path: str, message: str, received: str) -> None:
        self.path = path
        self.frame = masked(message)
        self.length = 2 + len(received)


def masked(text: str) -> bytes:
    """Return a text frame of a client, with a mask of zeros."""
    data = text.encode()
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


PROTOCOLS = {
    "wshub": Protocol("/", TEXT, TEXT),
    "socketio": Protocol("/socket.io/?EIO=4&transport=websocket", f'42["say","{TEXT}"]', f'42["say","{TEXT}"]'),
}


KINDS = {"wshub": "wshub", "python-socketio": "socketio"}


def read_head(client: socket.socket) -> bytes:
    """Read the 101, and return the bytes behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    return data.partition(b"\r\n\r\n")[2]


def connect(port: int, kind: str) -> socket.socket:
    """Return a connected member of the room."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(UPGRADE.format(path=PROTOCOLS[kind].path).encode())
    rest = read_head(client)
    if kind == "socketio":
        while b"}" not in rest:
            rest += client.recv(65536)
        client.sendall(masked("40"))
        rest = b""
        while b"}" not in rest:
            rest += client.recv(65536)
    client.setblocking(False)
    return client


class Members:
    """The members of the room, the first of which sends."""

    def __init__(self, ports: list[int], count: int, kind: str) -> None:
        self.protocol = PROTOCOLS[kind]
        self.clients = [connect(ports[index % len(ports)], kind) for index in range(count)]
        self._poll = select.epoll()
        self._by_descriptor = {client.fileno(): client for client in self.clients}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.EPOLLIN)

    def send(self, messages: int) -> None:
        """Send so many messages, and return when all members have all of them."""
        self.clients[0].sendall(self.protocol.frame * messages)
        missing = messages * self.protocol.length * len(self.clients)
        deadline = time.monotonic() + 20
        while missing:
            for descriptor, _ in self._poll.poll(1):
                missing -= len(self._by_descriptor[descriptor].recv(1 << 20))
            if time.monotonic() > deadline:
                raise RuntimeError(f"{missing} bytes have not arrived")

    def close(self) -> None:
        """Disconnect all of them."""
        self._poll.close()
        for client in self.clients:
            client.close()


@contextlib.contextmanager
def running(nodes: int, broker: str, kind: str, core: int) -> Iterator[tuple[list[int], list[int]]]:
    """Run so many nodes on a core. Yields their process ids and their ports."""
    ports = [free_port() for _ in range(nodes)]
    with on_core(core):
        processes = [
            subprocess.Popen([sys.executable, NODE, "--port", str(port), "--broker", broker, "--kind", kind])
            for port in ports
        ]
    try:
        for port, process in zip(ports, processes, strict=True):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"a node has ended with {process.returncode}")
                time.sleep(0.05)
        # The nodes find one another.
        time.sleep(1.5)
        yield [process.pid for process in processes], ports
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def measure(nodes: int, broker: str, kind: str, members: int, burst: int, seconds: float) -> float:
    """Return the microseconds of CPU of all nodes for each delivery."""
    server_core, load_core = choose_cores()
    with running(nodes, broker, kind, server_core) as (processes, ports), on_core(load_core):
        room = Members(ports, members, kind)
        # Subscriptions, and code that is loaded once.
        time.sleep(1.5)
        for _ in range(20):
            room.send(burst)
        deliveries = 0
        before = sum(cpu_of(process) for process in processes)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            room.send(burst)
            deliveries += burst * members
        spent = sum(cpu_of(process) for process in processes) - before
        room.close()
    return spent / deliveries


def main() -> None:
    """Measure all rows that can be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", default="wshub,python-socketio", help="what is measured over Redis")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    raise_descriptor_limit()
    rows: dict[str, tuple[int, str, str]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="wshub-") as directory,
        tempfile.TemporaryDirectory(prefix="wshub-") as engine_directory,
        engine_at(engine_directory, choose_cores()[1]) as (url, _),
    ):
        rows["one node"] = (1, "none", "wshub")
        rows["two workers"] = (2, f"workers:{directory}", "wshub")
        for name in arguments.programs.split(","):
            rows[f"two nodes, Redis, {name}"] = (2, url, KINDS[name])
        samples: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(arguments.rounds):
            for name, (nodes, broker, kind) in rows.items():
                samples[name].append(measure(nodes, broker, kind, arguments.members, 32, arguments.seconds))
                print(f"{name}: {samples[name][-1]:.3f}", file=sys.stderr, flush=True)
    print(f"| a room of {arguments.members:,}, 32 messages of 64 bytes | µs of CPU for a delivery | range |")
    print("| --- | --- | --- |")
    for name, found in samples.items():
        print(f"| {name} | {statistics.median(found):.3f} | {min(found):.3f} to {max(found):.3f} |")


if __name__ == "__main__":
    main()
