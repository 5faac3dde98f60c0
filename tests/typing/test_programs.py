"""Type checkers accept typical programs of users, and find the mistakes that a comment marks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.node_packages import node_modules

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = sorted(str(path) for path in (HERE / "programs").glob("*.py"))


def check(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["MYPYPATH"] = str(ROOT / "src")
    checked = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_strict_mypy_accepts_what_users_write() -> None:
    check(sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *PROGRAMS)


def test_strict_pyright_accepts_what_users_write() -> None:
    modules = node_modules("pyright@1.1.414")
    if isinstance(modules, str):
        pytest.skip(modules)
    check("node", str(modules / "pyright" / "index.js"), "--project", str(HERE), "--pythonpath", sys.executable)
