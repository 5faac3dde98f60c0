"""Programs that tests start and stop, each in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**further: str) -> dict[str, str]:
    """Return the environment for a program that imports ``tests``."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return {**os.environ, "PYTHONPATH": path, **further}


class Program:
    """A running program. A thread reads its output, so that the program never blocks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            self._printed.extend(self.process.stdout)

    def wait(self, timeout: float = 30) -> str:
        """Wait until the program has ended. Returns the whole output of it and its children."""
        self.process.wait(timeout)
        self._reader.join(timeout)
        return "".join(self._printed)

    def end(self, signal_number: int = signal.SIGTERM) -> str:
        """Send a signal to the program, and wait until it has ended. Returns its whole output."""
        self.process.send_signal(signal_number)
        return self.wait()

    def wait_until_it_listens(self, family: socket.AddressFamily, address: tuple[str, int] | str) -> None:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.socket(family) as probe:
                probe.connect(address)
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{self.process.args} does not listen: {self.wait()}")
            time.sleep(0.02)


@contextlib.contextmanager
def running_program(
    command: Sequence[str],
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    uds: str | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Program]:
    """Start a program, and wait until it listens on the port or the Unix socket. Stop it at the end of the block."""
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    program = Program(process)
    try:
        if uds is not None:
            program.wait_until_it_listens(socket.AF_UNIX, uds)
        else:
            program.wait_until_it_listens(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))
        yield program
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            program.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            program.wait(15)


@contextlib.asynccontextmanager
async def running_source(source: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run Python source whose first line of output is its port. Kill it at the end of the block if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
