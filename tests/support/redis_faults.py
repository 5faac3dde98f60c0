"""Faults of Redis engines, and of the way to them, for the checks of every broker."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence

from tests.support.redis_engine import RedisEngine
from tests.support.tcp_proxy import ProxiedConnection, TcpProxy
from wshub.brokers.interface import Broker
from wshub.testing.check_broker import BrokerFaults

USER = ("--user", "check", "on", ">pw", "allchannels", "allkeys", "+@all")
"""Settings of an engine for the user that brokers log in as."""

CREDENTIALS = "check:pw@"


class ProxySet:
    """The proxies of one broker: one for each server."""

    def __init__(self) -> None:
        self.proxies: dict[int, TcpProxy] = {}
        self._holds_to_client = self._holds_to_server = False
        self._attributes: dict[str, object] = {}

    def port(self, server: int) -> int:
        """Return the port of the proxy to a port of a server."""
        proxy = self.proxies.get(server)
        if proxy is None:
            proxy = self.proxies[server] = TcpProxy("127.0.0.1", server)
            self._apply(proxy)
        return proxy.port

    def remap(self, host: str, port: int) -> tuple[str, int]:
        return host, self.port(port)

    def _apply(self, proxy: TcpProxy) -> None:
        if self._holds_to_client:
            proxy.to_client.clear()
        if self._holds_to_server:
            proxy.to_server.clear()
        for name, value in self._attributes.items():
            setattr(proxy, name, value)

    def configure(self, **attributes: object) -> None:
        """Set attributes of all proxies: ``delay_seconds``, ``piece_bytes`` or ``refuses``."""
        self._attributes |= attributes
        for proxy in self.proxies.values():
            self._apply(proxy)

    @property
    def refused(self) -> int:
        """New connections that were ended at once."""
        return sum(proxy.refused for proxy in self.proxies.values())

    def connections(self, contains: bytes = b"") -> list[ProxiedConnection]:
        """Return all connections whose client has sent these bytes near its beginning, also those that have ended."""
        every = [each for proxy in self.proxies.values() for each in proxy.connections]
        return [each for each in every if contains in each.to_server.seen]

    def open_connections(self, contains: bytes = b"") -> list[ProxiedConnection]:
        """Return the open connections whose client has sent these bytes near its beginning."""
        return [each for proxy in self.proxies.values() for each in proxy.open_connections(contains)]

    def cut(self) -> None:
        for connection in self.open_connections():
            connection.end()

    def hold(self, *, to_client: bool = False, to_server: bool = False) -> None:
        """Hold back bytes, on all connections of the broker."""
        self._holds_to_client |= to_client
        self._holds_to_server |= to_server
        for proxy in self.proxies.values():
            self._apply(proxy)

    def heal(self) -> None:
        self._holds_to_client = self._holds_to_server = False
        self._attributes.pop("refuses", None)
        for proxy in self.proxies.values():
            proxy.heal()

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()


@contextlib.contextmanager
def proxies() -> Iterator[ProxySet]:
    """Yield the proxies of one broker, and close them at the end of the block."""
    found = ProxySet()
    try:
        yield found
    finally:
        found.close()


class ProxiedFaults(BrokerFaults):
    """Breaks engines, and the proxies through which each broker reaches them.

    Args:
        engines: all of them have the user of ``USER``.
        make_broker: returns a broker that reaches everything through these proxies.
        prefix: ``S`` if channels are sharded.
        healed: returns whether a new connection would be of use.
    """

    def __init__(
        self,
        engines: Sequence[RedisEngine],
        make_broker: Callable[[ProxySet], Broker],
        *,
        prefix: str = "",
        healed: Callable[[], bool] = lambda: True,
    ) -> None:
        self.engines = engines
        self._make_broker = make_broker
        self._prefix = prefix
        self._healed = healed
        self._of: weakref.WeakKeyDictionary[Broker, ProxySet] = weakref.WeakKeyDictionary()
        self._all: list[ProxySet] = []

    def make(self) -> Broker:
        proxies = ProxySet()
        for engine in self.engines:
            proxies.port(engine.port)
        broker = self._make_broker(proxies)
        self._of[broker] = proxies
        self._all.append(proxies)
        return broker

    async def stop(self) -> None:
        for engine in self.engines:
            engine.stop(signal.SIGKILL)

    async def cut(self, broker: Broker) -> None:
        self._of[broker].cut()

    async def freeze(self) -> None:
        for engine in self.engines:
            engine.pause()

    async def deafen(self, broker: Broker) -> None:
        self._of[broker].hold(to_client=True)

    async def mute(self, broker: Broker) -> None:
        self._of[broker].hold(to_server=True)

    def _names(self, engine: RedisEngine) -> list[str]:
        return engine.command("PUBSUB", f"{'SHARD' if self._prefix else ''}CHANNELS")

    async def refuse(self, broker: Broker, channel: str) -> None:
        # A user cannot be denied a channel, but it can be allowed all others.
        names = {name for engine in self.engines for name in self._names(engine) if not name.endswith(f":{channel}")}
        for engine in self.engines:
            engine.command("ACL", "SETUSER", "check", "resetchannels", *(f"&{name}" for name in names))

    async def forget(self, broker: Broker, channel: str) -> None:
        (found,) = [
            (engine, name) for engine in self.engines for name in self._names(engine) if name.endswith(f":{channel}")
        ]
        engine, name = found
        (connection,) = self._of[broker].proxies[engine.port].open_connections(b":subscriber")
        verb = f"{self._prefix.lower()}unsubscribe".encode()
        connection.to_client.swallowed = re.compile(
            rb">3\r\n\$\d+\r\n" + verb + rb"\r\n\$\d+\r\n" + re.escape(name.encode()) + rb"\r\n:\d+\r\n"
        )
        numsub = ("PUBSUB", f"{'SHARD' if self._prefix else ''}NUMSUB", name)
        before = engine.command(*numsub)[1]
        connection.send_to_server(b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(verb), verb, len(name), name.encode()))
        while engine.command(*numsub)[1] == before:
            await asyncio.sleep(0.01)

    async def heal(self) -> None:
        for engine in self.engines:
            if engine.process is None:
                engine.start()
            engine.resume()
            engine.command("ACL", "SETUSER", "check", "allchannels")
        for proxies in self._all:
            proxies.heal()
        while not self._healed():
            await asyncio.sleep(0.02)

    def close(self) -> None:
        for proxies in self._all:
            proxies.close()
        self._all.clear()
