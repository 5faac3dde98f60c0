"""NatsBroker passes the checks that every broker passes, with every fault."""

from __future__ import annotations

import asyncio
import re
import signal
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.nats_engine import NatsEngine, nats_engine_of
from tests.support.tcp_proxy import TcpProxy
from wshub.brokers.interface import Broker
from wshub.brokers.nats import NatsBroker
from wshub.brokers.nats_subjects import SubjectNames

check_broker = pytest.importorskip("wshub.testing.check_broker")

SETTINGS = """
authorization {{
    users = [{{
        user: check, password: pw,
        permissions: {{ publish: ["wshub.>", "$JS.API.>"], subscribe: {{ allow: "wshub.>", deny: {deny} }} }}
    }}]
}}
jetstream {{ store_dir: {directory!r} }}
"""


class NatsFaults(check_broker.BrokerFaults):
    """Breaks an engine of its own, and the proxies through which each broker reaches it."""

    def __init__(self, engine: NatsEngine) -> None:
        self.engine = engine
        self.proxies: weakref.WeakKeyDictionary[Broker, TcpProxy] = weakref.WeakKeyDictionary()
        self.all_proxies: list[TcpProxy] = []
        self._denies = False

    def make(self) -> Broker:
        proxy = TcpProxy("127.0.0.1", self.engine.port)
        broker = NatsBroker(f"nats://check:pw@127.0.0.1:{proxy.port}")
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
        self._denies = True
        self.engine.configure(settings(self.engine, deny=f'"{subject_of(channel)}"'))
        self.engine.reload()

    async def forget(self, broker: Broker, channel: str) -> None:
        (connection,) = self.proxies[broker].open_connections()
        pattern = re.escape(subject_of(channel)).replace(r"\*", r"[^ ]+")
        number = re.findall(rf"SUB {pattern}  (\d+)\r\n", connection.to_server.seen.decode())[-1]
        before = connection.to_client.bytes_seen
        connection.send_to_server(b"UNSUB %s\r\nPING\r\n" % number.encode())
        while connection.to_client.bytes_seen == before:
            await asyncio.sleep(0.01)

    async def heal(self) -> None:
        if self._denies:
            self._denies = False
            self.engine.configure(settings(self.engine))
            self.engine.reload()
        if self.engine.process is None:
            self.engine.start()
        self.engine.resume()
        for proxy in self.all_proxies:
            proxy.heal()

    def close(self) -> None:
        for proxy in self.all_proxies:
            proxy.close()
        self.all_proxies.clear()


def settings(engine: NatsEngine, deny: str = "[]") -> str:
    """Return the settings of a server with a user that has the rights that a broker needs."""
    return SETTINGS.format(deny=deny, directory=engine.directory)


def subject_of(channel: str) -> str:
    """Return the subject of a channel of any hub."""
    return "wshub.*." + SubjectNames("wshub", "hub").subject(channel).removeprefix("wshub.hub.")


@pytest.fixture(scope="module", params=["2.9", "current"])
def engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    with nats_engine_of(request.param) as engine:
        engine.configure(settings(engine))
        engine.start()
        yield engine


@pytest.fixture
def faults(engine: NatsEngine) -> Iterator[NatsFaults]:
    faults = NatsFaults(engine)
    yield faults
    faults.close()


# Each engine has one of the loops: all four pairs take twice as long.
@pytest.mark.parametrize(("engine", "run"), [("2.9", "asyncio"), ("current", "uvloop")], indirect=True)
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in check_broker.broker_checks()])
async def test_it_keeps_the_contract(check: Callable[..., Awaitable[None]], faults: NatsFaults) -> None:
    try:
        await check(faults.make, faults)
    except check_broker.CheckNotRunError as error:
        pytest.skip(str(error))
