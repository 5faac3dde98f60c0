"""RedisBroker passes the checks that every broker passes, with every fault."""

from __future__ import annotations

import asyncio
import re
import signal
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.tcp_proxy import TcpProxy
from wshub.brokers.interface import Broker
from wshub.brokers.redis import RedisBroker

check_broker = pytest.importorskip("wshub.testing.check_broker")

USER = "user check on >pw allchannels allkeys +@all"


class RedisFaults(check_broker.BrokerFaults):
    """Breaks an engine of its own, and the proxies through which each broker reaches it."""

    def __init__(self, engine: RedisEngine) -> None:
        self.engine = engine
        self.proxies: weakref.WeakKeyDictionary[Broker, TcpProxy] = weakref.WeakKeyDictionary()
        self.all_proxies: list[TcpProxy] = []

    def make(self) -> Broker:
        proxy = TcpProxy("127.0.0.1", self.engine.port)
        broker = RedisBroker(f"redis://check:pw@127.0.0.1:{proxy.port}")
        self.proxies[broker] = proxy
        self.all_proxies.append(proxy)
        return broker

    async def stop(self) -> None:
        self.engine.stop(signal.SIGKILL)

    async def cut(self, broker: Broker) -> None:
        for connection in self.proxies[broker].open_connections():
            connection.end()

    async def freeze(self) -> None:
        self.engine.pause()

    async def deafen(self, broker: Broker) -> None:
        self.proxies[broker].to_client.clear()

    async def mute(self, broker: Broker) -> None:
        self.proxies[broker].to_server.clear()

    async def refuse(self, broker: Broker, channel: str) -> None:
        # A user cannot be denied a channel, but it can be allowed all others.
        names = self.engine.command("PUBSUB", "CHANNELS")
        others = [name for name in names if not name.endswith(f":{channel}")]
        self.engine.command("ACL", "SETUSER", "check", "resetchannels", *(f"&{name}" for name in others))

    async def forget(self, broker: Broker, channel: str) -> None:
        (name,) = [name for name in self.engine.command("PUBSUB", "CHANNELS") if name.endswith(f":{channel}")]
        (connection,) = self.proxies[broker].open_connections(b":subscriber")
        connection.to_client.swallowed = re.compile(
            rb">3\r\n\$11\r\nunsubscribe\r\n\$\d+\r\n" + re.escape(name.encode()) + rb"\r\n:\d+\r\n"
        )
        connection.send_to_server(b"*2\r\n$11\r\nUNSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(name), name.encode()))
        while self.engine.command("PUBSUB", "NUMSUB", name)[1]:
            await asyncio.sleep(0.01)

    async def heal(self) -> None:
        if self.engine.process is None:
            self.engine.start()
        self.engine.resume()
        self.engine.command("ACL", "SETUSER", "check", "allchannels")
        for proxy in self.all_proxies:
            proxy.heal()

    def close(self) -> None:
        for proxy in self.all_proxies:
            proxy.close()
        self.all_proxies.clear()


@pytest.fixture(scope="module", params=["redis", "valkey"])
def engine(request: pytest.FixtureRequest) -> Iterator[RedisEngine]:
    with running_engine(request.param, *("--user", *USER.split()[1:])) as engine:
        yield engine


@pytest.fixture
def faults(engine: RedisEngine) -> Iterator[RedisFaults]:
    faults = RedisFaults(engine)
    yield faults
    faults.close()


# Each engine has one of the loops: all four pairs take twice as long.
@pytest.mark.parametrize(("engine", "run"), [("redis", "asyncio"), ("valkey", "uvloop")], indirect=True)
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in check_broker.broker_checks()])
async def test_it_keeps_the_contract(check: Callable[..., Awaitable[None]], faults: RedisFaults) -> None:
    try:
        await check(faults.make, faults)
    except check_broker.CheckNotRunError as error:
        pytest.skip(str(error))
