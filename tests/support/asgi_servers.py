"""Real ASGI servers, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.support.asgi_application:api"

WSHUB = "wshub.uvicorn.protocol:WebSocketProtocol"

COMMANDS = {
    "wshub serve": ["-m", "wshub", "serve", "{application}", "--port", "{port}"],
    "uvicorn, wshub": ["-m", "uvicorn", "{application}", "--port", "{port}", "--ws", WSHUB],
    "uvicorn, websockets": ["-m", "uvicorn", "{application}", "--port", "{port}", "--ws", "websockets"],
    "uvicorn, sansio": ["-m", "uvicorn", "{application}", "--port", "{port}", "--ws", "websockets-sansio"],
    "uvicorn, wsproto": ["-m", "uvicorn", "{application}", "--port", "{port}", "--ws", "wsproto"],
    "hypercorn": ["-m", "hypercorn", "{application}", "--bind", "127.0.0.1:{port}"],
    "granian": ["-m", "granian", "--interface", "asgi", "{application}", "--port", "{port}"],
    "daphne": ["-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "{application}"],
}


class Server(NamedTuple):
    """A server that runs, and its address, ``127.0.0.1:port``."""

    name: str
    address: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(name: str, application: str = APPLICATION) -> Iterator[Server]:
    """That server; it is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *(part.format(port=port, application=application) for part in COMMANDS[name])]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = os.environ | {"PYTHONPATH": path}
    # A pipe that nobody reads would stop a server that has much to log.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_it_listens(process, port, output)
            yield Server(name, f"127.0.0.1:{port}", process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, output: IO[str]) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            output.seek(0)
            raise RuntimeError(f"the server does not listen: {output.read()}")
        time.sleep(0.02)
