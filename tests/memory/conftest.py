"""Run a module of this directory as a program, because its scenarios may crash the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 240


@pytest.fixture
def run_program() -> Callable[..., str]:
    """Return a function that runs a module of this directory and returns its output.

    The command is ``python -X faulthandler -m tests.memory.<name> <arguments>``.
    """

    def run(name: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if "WSHUB_SANITIZED" in environment:
            # The interpreter itself leaks tracemalloc's records, and some objects when memory runs out.
            environment["ASAN_OPTIONS"] += ":detect_leaks=0"
        command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", f"tests.memory.{name}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
        if done.returncode != 0:
            pytest.fail(f"the program exited with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done.stdout

    return run
