"""The Autobahn test suite against the echo example, in a selection quick enough for every test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXIT_NO_PYTHON27 = 77

# The runner bounds itself, its one-time set-up included; the margin is for it to stop what it started.
TIMEOUT = 300
MARGIN = 60


def test_autobahn_quick() -> None:
    """Every case gives what tests/conformance/autobahn-expected.json allows.

    The suite needs a Python 2.7, which few machines have: without one the runner says so and this is skipped.
    """
    command = [sys.executable, str(ROOT / "scripts" / "autobahn"), "--quick", "--timeout", str(TIMEOUT)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as runner:
        try:
            output, _ = runner.communicate(timeout=TIMEOUT + MARGIN)
        except subprocess.TimeoutExpired:
            runner.terminate()  # not kill: on SIGTERM it stops its server
            output, _ = runner.communicate(timeout=MARGIN)
        finally:
            runner.kill()
    if runner.returncode == EXIT_NO_PYTHON27:
        pytest.skip(output.strip())
    assert runner.returncode == 0, f"scripts/autobahn --quick exited with {runner.returncode}:\n{output}"
