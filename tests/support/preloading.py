"""Libraries in C that are loaded before the C library of a program, and take the place of some of its functions."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def build_library(source: Path, directory: Path) -> str:
    """Build a library in a directory, and return its path. Skip the test if there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = directory / f"{source.stem}.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    # Do not preload a library of this process into the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([compiler, *options, "-o", built, source, "-ldl"], check=True, env=environment)
    return str(built)


def preloading(library: str) -> dict[str, str]:
    """Return the environment of a program that preloads a library, and those of this process before it."""
    return {**os.environ, "LD_PRELOAD": " ".join(filter(None, [os.environ.get("LD_PRELOAD"), library]))}
