"""Channel layers over each broker."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.history_nodes import RunningClock
from tests.support.redis_engine import RedisEngine, running_engine
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.django import ChannelLayer, channel_layer, groups, mailboxes

NewLayer = Callable[..., ChannelLayer]


def layer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wshub channel layer"]


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisEngine]:
    with running_engine("redis") as engine:
        yield engine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> RunningClock:
    """The clock of all layers, which stands still unless the test sets it forward."""
    clock = RunningClock()
    clock.hold()
    for module in (channel_layer, groups, mailboxes):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def new_layer(request: pytest.FixtureRequest, socket_directory: Path) -> Iterator[NewLayer]:
    """A function that makes a layer: over the broker that the test names as a parameter, or alone.

    Layers of one test belong together, as those of several processes. At the end each one has left its broker.
    """
    kind = getattr(request, "param", "none")
    layers: list[ChannelLayer] = []
    memory = MemoryEngine()
    places: dict[str, Any] = {"memory": lambda: MemoryBroker(memory), "workers": f"workers:{socket_directory}"}

    def make(**options: Any) -> ChannelLayer:
        place = request.getfixturevalue("redis").url if kind == "redis" else places.get(kind, "none")
        layer = ChannelLayer(place, **{"name": request.node.nodeid, **options})
        layers.append(layer)
        return layer

    before = len(layer_threads())
    yield make
    for layer in layers:
        asyncio.run(layer.close())
    assert len(layer_threads()) == before


everywhere = pytest.mark.parametrize("new_layer", ["none", "workers", "redis"], indirect=True)
between_processes = pytest.mark.parametrize("new_layer", ["workers", "redis"], indirect=True)
joined = pytest.mark.parametrize("new_layer", ["memory", "workers", "redis"], indirect=True)
