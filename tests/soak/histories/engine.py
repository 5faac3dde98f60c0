"""An engine with a replica that takes its place: Sentinels notice that the primary is gone, vote, and promote it."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import hiredis

from tests.support.redis_engine import RedisEngine
from tests.support.redis_sentinel import SentinelSetup, running_sentinels, wait_until

__all__ = ["SYNC_SECONDS", "ReplicatedEngine", "replicated_engine"]

# The disk has all that the engine has answered. With everysec, the engine waits for a slow disk for up to two seconds
# before it writes. If it is killed meanwhile, it loses messages.
SETTINGS = (
    *("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"),
    *("--repl-backlog-size", "64mb"),
)

SENTINELS = 3

SYNC_SECONDS = 20.0
"""Seconds in which the replica must have what the primary has."""

FAILOVER_SECONDS = 60.0
"""Seconds in which the Sentinels must have made the replica the primary, on a busy machine too."""

WATCHFUL, CALM = 1.0, 600.0
"""Seconds without an answer after which Sentinels begin a failover: while one is wanted, and otherwise.

An engine that is restarted or stands still goes on as the primary. If the replica took its place, the engine would lose
what it takes until the Sentinels reach it again.
"""


class ReplicatedEngine:
    """A primary, which is the engine, its replica, and the Sentinels that have them change places.

    Args:
        setup: the engines and the Sentinels, which run.
        moved: is called with the port of the new primary.
    """

    def __init__(self, setup: SentinelSetup, moved: Callable[[int], None]) -> None:
        self.url = setup.url
        """Names the Sentinels."""
        self.ports = [engine.port for engine in setup.engines]
        """The ports of both engines."""
        self._setup = setup
        self._moved = moved
        self._primary, self._replica = setup.engines
        self._setup.notice_after(CALM)

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

    def fail_over(self, *, behind: float = 0.0) -> None:
        """Kill the primary. The Sentinels notice it, and make the replica the primary.

        Args:
            behind: seconds, of which the replica does not get the messages.
        """
        if behind:
            self._replica.pause()
            # The replica gets what was sent to it before. While it is paused, it cannot connect again.
            self._primary.command("CLIENT", "KILL", "TYPE", "replica")
            time.sleep(behind)
        self._primary.stop(signal.SIGKILL)
        if behind:
            self._replica.resume()
        self._promote()
        self._replica.start()
        self._wait_for_roles()

    def fail_over_while_paused(self) -> None:
        """Pause the primary until the Sentinels have made the replica the primary.

        Clients are connected to the old primary until the Sentinels have it replicate the new one. All messages that
        it takes until then are lost.
        """
        old = self._primary
        old.pause()
        try:
            self._promote()
        finally:
            old.resume()
        self._wait_for_roles()

    def switch_over(self) -> bool:
        """Have the Sentinels change the places of both engines. Nothing is lost. Return whether it was possible."""
        old = self._primary
        old.command("CLIENT", "PAUSE", int(3 * SYNC_SECONDS * 1000), "WRITE")
        if not self.is_in_sync(SYNC_SECONDS / 2):
            old.command("CLIENT", "UNPAUSE")
            return False
        self._setup.failover()
        self._change_places()
        # The Sentinels would do the same in a second. A command that waits for the end of the pause must fail then.
        old.command("REPLICAOF", "127.0.0.1", self._primary.port)
        old.command("CLIENT", "UNPAUSE")
        # Some clients have connected just before, and may not be accepted yet.
        for _ in range(5):
            with contextlib.suppress(OSError):
                old.command("CLIENT", "KILL", "TYPE", "normal")
                old.command("CLIENT", "KILL", "TYPE", "pubsub")
            time.sleep(0.1)
        self._wait_for_roles()
        return True

    @contextlib.contextmanager
    def paused_sentinel(self, chosen: float) -> Iterator[None]:
        """Pause one of the Sentinels in the block. ``chosen`` is between 0 and 1."""
        sentinel = self._setup.sentinels[int(chosen * SENTINELS)]
        sentinel.pause()
        try:
            yield
        finally:
            sentinel.resume()

    def _promote(self) -> None:
        """Return when the Sentinels have noticed that the primary does not answer, and have replaced it."""
        self._setup.notice_after(WATCHFUL)
        try:
            self._setup.wait_for_failover(self._primary, FAILOVER_SECONDS)
        finally:
            self._setup.notice_after(CALM)
        self._change_places()

    def _change_places(self) -> None:
        self._primary, self._replica = self._replica, self._primary
        self._moved(self._primary.port)

    def _wait_for_roles(self) -> None:
        """Return when the Sentinels have the old primary replicate the new one."""
        wait_until(lambda: role(self._replica) == "slave" and role(self._primary) == "master", FAILOVER_SECONDS)


def role(engine: RedisEngine) -> str:
    return replication(engine).get("role", "")


def replication(engine: RedisEngine) -> dict[str, str]:
    """Return what an engine says of its replication; nothing while it is loading."""
    try:
        text = engine.command("INFO", "replication")
    except hiredis.ReplyError:
        return {}
    return dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))


@contextlib.contextmanager
def replicated_engine(kind: str, moved: Callable[[int], None]) -> Iterator[ReplicatedEngine]:
    """Start an engine, its replica and the Sentinels, and stop them at the end of the block."""
    with running_sentinels(kind, *SETTINGS, sentinels=SENTINELS, down_after=CALM) as setup:
        engine = ReplicatedEngine(setup, moved)
        if not engine.is_in_sync(SYNC_SECONDS):
            raise RuntimeError("the replica has not followed the primary")
        yield engine
