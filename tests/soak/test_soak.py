"""A quarter of a minute of the soak test, in every test run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SANITIZED = "WSHUB_SANITIZED" in os.environ


@pytest.mark.skipif(SANITIZED, reason="under the sanitizers the clients are too slow to keep up")
@pytest.mark.parametrize("loop", [pytest.param("asyncio", marks=pytest.mark.long), "uvloop"])
def test_nothing_is_lost_and_every_count_agrees_while_everything_comes_and_goes(loop: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "0.25", "--loop", loop],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("soak: pass\n")
