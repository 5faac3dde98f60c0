"""wshub builds from its sdist. The sdist has exactly the necessary files, and the build names what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="the compiler is not what is to be tried")


def build(**environment: str) -> subprocess.CompletedProcess[str]:
    """Begin to build a wheel."""
    return subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel", "--help"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_a_wheel_from_the_sdist_needs_no_isal_and_chats_in_an_empty_environment() -> None:
    result = subprocess.run([ROOT / "scripts" / "wheels", "--quick"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "wheels: pass\n"


def failing_compiler(directory: Path) -> Path:
    compiler = directory / "compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    return compiler


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "failing"])
def test_a_build_without_a_compiler_says_so_in_its_first_line(compiler: str, tmp_path: Path) -> None:
    if compiler == "failing":
        compiler = str(failing_compiler(tmp_path))
    result = build(CC=compiler)
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"wshub needs a C compiler ({compiler}")
    assert "apt-get install gcc" in line


@pytest.mark.parametrize(("header", "name"), [("zlib.h", "zlib"), ("Python.h", "Python")])
def test_a_build_without_a_header_says_so_in_its_first_line(header: str, name: str, tmp_path: Path) -> None:
    (tmp_path / header).write_text('#error "hidden"\n')
    # The compiler finds it first: command-line options come before Python's paths.
    result = build(CFLAGS=f"-I{tmp_path}")
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line.startswith(f"wshub needs the headers of {name} ({header}) to be built.")
    assert "zlib1g-dev python3-dev" in line
