"""CPU time and memory that TLS costs a server, for each kind of work, beside the peers.

``python benchmarks/tls.py`` takes some minutes. The servers take turns within each round. A server is pinned to one
core, and the clients to another. ``nginx`` is a proxy that does TLS in front of plain wshub: both processes count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from run import choose_cores, cpu_of, free_port, on_core, python_server, started_from

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

OURS = ("wshub", "wshub+uvloop")
SERVERS = {
    "wshub": python_server("wshub_server.py"),
    "wshub+uvloop": python_server("wshub_server.py", "--loop", "uvloop"),
    "transports": python_server("wshub_server.py", "--transports"),
    "transports+uvloop": python_server("wshub_server.py", "--transports", "--loop", "uvloop"),
    "picows": python_server("picows_server.py"),
    "websockets": python_server("websockets_server.py"),
    "aiohttp": python_server("aiohttp_server.py"),
    "uvicorn": python_server("uvicorn_server.py"),
    "socketify": python_server("socketify_server.py"),
    "nginx": python_server("wshub_server.py"),
}

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_session_cache shared:tls:1m;
        location / {{
            proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_read_timeout 1h;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Served:
    """A server that runs: its processes, its port, and the context of its clients."""

    pids: tuple[int, ...]
    port: int
    context: ssl.SSLContext

    def cpu(self) -> float:
        """Microseconds that its processes have used."""
        return sum(map(cpu_of, self.pids))

    def memory(self) -> float:
        """Resident memory of its processes in KB."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024

    def connect(self, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        """A TLS connection."""
        plain = socket.create_connection(("127.0.0.1", self.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain, server_hostname="localhost", session=session)

    def open(self) -> ssl.SSLSocket:
        """A WebSocket over TLS."""
        client = self.connect()
        client.sendall(REQUEST)
        head = b""
        while b"\r\n\r\n" not in head:
            received = client.recv(1)
            if not received:
                raise ConnectionError("the handshake was refused")
            head += received
        return client


def frames(size: int, count: int) -> tuple[bytes, int]:
    """Return `count` masked frames, and the number of bytes in their echoes."""
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return (b"\x82" + length + b"\0\0\0\0" + bytes(size)) * count, (1 + len(length) + size) * count


def read(client: ssl.SSLSocket, length: int) -> None:
    while length:
        received = len(client.recv(length))
        if not received:
            raise ConnectionError("the server has ended a connection")
        length -= received


def measure_idle(served: Served, _seconds: float) -> dict[str, float]:
    """KB of an idle connection, before and after a large message. The first connections are not counted."""
    first = [served.open() for _ in range(100)]
    before = served.memory()
    clients = [served.open() for _ in range(1000)]
    time.sleep(0.5)
    found = {"idle connection, KB": (served.memory() - before) / len(clients)}
    data, length = frames(60_000, 1)
    for client in clients:
        client.sendall(data)
        read(client, length)
    time.sleep(0.5)
    found["the same after 60 KB, KB"] = (served.memory() - before) / len(clients)
    close(first + clients)
    return found


def measure_echo(connections: int, size: int, count: int) -> Callable[[Served, float], dict[str, float]]:
    """Microseconds for an echoed message, of so many in flight on each connection."""

    def measure(served: Served, seconds: float) -> dict[str, float]:
        clients = [served.open() for _ in range(connections)]
        sent, expected = frames(size, count)

        def work() -> int:
            for client in clients:
                client.sendall(sent)
            for client in clients:
                read(client, expected)
            return count * len(clients)

        found = {f"echo, {size:,} B, {count} in flight, us": cost_of(served, seconds, work)}
        close(clients)
        return found

    return measure


def measure_fan_out(connections: int, count: int) -> Callable[[Served, float], dict[str, float]]:
    """Microseconds for a delivery, of messages of 64 bytes that one client sends to all."""

    def measure(served: Served, seconds: float) -> dict[str, float]:
        clients = [served.open() for _ in range(connections)]
        sent, expected = frames(64, count)

        def work() -> int:
            clients[0].sendall(sent)
            for client in clients:
                read(client, expected)
            return count * len(clients)

        found = {f"fan-out to {connections}, {count} in flight, us": cost_of(served, seconds, work)}
        close(clients)
        return found

    return measure


def measure_handshakes(served: Served, seconds: float) -> dict[str, float]:
    """Microseconds for a TLS handshake and the opening handshake behind it: with a new session, and a resumed one."""

    def new() -> int:
        served.open().close()
        return 1

    # A ticket of TLS 1.3 comes with the first data.
    first = served.open()
    session = first.session

    def resumed() -> int:
        client = served.connect(session)
        client.sendall(REQUEST)
        client.recv(4096)
        assert client.session_reused
        client.close()
        return 1

    found = {"handshake, us": cost_of(served, seconds, new)}
    if session is not None and session.has_ticket:
        with contextlib.suppress(AssertionError):
            found["handshake, resumed, us"] = cost_of(served, seconds, resumed)
    first.close()
    return found


def cost_of(served: Served, seconds: float, work: Callable[[], int]) -> float:
    """Microseconds of the server's CPU time for each unit of work."""
    work()
    units = 0
    before = served.cpu()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        units += work()
    return (served.cpu() - before) / units


def close(clients: list[ssl.SSLSocket]) -> None:
    for client in clients:
        client.close()


ROWS = {
    "idle": ("echo", measure_idle),
    "echo16": ("echo", measure_echo(64, 64, 16)),
    "echo1": ("echo", measure_echo(64, 64, 1)),
    "echo16k": ("echo", measure_echo(16, 16_384, 1)),
    "fanout32": ("broadcast", measure_fan_out(500, 32)),
    "fanout1": ("broadcast", measure_fan_out(500, 1)),
    "handshake": ("echo", measure_handshakes),
}


def start(command: list[str], port: int, core: int) -> subprocess.Popen[bytes]:
    """Start a program on a core, and wait until it listens."""
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                _, errors = process.communicate()
                raise RuntimeError((errors.decode().strip().splitlines() or ["it does not listen"])[-1]) from None
            time.sleep(0.02)


@contextlib.contextmanager
def running(name: str, mode: str, folder: Path) -> Iterator[Served]:
    """A server that has just been started, with a certificate from the folder."""
    core, _ = choose_cores()
    certificate, key = str(folder / "chain.pem"), str(folder / "key.pem")
    port = free_port()
    command = [*started_from(SERVERS[name]), "--mode", mode, "--port", str(port)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        if name == "nginx":
            program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
            if program is None:
                raise RuntimeError("nginx is not installed")
            processes.append(start(command, port, core))
            behind, port = port, free_port()
            names = {"folder": folder, "port": port, "behind": behind, "certificate": certificate, "key": key}
            (folder / "nginx.conf").write_text(NGINX.format(**names))
            processes.append(start([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, core))
        else:
            processes.append(start([*command, "--certificate", certificate, "--key", key], port, core))
        pids = [process.pid for process in processes]
        for pid in tuple(pids):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids.extend(map(int, children))
        yield Served(tuple(pids), port, ssl.create_default_context(cafile=certificate))
    finally:
        for process in reversed(processes):
            process.terminate()
            with process:
                pass


def make_certificate(folder: Path) -> None:
    """Make a certificate for localhost, of RSA with 2,048 bits."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "chain.pem")),
        ],
        check=True,
        capture_output=True,
    )


def chosen(text: str | None, known: dict[str, object]) -> list[str]:
    names = text.split(",") if text else list(known)
    if unknown := set(names) - set(known):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return names


def main() -> None:
    """Measure, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rows", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--servers", help=f"some of {','.join(SERVERS)}")
    arguments = parser.parse_args()
    servers = chosen(arguments.servers, dict(SERVERS))
    _, load_core = choose_cores()
    found: dict[str, dict[str, list[float]]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        make_certificate(folder)
        for row in chosen(arguments.rows, dict(ROWS)):
            mode, measure = ROWS[row]
            # Memory does not depend on how busy the machine is.
            for _ in range(1 if row == "idle" else arguments.rounds):
                for name in servers:
                    try:
                        with running(name, mode, folder) as served, on_core(load_core):
                            samples = measure(served, arguments.seconds)
                    except (OSError, RuntimeError) as error:
                        missing[f"{name}, {row}"] = str(error)
                        continue
                    for title, value in samples.items():
                        found.setdefault(title, {}).setdefault(name, []).append(value)
                        print(f"{title}: {name} {value:.2f}", file=sys.stderr)
    print(f"medians of {arguments.rounds} rounds; us of the server's CPU time, or KB of resident memory")
    print("| work |", " | ".join(servers), "|\n|", " --- |" * (len(servers) + 1))
    for title, of_servers in found.items():
        cells = [f"{statistics.median(of_servers[name]):.2f}" if name in of_servers else "-" for name in servers]
        print(f"| {title} |", " | ".join(cells), "|")
    for name, reason in missing.items():
        print(f"not measured: {name}: {reason}")


if __name__ == "__main__":
    main()
