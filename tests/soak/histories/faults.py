"""The faults of the histories' soak test: those of the cluster's, and of the workers and the replica."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

from tests.soak.cluster.faults import Fault, Faults, all_of, open_connections
from tests.soak.histories.engine import SYNC_SECONDS, ReplicatedEngine
from tests.support.tcp_proxy import TcpProxy

__all__ = ["HistoryFaults"]


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
            *([self._fail_over_with_losses, self._fail_over_while_paused] if loses else []),
            self._lose_connection,
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
        lost = [
            connection
            for connection in open_connections(all_of(self._proxies))
            if connection.to_client.is_black_hole or connection.to_server.is_black_hole
        ]
        self.is_noticed = lambda: not any(connection.is_open for connection in lost)
        return Fault(fault.text)
