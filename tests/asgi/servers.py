"""Real ASGI servers, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.asgi.application:api"

WSHUB = "wshub.app.uvicorn_protocol:WebSocketProtocol"

COMMANDS = {
    "uvicorn, wshub": ["-m", "uvicorn", APPLICATION, "--port", "{port}", "--ws", WSHUB],
    "uvicorn, websockets": ["-m", "uvicorn", APPLICATION, "--port", "{port}", "--ws", "websockets"],
    "uvicorn, sansio": ["-m", "uvicorn", APPLICATION, "--port", "{port}", "--ws", "websockets-sansio"],
    "uvicorn, wsproto": ["-m", "uvicorn", APPLICATION, "--port", "{port}", "--ws", "wsproto"],
    "hypercorn": ["-m", "hypercorn", APPLICATION, "--bind", "127.0.0.1:{port}"],
    "granian": ["-m", "granian", "--interface", "asgi", APPLICATION, "--port", "{port}"],
    "daphne": ["-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", APPLICATION],
}


@contextlib.contextmanager
def serving(name: str) -> Iterator[str]:
    """The address, ``127.0.0.1:port``, of that server; it is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *(part.format(port=port) for part in COMMANDS[name])]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        _wait_until_it_listens(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the server does not listen: {process.communicate()[0]}")
        time.sleep(0.02)
