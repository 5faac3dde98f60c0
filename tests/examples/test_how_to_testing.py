"""The tests of the page on testing, run by pytest as a reader runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.pages import page, program, programs, write_programs
from tests.support.programs import environment


def test_every_test_of_the_page_passes(tmp_path: Path) -> None:
    write_programs("testing.md", tmp_path)
    (tmp_path / "login.py").write_text(program("topics/security.md", "login.py"))
    number = sum(text.count("\ndef test_") for text in programs(page("testing.md")).values())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    result = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert f"{number} passed" in result.stdout, result.stdout + result.stderr
    assert number == 11
