"""Channels' own tests of its layer in memory, which ``upstream/`` has as they are, with wshub's layer in its place."""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from tests.django.conftest import NewLayer
from wshub.django import ChannelLayer

SUITE = Path(__file__).with_name("upstream") / "test_inmemorychannel.py.txt"


class Channels(dict[str, deque[Any]]):
    """The channels in which messages wait, as the tests look at them."""

    def __init__(self, layer: ChannelLayer) -> None:
        self._mailboxes = layer._process().mailboxes._mailboxes
        for name, mailbox in self._mailboxes.items():
            if mailbox.messages:
                self[name] = deque(message.payload for message in mailbox.messages)

    def __delitem__(self, name: str) -> None:
        self.pop(name, None)
        self._mailboxes.pop(name, None)


@pytest.fixture
def suite(new_layer: NewLayer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the suite. Its layers are wshub's."""
    monkeypatch.setattr(ChannelLayer, "channels", property(Channels), raising=False)
    names: dict[str, Any] = {"__name__": "suite"}
    with monkeypatch.context() as patches:
        # Its marks and its fixture are for another plugin.
        marks = types.SimpleNamespace(asyncio=lambda test: test)
        stand_in: Any = types.SimpleNamespace(mark=marks, fixture=lambda: lambda make: make, raises=pytest.raises)
        patches.setitem(sys.modules, "pytest", stand_in)
        timeouts: Any = types.SimpleNamespace(timeout=asyncio.timeout)
        patches.setitem(sys.modules, "async_timeout", timeouts)
        # On a busy machine a message may wait for more than 0.1 s. Times may be short by a millisecond.
        text = SUITE.read_text().replace("expiry=0.1", "expiry=1").replace("asyncio.sleep(0.1)", "asyncio.sleep(2)")
        # Channels' layer removes what has expired at the next receive(), wshub's already at the next send().
        text = text.replace("assert len(channel_layer.channels) == 2", "assert len(channel_layer.channels) == 1")
        exec(compile(text, SUITE, "exec"), names)
    names["InMemoryChannelLayer"] = new_layer
    return names


TESTS = [line.split("(")[0].split()[-1] for line in SUITE.read_text().splitlines() if line.startswith("async def test")]


@pytest.mark.parametrize("new_layer", ["memory", "redis"], indirect=True)
@pytest.mark.parametrize("name", TESTS)
async def test_the_suite_of_channels(name: str, suite: dict[str, Any], new_layer: NewLayer) -> None:
    test = suite[name]
    if not inspect.signature(test).parameters:
        await test()
        return
    # As its fixture makes it.
    layer = new_layer(capacity=3)
    await test(layer)
    await layer.flush()
    await layer.close()


def test_the_suite_is_the_whole_of_it() -> None:
    assert len(TESTS) == 10
