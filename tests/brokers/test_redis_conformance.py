"""RedisBroker passes the checks that every broker passes, with every fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.redis_engine import ENGINES_AND_LOOPS, RedisEngine, running_engine
from tests.support.redis_faults import CREDENTIALS, USER, ProxiedFaults, ProxySet
from wshub.brokers.interface import Broker
from wshub.brokers.redis import RedisBroker

check_broker = pytest.importorskip("wshub.testing.check_broker")


@pytest.fixture(scope="module", params=["redis", "valkey"])
def engine(request: pytest.FixtureRequest) -> Iterator[RedisEngine]:
    with running_engine(request.param, *USER) as engine:
        yield engine


@pytest.fixture
def faults(engine: RedisEngine) -> Iterator[ProxiedFaults]:
    def make(proxies: ProxySet) -> Broker:
        return RedisBroker(f"redis://{CREDENTIALS}127.0.0.1:{proxies.port(engine.port)}")

    faults = ProxiedFaults([engine], make)
    yield faults
    faults.close()


@pytest.mark.parametrize(("engine", "run"), ENGINES_AND_LOOPS, indirect=True, scope="module")
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in check_broker.broker_checks()])
async def test_it_keeps_the_contract(check: Callable[..., Awaitable[None]], faults: ProxiedFaults) -> None:
    try:
        await check(faults.make, faults)
    except check_broker.CheckNotRunError as error:
        pytest.skip(str(error))
