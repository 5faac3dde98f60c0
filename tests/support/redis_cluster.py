"""A cluster of three engines, and more, which tests start, move slots in, fail over and stop."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from binascii import crc_hqx
from collections.abc import Iterator
from pathlib import Path

import hiredis

from tests.support.free_ports import free_port
from tests.support.redis_engine import RedisEngine
from tests.support.redis_sentinel import wait_until

SLOTS = 16384


def slot_of(name: str | bytes) -> int:
    """Return the slot of a name with a hash tag."""
    name = name.encode() if isinstance(name, str) else name
    return crc_hqx(name.partition(b"{")[2].partition(b"}")[0], 0) % SLOTS


class ClusterSetup:
    """Engines that form a cluster. The first ones have the slots.

    Args:
        kind: ``redis`` or ``valkey``.
        directory: an empty directory for their files.
        primaries: the number of engines with slots.
        replicas: the number of engines that each replicate one of those, in order.
        spare: the number of engines without slots.
        settings: further settings of the engines.
    """

    def __init__(self, kind: str, directory: str, primaries: int, replicas: int, spare: int, *settings: str) -> None:
        self.kind = kind
        self.primaries, self.replicas = primaries, replicas
        self.engines: list[RedisEngine] = []
        for number in range(primaries + replicas + spare):
            path = Path(directory) / f"e{number}"
            path.mkdir()
            self.engines.append(
                RedisEngine(
                    kind,
                    str(path),
                    *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", str(free_port())),
                    *("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"),
                    *("--cluster-allow-replica-migration", "no", *settings),
                )
            )

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.engines[0].port},127.0.0.1:{self.engines[1].port}"

    def start(self) -> None:
        """Start the engines, and return when they agree on a cluster that works."""
        for engine in self.engines:
            engine.start()
        size = SLOTS // self.primaries + 1
        for number, engine in enumerate(self.engines):
            # Nodes with the same epoch settle that only after a while.
            engine.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            if number < self.primaries:
                last = min((number + 1) * size, SLOTS) - 1
                engine.command("CLUSTER", "ADDSLOTSRANGE", str(number * size), str(last))
            self.introduce(engine)
        wait_until(self.is_ready)
        for number in range(self.replicas):
            replica = self.engines[self.primaries + number]
            replica.command("CLUSTER", "REPLICATE", self.node_id(self.engines[number]))
        for number in range(self.replicas):
            replica = self.engines[self.primaries + number]
            wait_until(lambda replica=replica: "master_link_status:up" in replica.command("INFO", "replication"))
        wait_until(self.is_ready)

    def introduce(self, engine: RedisEngine) -> None:
        """Have an engine meet the first one."""
        bus = self.engines[0].command_line[self.engines[0].command_line.index("--cluster-port") + 1]
        engine.command("CLUSTER", "MEET", "127.0.0.1", str(self.engines[0].port), bus)

    def is_ready(self) -> bool:
        """Return whether all engines know one another and all slots."""
        for engine in self.engines:
            if engine.process is None:
                continue
            info = engine.command("CLUSTER", "INFO")
            if "cluster_state:ok" not in info or f"cluster_known_nodes:{len(self.engines)}" not in info:
                return False
        return True

    def node_id(self, engine: RedisEngine) -> str:
        return engine.command("CLUSTER", "MYID")

    def owner(self, slot: int) -> RedisEngine:
        """Return the engine that owns a slot, once all engines agree on it."""
        ports: set[int] = set()

        def agree() -> bool:
            ports.clear()
            for engine in self.engines:
                if engine.process is not None:
                    for first, last, primary, *_ in engine.command("CLUSTER", "SLOTS"):
                        if first <= slot <= last:
                            ports.add(primary[1])
            return len(ports) == 1

        wait_until(agree)
        (found,) = [engine for engine in self.engines if engine.port in ports]
        return found

    def move_slot(self, slot: int, target: RedisEngine) -> None:
        """Give a slot to another engine, as ``redis-cli --cluster reshard`` does."""
        source = self.owner(slot)
        if source is target:
            return
        self.begin_move(slot, source, target)
        for key in self.keys(slot, source):
            self.move_key(key, source, target)
        self.end_move(slot, source, target)

    def begin_move(self, slot: int, source: RedisEngine, target: RedisEngine) -> None:
        """Have two engines begin to move a slot. From now on, new keys of it belong to the target."""
        target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.node_id(source))
        source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.node_id(target))

    def keys(self, slot: int, source: RedisEngine) -> list[str]:
        """Return the keys of a slot that an engine has."""
        return source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1000")

    def move_key(self, key: str, source: RedisEngine, target: RedisEngine) -> None:
        """Move a key of a slot whose move has begun."""
        source.command("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")

    def end_move(self, slot: int, source: RedisEngine, target: RedisEngine) -> None:
        """Have the target own the slot, and return when all engines know that."""
        wanted = self.node_id(target)
        target.command("CLUSTER", "SETSLOT", str(slot), "NODE", wanted)
        source.command("CLUSTER", "SETSLOT", str(slot), "NODE", wanted)
        # The target tells the others. An earlier change of theirs could have the same epoch.
        self.owner(slot)

    def failover(self, replica: RedisEngine) -> None:
        """Have a replica take over from its primary, which agrees."""
        # The others may not vote for it at once.
        for _ in range(8):
            with contextlib.suppress(hiredis.ReplyError):
                replica.command("CLUSTER", "FAILOVER")
            with contextlib.suppress(TimeoutError):
                return wait_until(lambda: "role:master" in replica.command("INFO", "replication"), seconds=2)
        raise TimeoutError("the replica does not take over")

    def stop(self) -> None:
        for engine in self.engines:
            engine.stop(signal.SIGKILL)


@contextlib.contextmanager
def running_cluster(
    kind: str, *settings: str, primaries: int = 3, replicas: int = 0, spare: int = 0
) -> Iterator[ClusterSetup]:
    """Start a cluster, and stop it at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="wshub-", ignore_cleanup_errors=True) as directory:
        setup = ClusterSetup(kind, directory, primaries, replicas, spare, *settings)
        try:
            setup.start()
            yield setup
        finally:
            setup.stop()
