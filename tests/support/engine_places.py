"""Engines of every kind that tests start, empty and stop, and brokers that reach them directly or through proxies."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nats_engine import NatsEngine, running_jetstream
from tests.support.redis_cluster import running_cluster
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.redis_faults import ProxySet
from tests.support.redis_sentinel import NAME, SentinelSetup, running_sentinels
from tests.support.tcp_proxy import ProxiedConnection
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.redis import RedisBroker

__all__ = ["ENGINES_TOGETHER", "EnginePlace", "long", "running_place"]

ENGINES_TOGETHER = [
    ("sentinel-redis", "uvloop"),
    ("sentinel-valkey", "asyncio"),
    ("cluster-redis", "uvloop"),
    ("cluster-valkey", "asyncio"),
]
"""Kinds of several engines that work together, with one of the loops each: all pairs take twice as long."""


class EnginePlace:
    """An engine, or several that work together.

    Args:
        kind: see ``running_place()``.
        engines: all that keep data.
        url: returns the URL, given what returns the port under which a broker reaches that of a server.
        is_ready: returns whether a new connection would be of use.
    """

    def __init__(
        self,
        kind: str,
        engines: list[RedisEngine] | list[NatsEngine],
        url: Callable[[Callable[[int], int]], str],
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.kind = kind
        self.engines = engines
        self.is_ready = is_ready
        self._url = url

    @property
    def is_nats(self) -> bool:
        return self.kind.startswith("nats")

    @property
    def in_use(self) -> list[RedisEngine] | list[NatsEngine]:
        """The engines that carry messages."""
        return self.engines

    def broker(self, proxies: ProxySet | None = None, prefix: str = "wshub") -> Broker:
        """Return a broker that reaches all servers directly, or through the proxies."""
        url = self._url((lambda port: port) if proxies is None else proxies.port)
        if self.is_nats:
            return NatsBroker(url, prefix=prefix)
        remap = proxies.remap if proxies is not None and "+" in url else None
        return RedisBroker(url, prefix=prefix, address_remap=remap)

    def receiving(self, proxies: ProxySet) -> list[ProxiedConnection]:
        """Return the connections over which the only broker behind the proxies receives."""
        return proxies.open_connections(b"" if self.is_nats else b":subscriber")

    def command(self, *words: str) -> list[object]:
        """Have each Redis engine carry out a command, and return the replies."""
        return [engine.command(*words) for engine in self.in_use if isinstance(engine, RedisEngine)]

    def lose(self) -> None:
        """Lose all data while the engines run."""
        for engine in self.in_use:
            if isinstance(engine, RedisEngine):
                engine.command("FLUSHALL")
            else:
                engine.delete_streams()

    def kill(self) -> None:
        """End what carries messages, as a crash does."""
        for engine in self.in_use:
            engine.stop(signal.SIGKILL)

    def start(self, *, empty: bool) -> None:
        """Start it again, with or without its data."""
        for engine in self.in_use:
            if empty:
                for kept in ("appendonlydir", "jetstream"):
                    shutil.rmtree(Path(engine.directory) / kept, ignore_errors=True)
            engine.start()


class SentinelPlace(EnginePlace):
    """A primary and a replica that Sentinels watch."""

    def __init__(self, kind: str, setup: SentinelSetup) -> None:
        super().__init__(
            kind,
            setup.engines,
            lambda port: (
                "redis+sentinel://"
                + ",".join(f"127.0.0.1:{port(sentinel.port)}" for sentinel in setup.sentinels)
                + f"/{NAME}"
            ),
        )
        self.setup = setup

    @property
    def in_use(self) -> list[RedisEngine]:
        return [self.setup.primary]


@contextlib.contextmanager
def running_place(kind: str, *settings: str, nats: str = "") -> Iterator[EnginePlace]:
    """Start engines, and stop them at the end of the block.

    Args:
        kind: ``redis``, ``valkey``, ``nats-2.9`` or ``nats-current``, or one of ``sentinel-redis``,
            ``sentinel-valkey``, ``cluster-redis`` and ``cluster-valkey``.
        settings: further settings of Redis and Valkey engines.
        nats: further settings of NATS servers.
    """
    shape, _, program = kind.rpartition("-")
    if shape == "nats":
        with running_jetstream(program, nats) as server:
            yield EnginePlace(kind, [server], lambda port: f"nats://127.0.0.1:{port(server.port)}")
    elif shape == "sentinel":
        with running_sentinels(program, *settings) as sentinels:
            yield SentinelPlace(kind, sentinels)
    elif shape == "cluster":
        with running_cluster(program, *settings) as cluster:
            engines = cluster.engines
            yield EnginePlace(
                kind,
                engines,
                lambda port: "redis+cluster://" + ",".join(f"127.0.0.1:{port(engine.port)}" for engine in engines),
                cluster.is_ready,
            )
    else:
        with running_engine(program, *settings) as engine:
            yield EnginePlace(kind, [engine], lambda port: f"redis://127.0.0.1:{port(engine.port)}")


def long(kind: str, loop: str) -> object:
    """Return a kind and a loop, as an argument of a test that takes too long for every run."""
    return pytest.param(kind, loop, marks=pytest.mark.long)
