"""The list of all checks, which their modules fill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from wshub.testing.broker_nodes import Nodes

__all__ = ["CHECKS", "Check", "check"]

CheckFunction: TypeAlias = Callable[[Nodes], Awaitable[None]]
Function = TypeVar("Function", bound=CheckFunction)


@dataclass(frozen=True, slots=True)
class Check:
    """A check: what it calls, what a broker promises, and the faults that it needs."""

    name: str
    function: CheckFunction
    promise: str
    needs: tuple[str, ...]


CHECKS: list[Check] = []


def check(*needs: str) -> Callable[[Function], Function]:
    """Add a function to the checks. The first line of its docstring is what a broker promises."""

    def add(function: Function) -> Function:
        promise = (function.__doc__ or "").strip().partition("\n")[0]
        CHECKS.append(Check(function.__name__, function, promise, needs))
        return function

    return add
