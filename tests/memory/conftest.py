"""Runs a module of this directory as a program: what is tested here may bring a process down."""

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
    """Runs ``python -X faulthandler -m tests.memory.<name> <arguments>``; returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if "WSHUB_SANITIZED" in environment:
            # The interpreter itself loses what tracemalloc has noted, and objects of its own where memory fails it.
            environment["ASAN_OPTIONS"] += ":detect_leaks=0"
        command = [sys.executable, "-X", "faulthandler", "-W", "ignore", "-m", f"tests.memory.{name}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
        if done.returncode != 0:
            pytest.fail(f"it ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done.stdout

    return run
