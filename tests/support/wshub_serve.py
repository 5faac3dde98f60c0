"""``wshub serve``, in its own process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.free_ports import free_port
from tests.support.programs import Program, environment, running_program

PATIENT_SUPERVISOR = ("--timeout-worker-healthcheck", "60")
"""Options for tests that replace workers by SIGHUP.

By default uvicorn gives a restart up if a new worker is not ready within 5 s. Tests that kill workers do without them:
uvicorn may wait as long for the answer of a killed worker, and does nothing else meanwhile.
"""


class Serving:
    """A running ``wshub serve``."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    @property
    def process(self) -> subprocess.Popen[str]:
        return self.program.process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def children(self) -> set[int]:
        """Return the processes that it has started: its workers, and what looks after their memory."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def end(self, signal_number: int = signal.SIGTERM) -> str:
        """Stop it with a signal. Returns its whole output."""
        return self.program.end(signal_number)


@contextlib.contextmanager
def serving(app: str, *arguments: str, host: str = "127.0.0.1", uds: str | None = None) -> Iterator[Serving]:
    port = free_port(host)
    where = ["--uds", uds] if uds else ["--host", host, "--port", str(port)]
    command = [sys.executable, "-m", "wshub", "serve", app, *where, *arguments]
    with running_program(command, port=port, host=host, uds=uds, env=environment()) as program:
        yield Serving(program, port)
