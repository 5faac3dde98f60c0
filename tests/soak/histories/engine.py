"""An engine with a replica that can take its place."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.redis_engine import RedisEngine

__all__ = ["ReplicatedEngine", "replicated_engine"]

# The disk has all that the engine has answered. With everysec, the engine waits for a slow disk for up to two seconds
# before it writes. If it is killed meanwhile, it loses messages.
SETTINGS = (
    *("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"),
    *("--repl-diskless-sync-delay", "0", "--repl-backlog-size", "64mb"),
)

SYNC_SECONDS = 20.0
"""Seconds in which the replica must have what the primary has."""


class ReplicatedEngine:
    """A primary, which is the engine, and its replica. They change places.

    Args:
        kind: ``redis`` or ``valkey``.
        directory: an empty one. Its path is short, as for ``RedisEngine``.
        moved: is called with the port of the new primary.
    """

    def __init__(self, kind: str, directory: Path, moved: Callable[[int], None]) -> None:
        self._moved = moved
        engines = []
        for name in ("a", "b"):
            (directory / name).mkdir()
            engines.append(RedisEngine(kind, str(directory / name), *SETTINGS))
        self._primary, self._replica = engines

    @property
    def port(self) -> int:
        """The port of the primary."""
        return self._primary.port

    def start(self) -> None:
        self._primary.start()

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self._primary.stop(signal_number)

    def pause(self) -> None:
        self._primary.pause()

    def resume(self) -> None:
        self._primary.resume()

    def command(self, *words: str | bytes | int) -> Any:
        return self._primary.command(*words)

    def start_both(self) -> None:
        """Start both, and return when the replica has what the primary has."""
        self._primary.start()
        self._replica.start()
        self._follow()
        if not self.is_in_sync(SYNC_SECONDS):
            raise RuntimeError("the replica has not followed the primary")

    def stop_both(self) -> None:
        for engine in (self._primary, self._replica):
            engine.stop(signal.SIGKILL)

    def is_in_sync(self, seconds: float) -> bool:
        """Return whether the replica gets what the primary has, within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ours = replication(self._primary)
            theirs = replication(self._replica)
            is_up = theirs.get("master_link_status") == "up" and ours.get("master_replid") == theirs["master_replid"]
            if is_up and int(theirs["slave_repl_offset"]) >= int(ours["master_repl_offset"]):
                return True
            time.sleep(0.05)
        return False

    def fail_over(self) -> None:
        """Kill the primary, and let the replica take its place with all that it was sent."""
        self._primary.stop(signal.SIGKILL)
        while replication(self._replica).get("master_link_status") == "up":
            time.sleep(0.01)
        self._change_places()
        self._replica.start()
        self._follow()

    def fall_behind(self) -> None:
        """Let the replica follow no more. The next ``fail_over()`` loses all that the primary takes from now on."""
        self._replica.command("REPLICAOF", "NO", "ONE")

    def switch_over(self) -> bool:
        """Let the replica take the place of the primary, which goes on as a replica. Return whether it was possible."""
        self._primary.command("CLIENT", "PAUSE", int(SYNC_SECONDS * 1000), "WRITE")
        if not self.is_in_sync(SYNC_SECONDS / 2):
            self._primary.command("CLIENT", "UNPAUSE")
            return False
        self._change_places()
        # Some clients have connected through a proxy just before, and may not be accepted yet.
        for _ in range(5):
            self._replica.command("CLIENT", "KILL", "TYPE", "normal")
            self._replica.command("CLIENT", "KILL", "TYPE", "pubsub")
            time.sleep(0.1)
        self._replica.command("CLIENT", "UNPAUSE")
        self._follow()
        return True

    def _change_places(self) -> None:
        self._primary, self._replica = self._replica, self._primary
        self._primary.command("REPLICAOF", "NO", "ONE")
        self._moved(self._primary.port)

    def _follow(self) -> None:
        self._replica.command("REPLICAOF", "127.0.0.1", self._primary.port)


def replication(engine: RedisEngine) -> dict[str, str]:
    """Return what an engine says of its replication."""
    return dict(re.findall(r"^(\w+):(.*?)\r?$", engine.command("INFO", "replication"), re.MULTILINE))


@contextlib.contextmanager
def replicated_engine(kind: str, moved: Callable[[int], None]) -> Iterator[ReplicatedEngine]:
    """Start an engine and its replica, and stop them at the end of the block."""
    with TemporaryDirectory(prefix="wshub-", ignore_cleanup_errors=True) as directory:
        engine = ReplicatedEngine(kind, Path(directory), moved)
        try:
            engine.start_both()
            yield engine
        finally:
            engine.stop_both()
