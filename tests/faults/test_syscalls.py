"""System calls that fail in every state of a connection: see scenarios.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.first_time import FIRST_TIME
from tests.faults.scenarios import SCENARIOS
from tests.support.preloading import build_library, preloading
from tests.support.reactor import needs_reactor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build syscalls.c and return the path of the library to preload."""
    return build_library(HERE / "syscalls.c", tmp_path_factory.mktemp("faults"))


@pytest.mark.one_loop
@needs_reactor
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_hub_goes_on_when_system_calls_fail(library: str, scenario: str, loop: str) -> None:
    hold(library, "tests.faults.scenarios", scenario, loop)


@pytest.mark.one_loop
@needs_reactor
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", FIRST_TIME)
def test_what_fails_the_first_time_leaves_no_trace(library: str, scenario: str, loop: str) -> None:
    hold(library, "tests.faults.first_time", scenario, loop)


def hold(library: str, module: str, scenario: str, loop: str) -> None:
    """Run a scenario in a separate process."""
    result = subprocess.run(
        [sys.executable, "-m", module, scenario, loop],
        env=preloading(library),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("held\n")
    assert "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
    assert "ignored" not in result.stderr, result.stderr
