"""System calls that fail in every state of a connection: see scenarios.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.first_time import FIRST_TIME
from tests.faults.scenarios import SCENARIOS
from tests.support.reactor import needs_reactor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build syscalls.c and return the path of the library to preload."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = tmp_path_factory.mktemp("faults") / "syscalls.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    # Do not preload a library of this process into the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([compiler, *options, "-o", built, HERE / "syscalls.c", "-ldl"], check=True, env=environment)
    return str(built)


@needs_reactor
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_hub_goes_on_when_system_calls_fail(library: str, scenario: str, loop: str) -> None:
    hold(library, "tests.faults.scenarios", scenario, loop)


@needs_reactor
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", FIRST_TIME)
def test_what_fails_the_first_time_leaves_no_trace(library: str, scenario: str, loop: str) -> None:
    hold(library, "tests.faults.first_time", scenario, loop)


def hold(library: str, module: str, scenario: str, loop: str) -> None:
    """Run a scenario in a separate process."""
    preloaded = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), library]))
    result = subprocess.run(
        [sys.executable, "-m", module, scenario, loop],
        env={**os.environ, "LD_PRELOAD": preloaded},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("held\n")
    assert "Traceback" not in result.stdout + result.stderr, result.stdout + result.stderr
    assert "ignored" not in result.stderr, result.stderr
