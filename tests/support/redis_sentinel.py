"""A primary with a replica and Sentinels, which tests start, fail over and stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis

from tests.support.certificate import Certificate
from tests.support.free_ports import free_port
from tests.support.redis_engine import SECONDS, RedisEngine, program_of
from tests.support.tcp_proxy import TcpProxy

NAME = "hub-primary"


class Sentinel:
    """A Sentinel that watches one primary."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        primary_port: int,
        quorum: int,
        down_after: float,
        certificate: Certificate | None = None,
    ) -> None:
        self.port = free_port()
        self.tls_port = free_port() if certificate is not None else 0
        directory.mkdir()
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {primary_port} {quorum}\n"
            f"sentinel down-after-milliseconds {NAME} {int(down_after * 1000)}\n"
            # After a vote that nobody has won, they wait for twice as long.
            f"sentinel failover-timeout {NAME} 1000\n"
            + (tls_settings(certificate, self.tls_port) if certificate is not None else "")
        )
        self._command_line = [program_of(kind), str(configuration), "--sentinel"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the Sentinel, and have it look more often than it does by default."""
        self._process = subprocess.Popen(self._command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                # A replica counts as unfit if its last INFO is three periods old.
                self.command("SENTINEL", "DEBUG", "INFO-PERIOD", "1000", "PUBLISH-PERIOD", "100", "ASK-PERIOD", "100")
                # After a pause of two seconds, a Sentinel does nothing for this time.
                self.command("SENTINEL", "DEBUG", "TILT-PERIOD", "100")
                return
            except OSError:
                if time.monotonic() > deadline:
                    self.stop()
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(SECONDS)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> Any:
        """Have the Sentinel carry out a command, and return its reply."""
        return tcp_command(self.port, *words)

    def primary_port(self) -> int:
        """Return the port of the engine that the Sentinel calls the primary."""
        return int(self.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def details(self, what: str = "MASTER") -> Any:
        """Return what the Sentinel knows: of the primary, or of its ``REPLICAS`` or ``SENTINELS``."""
        found = self.command("SENTINEL", what, NAME)
        if what == "MASTER":
            return dict(zip(found[::2], found[1::2], strict=True))
        return [dict(zip(each[::2], each[1::2], strict=True)) for each in found]


def tls_settings(certificate: Certificate, port: int) -> str:
    """Return the lines of a configuration with which a Sentinel listens, and connects, with TLS."""
    return (
        f"tls-port {port}\ntls-auth-clients no\ntls-replication yes\ntls-cert-file {certificate.chain}\n"
        f"tls-key-file {certificate.key}\ntls-ca-cert-file {certificate.chain}\n"
    )


def tcp_command(port: int, *words: str) -> Any:
    """Have a server on the loopback carry out a command, and return its reply."""
    reader = hiredis.Reader(encoding="utf-8", errors="replace")
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.sendall(hiredis.pack_command(words))
        while (reply := reader.gets()) is False:
            data = connection.recv(65536)
            if not data:
                raise ConnectionResetError("the server has ended the connection")
            reader.feed(data)
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return reply


class SentinelSetup:
    """Two engines, of which one replicates the other, and Sentinels."""

    def __init__(
        self,
        kind: str,
        directory: str,
        sentinels: int,
        down_after: float,
        is_proxied: bool,
        *settings: str,
    ) -> None:
        self.kind = kind
        self.engines: list[RedisEngine] = []
        for number in range(2):
            path = Path(directory) / f"e{number}"
            path.mkdir()
            self.engines.append(
                RedisEngine(kind, str(path), "--repl-diskless-sync-delay", "0", "--repl-timeout", "5", *settings)
            )
        self.proxy = TcpProxy("127.0.0.1", self.engines[0].port) if is_proxied else None
        """Through which the Sentinels reach the first engine."""
        port = self.engines[0].port if self.proxy is None else self.proxy.port
        self.sentinels = [
            Sentinel(kind, Path(directory) / f"s{number}", port, sentinels // 2 + 1, down_after)
            for number in range(sentinels)
        ]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{NAME}"

    @property
    def primary(self) -> RedisEngine:
        """The engine that the first Sentinel calls the primary."""
        _, port = self.remap("127.0.0.1", self.sentinels[0].primary_port())
        (found,) = [engine for engine in self.engines if engine.port == port]
        return found

    def remap(self, host: str, port: int) -> tuple[str, int]:
        """Return the place of an engine, given the one that Sentinels tell."""
        is_proxy = self.proxy is not None and self.proxy.port == port
        return host, self.engines[0].port if is_proxy else port

    @property
    def replica(self) -> RedisEngine:
        primary = self.primary
        (found,) = [engine for engine in self.engines if engine is not primary]
        return found

    def start(self) -> None:
        """Start all, and return when the Sentinels know one another and the replica."""
        for engine in self.engines:
            engine.start()
        self.engines[1].command("REPLICAOF", "127.0.0.1", self.engines[0].port)
        wait_until(lambda: "master_link_status:up" in self.engines[1].command("INFO", "replication"))
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(self._is_complete)

    def _is_complete(self) -> bool:
        for sentinel in self.sentinels:
            others = sentinel.details("SENTINELS")
            replicas = sentinel.details("REPLICAS")
            if len(others) != len(self.sentinels) - 1 or any("disconnected" in each["flags"] for each in others):
                return False
            if not replicas or any(each["master-link-status"] != "ok" for each in replicas):
                return False
        return True

    def notice_after(self, seconds: float) -> None:
        """Have the Sentinels take it that an engine is down after so many seconds."""
        for sentinel in self.sentinels:
            sentinel.command("SENTINEL", "SET", NAME, "down-after-milliseconds", str(int(seconds * 1000)))

    def lose_first_engine(self) -> None:
        """Keep the Sentinels from the engine behind the proxy, which goes on to answer all others. They soon notice."""
        assert self.proxy is not None
        self.notice_after(0.3)
        self.proxy.refuses = True
        for connection in self.proxy.open_connections():
            connection.end()

    def failover(self) -> None:
        """Have the Sentinels make the replica the primary, and return when all of them say so."""
        old = self.primary
        # A Sentinel may find no replica fit, and says so at once or only in its log.
        for _ in range(20):
            seconds = 3.0
            try:
                # Once the first Sentinel has done it, another command would undo it.
                if self.primary is old:
                    self.sentinels[0].command("SENTINEL", "FAILOVER", NAME)
            except hiredis.ReplyError:
                seconds = 0.5
            with contextlib.suppress(TimeoutError):
                return self.wait_for_failover(old, seconds)
        raise TimeoutError("the Sentinels make no other engine the primary")

    def wait_for_failover(self, old: RedisEngine, seconds: float = SECONDS) -> None:
        """Return when all Sentinels call another engine the primary."""
        ports = {port for port in (self.sentinels[0].primary_port(), old.port) if self.remap("", port)[1] == old.port}
        wait_until(lambda: all(sentinel.primary_port() not in ports for sentinel in self.sentinels), seconds)

    def wait_for_replica(self) -> None:
        """Return when the other engine replicates the primary, so that a further failover can happen."""
        wait_until(lambda: self._is_complete() and "role:slave" in self.replica.command("INFO", "replication"))

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.stop()
        for engine in self.engines:
            engine.stop(signal.SIGKILL)
        if self.proxy is not None:
            self.proxy.close()


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a condition holds, by blocking. It may raise OSError meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the engines do not do what they were told")
        time.sleep(0.02)


@contextlib.contextmanager
def running_sentinels(
    kind: str,
    *settings: str,
    sentinels: int = 1,
    down_after: float = 60.0,
    is_proxied: bool = False,
) -> Iterator[SentinelSetup]:
    """Start a primary, a replica and Sentinels, and stop them at the end of the block.

    Args:
        kind: of the engines.
        settings: further settings of the engines.
        sentinels: their number.
        down_after: seconds after which a Sentinel takes it that an engine is down.
        is_proxied: whether Sentinels reach the first engine through a proxy.
    """
    with tempfile.TemporaryDirectory(prefix="wshub-", ignore_cleanup_errors=True) as directory:
        setup = SentinelSetup(kind, directory, sentinels, down_after, is_proxied, *settings)
        try:
            setup.start()
            yield setup
        finally:
            setup.stop()
