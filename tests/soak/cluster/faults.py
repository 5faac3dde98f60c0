"""The faults of the cluster's soak test: of the engine, and of the connections of the nodes."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tests.support.nats_engine import NatsEngine
from tests.support.tcp_proxy import ProxiedConnection, TcpProxy

__all__ = ["Engine", "Fault", "Faults", "all_of", "open_connections"]

SUBSCRIBER = re.compile(rb"SUBSCRIBE|SUB ")
"""Bytes near the beginning of each connection that subscribes, to Redis or to NATS."""


class Engine(Protocol):
    """A Redis or Valkey engine."""

    def start(self) -> None: ...

    def stop(self, signal_number: int = ...) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def command(self, *words: str | bytes | int) -> Any: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that has failed."""

    text: str
    kind: str = ""
    """The name of the kind."""
    unnoticed_by: int | None = None
    """The number of a node that has yet to notice it, and to connect again."""


class Faults:
    """Draws one fault after the other.

    Args:
        engine: that all nodes use.
        proxies: the ways of each node to the engine.
        longest: seconds that a fault lasts at most.
        chance: the random numbers.
    """

    def __init__(
        self, engine: Engine | NatsEngine, proxies: list[list[TcpProxy]], longest: float, chance: random.Random
    ) -> None:
        self._engine = engine
        self._proxies = proxies
        self._longest = longest
        self._chance = chance
        self._kinds: list[Callable[[], Fault]] = [
            self._restart,
            self._black_hole,
            self._kill,
            self._kill_subscribers,
            self._lose_connection,
            self._reset,
            self._partition,
            self._pause,
        ]
        self._next: list[Callable[[], Fault]] = []

    def inject(self) -> Fault:
        """Let something fail and mend it. Return what it was. Each kind comes once before any comes again."""
        if not self._next:
            self._next = list(reversed(self._kinds))
            self._kinds = self._chance.sample(self._kinds, len(self._kinds))
        inject = self._next.pop()
        return replace(inject(), kind=inject.__name__.strip("_").replace("_", " "))

    def _duration(self) -> float:
        return self._chance.uniform(0, self._longest)

    def _one(self) -> tuple[int, list[TcpProxy]]:
        """Return a node, and its ways to the engine."""
        number = self._chance.randrange(len(self._proxies))
        return number, self._proxies[number]

    def _restart(self) -> Fault:
        return self._stop_and_start(signal.SIGTERM, "stopped")

    def _kill(self) -> Fault:
        return self._stop_and_start(signal.SIGKILL, "killed")

    def _stop_and_start(self, signal_number: int, word: str) -> Fault:
        seconds = self._duration() / 4
        self._engine.stop(signal_number)
        time.sleep(seconds)
        self._engine.start()
        return Fault(f"the engine was {word}, and started after {seconds:.1f} s")

    def _pause(self) -> Fault:
        seconds = self._duration()
        self._engine.pause()
        time.sleep(seconds)
        self._engine.resume()
        return Fault(f"the engine did nothing for {seconds:.1f} s")

    def _kill_subscribers(self) -> Fault:
        if isinstance(self._engine, NatsEngine):
            return self._reset()
        return Fault(f"the engine ended {self._engine.command('CLIENT', 'KILL', 'TYPE', 'pubsub')} subscribers")

    def _black_hole(self) -> Fault:
        number, proxies = self._one()
        directions = self._chance.choice([("to the engine",), ("to the node",), ("to the engine", "to the node")])
        seconds = self._hold(proxies, directions)
        return Fault(f"nothing passed from node {number} {' and '.join(directions)} for {seconds:.1f} s")

    def _partition(self) -> Fault:
        seconds = self._hold(all_of(self._proxies), ("to the engine", "to the node"))
        return Fault(f"nothing passed between the engine and any node for {seconds:.1f} s")

    def _hold(self, proxies: list[TcpProxy], directions: tuple[str, ...]) -> float:
        """Hold back what passes through the proxies, for some seconds. Return how many."""
        seconds = self._duration()
        for proxy in proxies:
            if "to the engine" in directions:
                proxy.to_server.clear()
            if "to the node" in directions:
                proxy.to_client.clear()
        time.sleep(seconds)
        for proxy in proxies:
            proxy.heal()
        return seconds

    def _lose_connection(self) -> Fault:
        """Let the bytes of one connection vanish for ever: the node must notice, and make another one."""
        number, proxies = self._one()
        # With NATS, a node has one connection for both.
        subscribes = isinstance(self._engine, NatsEngine) or self._chance.random() < 0.5
        to_node = self._chance.random() < 0.5
        for connection in open_connections(proxies):
            if (SUBSCRIBER.search(connection.to_server.seen) is not None) == subscribes:
                direction = connection.to_client if to_node else connection.to_server
                direction.is_black_hole = True
        which = "subscriber" if subscribes else "publisher"
        way = "to the node" if to_node else "to the engine"
        return Fault(f"bytes of the {which} of node {number} vanish on the way {way}", unnoticed_by=number)

    def _reset(self) -> Fault:
        number, proxies = self._one()
        connections = open_connections(proxies)
        for connection in connections:
            connection.reset()
        return Fault(f"{len(connections)} connections of node {number} were reset")


def all_of(proxies: list[list[TcpProxy]]) -> list[TcpProxy]:
    return [proxy for ways in proxies for proxy in ways]


def open_connections(proxies: list[TcpProxy]) -> list[ProxiedConnection]:
    return [connection for proxy in proxies for connection in proxy.open_connections()]
