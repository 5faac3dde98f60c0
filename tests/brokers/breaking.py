"""The list of brokers that break a promise, which their modules fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wshub.brokers.memory import MemoryBroker

BROKEN: list[Any] = []
"""A broken broker and the name of a check, for each check that must fail."""


def fails(*names: str) -> Callable[[type[MemoryBroker]], type[MemoryBroker]]:
    """Have each of the checks run with the broker. It must fail."""

    def add(broken: type[MemoryBroker]) -> type[MemoryBroker]:
        BROKEN.extend(pytest.param(broken, name, id=f"{broken.__name__}-{name}") for name in names)
        return broken

    return add
