"""Fixtures and settings that all tests share."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.support.certificate import Certificate
from tests.support.nats_engine import PROGRAMS as NATS_PROGRAMS
from tests.support.nats_engine import NatsEngine, running_nats
from tests.support.redis_engine import PROGRAMS, RedisEngine, running_engine
from tests.support.serving_hub import Clock

# Maximum seconds for a test on a loop. It is far more than any test needs, for the sake of busy machines.
TIMEOUT = 60

LOOPS = ("asyncio", "uvloop")

# A shared machine stalls now and then, so Hypothesis must not report slow draws or examples.
settings.register_profile("wshub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wshub")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The certificate of a client."""
    return Certificate(tmp_path_factory.mktemp("alice"), "ECDSA", subject="/O=Wonderland, Ltd./CN=alice")


@pytest.fixture(scope="session")
def encrypted_key(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The key of the certificate, encrypted with the password "secret"."""
    return certificate.encrypt_key(tmp_path_factory.mktemp("encrypted") / "key.pem", "secret")


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """A directory for Unix sockets. Paths below ``tmp_path`` may be too long for them."""
    with tempfile.TemporaryDirectory(prefix="wshub-test-") as directory:
        yield Path(directory)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session", params=PROGRAMS)
def redis_engine(request: pytest.FixtureRequest) -> Iterator[RedisEngine]:
    """An engine that all tests share: Redis, then Valkey. A test that stops one starts its own."""
    with running_engine(request.param) as engine:
        yield engine


@pytest.fixture
def own_engine(redis_engine: RedisEngine) -> Iterator[RedisEngine]:
    """An engine that the test may stop, of the same kind as the shared one."""
    with running_engine(redis_engine.kind) as engine:
        yield engine


@pytest.fixture(scope="session", params=NATS_PROGRAMS)
def nats_engine(request: pytest.FixtureRequest) -> Iterator[NatsEngine]:
    """A server that all tests share: NATS 2.9, then a current one. A test that stops one starts its own."""
    with running_nats(request.param) as engine:
        yield engine


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    """One of uvicorn's two HTTP parsers."""
    return request.param


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on one of the loops, with a time limit.

    It runs every test that is a coroutine. A test uses it directly to check what is left after the loop.
    """
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    marker = request.node.get_closest_marker("hangs_after")
    limit = marker.args[0] if marker else TIMEOUT

    def run_it(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(limit):
                return await coroutine

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(bounded())

    return run_it


# The folders of the longest tests. A process that got one of these last would end long after the others.
LONGEST = ("packaging", "soak", "conformance", "memory", "faults", "torture")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where one loop is enough, leave the tests of the other one to the long run. Begin with the longest tests."""
    for item in items:
        if item.get_closest_marker("one_loop") is not None and not runs_always(item.name):
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: LONGEST.index(item.path.parent.name) if item.path.parent.name in LONGEST else 99)


def runs_always(name: str) -> bool:
    """Return whether every test run has a test, and not the one of the same name with the other loop."""
    function, _, arguments = name.rstrip("]").partition("[")
    loops = [word for word in arguments.split("-") if word in LOOPS]
    assert len(loops) == 1, f"{name} has the mark one_loop, and no loop"
    others = [word for word in arguments.split("-") if word not in LOOPS]
    return loops[0] == LOOPS[zlib.crc32("-".join((function, *others)).encode()) % 2]


def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> None:
    """Have each ``async def test_...`` use ``run``, so that it runs once on each loop."""
    if inspect.iscoroutinefunction(obj) and collector.istestfunction(obj, name):
        pytest.mark.usefixtures("run")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pyfuncitem.funcargs["run"](pyfuncitem.obj(**arguments))
    return True
