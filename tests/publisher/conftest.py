"""Fixtures of the tests of publishers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.free_ports import free_port
from wshub.brokers.memory import MemoryBroker, MemoryEngine


@pytest.fixture
def directory(socket_directory: Path) -> str:
    return str(socket_directory)


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MemoryEngine:
    """The engine of all publishers that the test makes."""
    engine = MemoryEngine()
    monkeypatch.setattr("wshub.publisher.publishers.broker_from_url", lambda url: MemoryBroker(engine))
    return engine


@pytest.fixture
def use_broker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """A function that has all publishers use brokers of a class."""
    return lambda broker: monkeypatch.setattr(
        "wshub.publisher.publishers.broker_from_url", lambda url: broker(MemoryEngine())
    )
