"""Redis engines that benchmarks run."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from run import free_port, on_core

__all__ = ["engine_at"]

START_SECONDS = 10


@contextlib.contextmanager
def engine_at(directory: str, core: int) -> Iterator[tuple[str, str]]:
    """Run an engine that stores nothing on a core. Yields its URL, and the path of its Unix socket."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    port = free_port()
    path = Path(directory, "engine.sock")
    with on_core(core):
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--unixsocket", str(path)],
            stdout=subprocess.DEVNULL,
            cwd=directory,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server has not started")
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}", str(path)
    finally:
        process.terminate()
        process.wait()
