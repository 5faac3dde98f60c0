"""A round of the torture test in every test run, and a check that it finds faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.torture.chaos import FAULTS
from tests.torture.plan import draw_plan

SEED = 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.torture", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def round_that_serves(server: str, *, restarts: bool = False) -> str:
    """Return the number of the first round with that server."""
    for number in range(1000):
        plan = draw_plan(SEED, number)
        if plan["server"] == server and bool(plan["restarts"]) == restarts:
            return str(number)
    raise AssertionError("no such round is drawn")


@pytest.mark.parametrize(
    ("server", "restarts"),
    [
        ("hub", True),
        pytest.param("fastapi", False, marks=pytest.mark.long),
        pytest.param("app", False, marks=pytest.mark.long),
    ],
)
def test_everything_acts_at_random_and_every_message_comes_in_order(server: str, restarts: bool) -> None:
    result = run("1", str(SEED), "--round", "4", "--first", round_that_serves(server, restarts=restarts))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("torture: pass\n")


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="the fault is not in native code")
@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_the_torture_notices_what_goes_wrong(fault: str) -> None:
    result = run("1", str(SEED), "--round", "4", "--first", round_that_serves("hub"), "--fault", fault)
    assert result.returncode == 1
    assert result.stdout.endswith("torture: FAIL\n")
    words = {"skip": "some are missing", "repeat": "came after number", "damage": "DamagedError"}
    assert words[fault] in result.stdout
