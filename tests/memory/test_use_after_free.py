"""No object is used after it is freed. Each scenario runs in its own process, which a failure may crash."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("wshub.links.epoll_reactor", reason="the native reactor was not built")

from tests.memory import use_after_free

OWN = use_after_free.__name__
SCENARIOS = [
    name
    for name, function in vars(use_after_free).items()
    if inspect.iscoroutinefunction(function) and function.__module__ == OWN and name != "open_client"
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_used_after_it_is_gone(run_program, name) -> None:
    run_program("use_after_free", name)
