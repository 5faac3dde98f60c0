"""``wshub serve``, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Serving:
    """A running ``wshub serve``."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def end(self, signal_number: int = signal.SIGTERM) -> str:
        """Its whole output, once it has ended in order."""
        self.process.send_signal(signal_number)
        output, _ = self.process.communicate(timeout=30)
        return output


@contextlib.contextmanager
def serving(app: str, *arguments: str, host: str = "127.0.0.1", uds: str | None = None) -> Iterator[Serving]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    where = ["--uds", uds] if uds else ["--host", host, "--port", str(port)]
    command = [sys.executable, "-m", "wshub", "serve", app, *where, *arguments]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX if uds else free.family) as probe:
                probe.connect(uds or (host, port))
                break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"it does not listen: {process.communicate()[0]}")
            time.sleep(0.02)
        yield Serving(process, port)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
