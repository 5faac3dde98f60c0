"""A server without free descriptors answers with 503, logs one line, and serves again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.free_ports import free_port
from tests.support.programs import environment, running_program
from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.wshub_serve import serving

SHORTAGE = "Too many open files"
CLASS = "wshub.uvicorn.protocol:WebSocketProtocol"


def descriptors(process: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{process}/fd")}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def no_descriptors(process: int) -> Iterator[None]:
    """Set the process's limit so that it cannot open descriptors."""
    limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
    used = descriptors(process)
    lowest = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def uvicorn(app: str) -> Iterator[tuple[int, int, Callable[[], str]]]:
    """Run uvicorn with only the protocol class, on its own loop."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--ws", CLASS, "--log-level", "warning"]
    with running_program(command, port=port, env=environment()) as program:
        yield program.process.pid, port, program.end


@contextlib.contextmanager
def wshub(app: str) -> Iterator[tuple[int, int, Callable[[], str]]]:
    with serving(app, "--log-level", "warning") as server:
        yield server.process.pid, server.port, server.end


def first_connection(process: int, port: int) -> socket.socket:
    """Connect, and return when the server has accepted the connection."""
    until(lambda: not sockets_in_use(process, port))
    before = descriptors(process)
    first = socket.create_connection(("127.0.0.1", port), timeout=30)
    until(lambda: len(descriptors(process)) > len(before))
    return first


def sockets_in_use(process: int, port: int) -> bool:
    """Return whether the process still has an open connection to the port."""
    lines = [line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    return any(line[1].endswith(f":{port:04X}") and line[3] in ("01", "08") for line in lines)


async def is_echoed(port: int, path: str) -> None:
    async with connected(f"ws://127.0.0.1:{port}{path}") as client:
        await client.send("back again")
        assert await client.recv() == "back again"


@needs_reactor
@pytest.mark.parametrize("server", [wshub, uvicorn])
@pytest.mark.parametrize("path", ["/plain", "/accept", "/hub/"])
def test_without_descriptors_the_first_websocket_is_refused_and_later_ones_are_served(server, path) -> None:
    app = f"tests.uvicorn.short_of_descriptors:{path.strip('/')}"
    with server(app) as (process, port, end):
        first = first_connection(process, port)
        with no_descriptors(process):
            waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
            first.sendall(REQUEST.replace(b"GET / ", f"GET {path} ".encode()))
            answer = first.recv(12)
        for client in (first, *waiting):
            client.close()
        if answer == b"HTTP/1.1 503":
            for _ in range(3):
                asyncio.run(is_echoed(port, path))
        output = end()
    # The output says why a server gives another answer.
    assert answer == b"HTTP/1.1 503", output
    lines = output.splitlines()
    assert "Traceback" not in output, output
    assert len([line for line in lines if "a hub cannot take its first connection" in line]) == 1, output
    if server is wshub:
        assert len([line for line in lines if SHORTAGE in line]) == 2, output


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("app", ["plain", pytest.param("native", marks=needs_reactor)])
def test_descriptors_that_run_out_while_accepting_are_logged_once(app, tls, certificate) -> None:
    arguments = ["--ssl-certfile", certificate.chain, "--ssl-keyfile", certificate.key] if tls else []
    with serving(f"tests.uvicorn.short_of_descriptors:{app}", "--log-level", "warning", *arguments) as server:
        process = server.process.pid
        first = first_connection(process, server.port)
        with no_descriptors(process):
            waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
            # The server tries to accept again several times.
            time.sleep(2.5)
        until(lambda: len(descriptors(process)) > 50)
        for client in (first, *waiting):
            client.close()
        output = server.end()
    assert output.count(SHORTAGE) == 1, output
    assert "Traceback" not in output, output
