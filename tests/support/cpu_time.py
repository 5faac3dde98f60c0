"""CPU time, for tests that check for linear time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Argument = TypeVar("Argument")


def least_seconds(work: Callable[[Argument], object], arguments: Iterable[Argument]) -> float:
    """Call ``work`` with each argument, and return the CPU time of the fastest call."""
    took = []
    for argument in arguments:
        begun = time.process_time()
        work(argument)
        took.append(time.process_time() - begun)
    return min(took)
