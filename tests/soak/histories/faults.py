"""The faults of the histories' soak test: those of the cluster's, and of the workers and the replica."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable

from tests.soak.cluster.faults import Fault, Faults, all_of, open_connections
from tests.soak.histories.engine import SYNC_SECONDS, ReplicatedEngine
from tests.support.tcp_proxy import ProxiedConnection, TcpProxy

__all__ = ["HistoryFaults"]

CLIENT_NAME = re.compile(rb"wshub:([^:\r]+)")
"""Bytes near the beginning of each connection of a worker to the engine. They have its id."""


class HistoryFaults(Faults):
    """Draws one fault after the other.

    Args:
        engine, proxies, longest, chance: as for ``Faults``. Node 0 stands for the workers, node 1 for the publisher.
        server: the process id of ``wshub serve``.
        workers: returns the process ids of the workers.
        loses: whether a replica also takes the place of the engine without messages that the engine has taken.
    """

    def __init__(
        self,
        engine: ReplicatedEngine,
        proxies: list[list[TcpProxy]],
        longest: float,
        chance: random.Random,
        server: int,
        workers: Callable[[], set[int]],
        *,
        loses: bool = False,
    ) -> None:
        super().__init__(engine, proxies, longest, chance)
        self.is_noticed: Callable[[], bool] = lambda: True
        """Whether everything that has to notice the last fault has done so."""
        self.losses = 0
        """How often the engine has lost messages that it had taken."""
        self._replicated = engine
        self._server = server
        self._workers = workers
        self._kinds = [
            self._fail_over,
            self._black_hole,
            self._replace_workers,
            self._restart,
            self._kill_worker,
            self._partition,
            self._kill,
            self._kill_subscribers,
            self._switch_over,
            self._restart_without_a_sentinel,
            *([self._fail_over_with_losses, self._fail_over_while_paused] if loses else []),
            self._lose_connection,
            self._cut_off_worker,
            self._pause,
            self._reset,
            self._empty,
        ]

    def inject(self) -> Fault:
        """Let something fail and mend it. Return what it was."""
        self.is_noticed = lambda: True
        return super().inject()

    def _fail_over(self) -> Fault:
        if not self._replicated.is_in_sync(SYNC_SECONDS):
            return Fault("the replica was not ready, so nothing was failed over")
        self._replicated.fail_over()
        return Fault("the engine was killed, and the Sentinels have made its replica the primary")

    def _fail_over_with_losses(self) -> Fault:
        if not self._replicated.is_in_sync(SYNC_SECONDS):
            return Fault("the replica was not ready, so nothing was failed over")
        self.losses += 1
        seconds = self._chance.uniform(0.2, 2)
        self._replicated.fail_over(behind=seconds)
        return Fault(f"the engine was killed, and the replica in its place lacks the last {seconds:.1f} s")

    def _fail_over_while_paused(self) -> Fault:
        if not self._replicated.is_in_sync(SYNC_SECONDS):
            return Fault("the replica was not ready, so nothing was failed over")
        self.losses += 1
        self._replicated.fail_over_while_paused()
        return Fault("the engine stood still until its replica was the primary, and went on")

    def _switch_over(self) -> Fault:
        if not self._replicated.switch_over():
            return Fault("the replica was not ready, so nothing was switched over")
        return Fault("the Sentinels have had the engine and its replica change places")

    def _restart_without_a_sentinel(self) -> Fault:
        with self._replicated.paused_sentinel(self._chance.random()):
            fault = self._restart()
            time.sleep(self._duration() / 4)
        return Fault(f"{fault.text}; meanwhile a Sentinel did nothing")

    def _empty(self) -> Fault:
        self.losses += 1
        self._replicated.command("FLUSHALL")
        return Fault("the engine has lost everything that it kept")

    def _replace_workers(self) -> Fault:
        before = self._workers()
        os.kill(self._server, signal.SIGHUP)
        self.is_noticed = lambda: not before & self._workers()
        return Fault(f"the {len(before)} workers were replaced")

    def _kill_worker(self) -> Fault:
        victim = self._chance.choice(sorted(self._workers()))
        os.kill(victim, signal.SIGKILL)
        self.is_noticed = lambda: victim not in self._workers()
        return Fault("a worker was killed")

    def _lose_connection(self) -> Fault:
        fault = super()._lose_connection()
        self._wait_for_end_of(
            [
                connection
                for connection in open_connections(all_of(self._proxies))
                if connection.to_client.is_black_hole or connection.to_server.is_black_hole
            ]
        )
        return Fault(fault.text)

    def _cut_off_worker(self) -> Fault:
        """Let all bytes of one worker vanish for ever. The others go on."""
        by_worker: dict[bytes, list[ProxiedConnection]] = {}
        for connection in open_connections(self._proxies[0]):
            if found := CLIENT_NAME.search(connection.to_server.seen):
                by_worker.setdefault(found[1], []).append(connection)
        cut = by_worker[self._chance.choice(sorted(by_worker))] if by_worker else []
        for connection in cut:
            connection.to_client.is_black_hole = connection.to_server.is_black_hole = True
        self._wait_for_end_of(cut)
        return Fault(f"bytes of the {len(cut)} connections of one worker vanish")

    def _wait_for_end_of(self, connections: list[ProxiedConnection]) -> None:
        self.is_noticed = lambda: not any(connection.is_open for connection in connections)
