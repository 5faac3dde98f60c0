"""Real ASGI servers, each in its own process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.free_ports import free_port
from tests.support.programs import ROOT, environment, running_program

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
    """A running server and its address, ``127.0.0.1:port``."""

    name: str
    address: str
    process: subprocess.Popen[str]


def variables_of(name: str) -> dict[str, str]:
    """Return the environment of a server. Under the sanitizers, daphne's cryptography leaks when it is imported."""
    variables = environment()
    if name == "daphne" and "WSHUB_SANITIZED" in variables:
        variables["ASAN_OPTIONS"] = variables["ASAN_OPTIONS"].replace("detect_leaks=1", "detect_leaks=0")
    return variables


@contextlib.contextmanager
def serving(name: str, application: str = APPLICATION) -> Iterator[Server]:
    """Run the named server until the end of the block."""
    port = free_port()
    command = [sys.executable, *(part.format(port=port, application=application) for part in COMMANDS[name])]
    with running_program(command, port=port, env=variables_of(name), cwd=ROOT) as program:
        yield Server(name, f"127.0.0.1:{port}", program.process)
