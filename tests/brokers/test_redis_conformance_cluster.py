"""RedisBroker at a cluster of three passes the checks that every broker passes, with every fault."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.redis_cluster import ClusterSetup, running_cluster
from tests.support.redis_faults import CREDENTIALS, USER, ProxiedFaults, ProxySet
from wshub.brokers.interface import Broker
from wshub.brokers.redis import RedisBroker

check_broker = pytest.importorskip("wshub.testing.check_broker")

# The checks take most of a minute. Both engines pass them: see CONTRIBUTING.md for the command.
PAIRS = [("valkey", "asyncio"), ("redis", "uvloop")] if os.environ.get("WSHUB_ALL_ENGINES") else [("valkey", "asyncio")]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def setup(request: pytest.FixtureRequest) -> Iterator[ClusterSetup]:
    with running_cluster(request.param, *USER) as setup:
        yield setup


@pytest.fixture
def faults(setup: ClusterSetup) -> Iterator[ProxiedFaults]:
    def make(proxies: ProxySet) -> Broker:
        places = ",".join(f"127.0.0.1:{proxies.port(engine.port)}" for engine in setup.engines[:2])
        return RedisBroker(f"redis+cluster://{CREDENTIALS}{places}", address_remap=proxies.remap)

    faults = ProxiedFaults(setup.engines, make, prefix="S", healed=setup.is_ready)
    yield faults
    faults.close()


@pytest.mark.parametrize(("setup", "run"), PAIRS, indirect=True, scope="module")
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in check_broker.broker_checks()])
async def test_it_keeps_the_contract(check: Callable[..., Awaitable[None]], faults: ProxiedFaults) -> None:
    try:
        await check(faults.make, faults)
    except check_broker.CheckNotRunError as error:
        pytest.skip(str(error))
