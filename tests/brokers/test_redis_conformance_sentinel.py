"""RedisBroker behind Sentinels passes the checks that every broker passes, with every fault."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.redis_faults import CREDENTIALS, USER, ProxiedFaults, ProxySet
from tests.support.redis_sentinel import NAME, SentinelSetup, running_sentinels
from wshub.brokers.interface import Broker
from wshub.brokers.redis import RedisBroker

check_broker = pytest.importorskip("wshub.testing.check_broker")

# The checks take most of a minute. Both engines pass them: see CONTRIBUTING.md for the command.
PAIRS = [("redis", "uvloop"), ("valkey", "asyncio")] if os.environ.get("WSHUB_ALL_ENGINES") else [("redis", "uvloop")]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def setup(request: pytest.FixtureRequest) -> Iterator[SentinelSetup]:
    with running_sentinels(request.param, *USER) as setup:
        yield setup


@pytest.fixture
def faults(setup: SentinelSetup) -> Iterator[ProxiedFaults]:
    def make(proxies: ProxySet) -> Broker:
        places = ",".join(f"127.0.0.1:{proxies.port(sentinel.port)}" for sentinel in setup.sentinels)
        return RedisBroker(f"redis+sentinel://{CREDENTIALS}{places}/{NAME}", address_remap=proxies.remap)

    faults = ProxiedFaults(setup.engines, make)
    yield faults
    faults.close()


@pytest.mark.parametrize(("setup", "run"), PAIRS, indirect=True, scope="module")
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in check_broker.broker_checks()])
async def test_it_keeps_the_contract(check: Callable[..., Awaitable[None]], faults: ProxiedFaults) -> None:
    try:
        await check(faults.make, faults)
    except check_broker.CheckNotRunError as error:
        pytest.skip(str(error))
