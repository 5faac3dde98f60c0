"""The Autobahn test suite against the echo example. The selection is quick enough for every test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXIT_NO_PYTHON27 = 77

# The runner limits its own time, set-up included. The margin lets it stop the processes that it started.
TIMEOUT = 300
MARGIN = 60


def test_autobahn_quick() -> None:
    """The result of every case is one that tests/conformance/autobahn-expected.json allows.

    The suite needs Python 2.7, which few machines have. Without it the runner says so, and this test is skipped.
    """
    command = [sys.executable, str(ROOT / "scripts" / "autobahn"), "--quick", "--timeout", str(TIMEOUT)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as runner:
        try:
            output, _ = runner.communicate(timeout=TIMEOUT + MARGIN)
        except subprocess.TimeoutExpired:
            runner.terminate()  # not kill(): on SIGTERM it stops its server
            output, _ = runner.communicate(timeout=MARGIN)
        finally:
            runner.kill()
    if runner.returncode == EXIT_NO_PYTHON27:
        pytest.skip(output.strip())
    assert runner.returncode == 0, f"scripts/autobahn --quick exited with {runner.returncode}:\n{output}"
