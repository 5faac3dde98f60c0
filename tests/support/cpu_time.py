"""CPU time, for the tests of what takes no more than linear time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

Argument = TypeVar("Argument")


def least_seconds(work: Callable[[Argument], object], arguments: Iterable[Argument]) -> float:
    """The CPU time of the fastest of some calls, each of which has another argument, made before it."""
    took = []
    for argument in arguments:
        begun = time.process_time()
        work(argument)
        took.append(time.process_time() - begun)
    return min(took)
