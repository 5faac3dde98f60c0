"""Each hub of an application joins the other nodes before its worker accepts, and leaves them when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.free_ports import free_port
from tests.support.programs import Program, environment, running_program

# Nobody connects to its hubs. Of the second one, no server can know from the routes that it is there.
PROGRAM = """
import contextlib

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from uvicorn_worker import UvicornWorker

from wshub import Hub

chat = Hub(name="chat")
games = Hub(name="games")


class Worker(UvicornWorker):
    CONFIG_KWARGS = {"ws": "wshub.uvicorn.protocol:WebSocketProtocol"}


async def serve(connection):
    async for message in connection:
        pass


async def play(websocket):
    await serve(await games.accept(websocket))


@contextlib.asynccontextmanager
async def enter(app):
    async with chat, games:
        yield


def home(request):
    return PlainTextResponse("hello")


app = Starlette(
    routes=[Route("/", home), WebSocketRoute("/chat", chat.asgi(serve)), WebSocketRoute("/games", play)],
    lifespan=None,
)
"""

ENTERING_PROGRAM = PROGRAM.replace("lifespan=None", "lifespan=enter")

FAILING_PROGRAM = PROGRAM.replace("lifespan=None", "lifespan=lambda app: 1 / 0")

APP_PROGRAM = """
from wshub.app import App

app = App()
app.enable_websocket()


@app.get("/")
def home(ctx):
    ctx.response.send("hello")
"""

HUB_PROGRAM = """
import asyncio
import sys

from wshub import EventHandler, Hub

chat, games = Hub(name="chat"), Hub(name="games")


async def main():
    port = int(sys.argv[1])
    async with games.serve("127.0.0.1", 0, EventHandler()) as other:
        async with chat.serve("127.0.0.1", port, EventHandler(), health_path="/") as server:
            await asyncio.gather(server.serve_forever(), other.serve_forever())


asyncio.run(main())
"""

WSHUB = "-m uvicorn program:app --port {port} --ws wshub.uvicorn.protocol:WebSocketProtocol"

# The program, the command, and the number of hubs.
WAYS = {
    "wshub serve": (PROGRAM, "-m wshub serve program:app --port {port}", 2),
    "uvicorn": (PROGRAM, WSHUB, 2),
    "gunicorn": (PROGRAM, "-m gunicorn program:app --bind 127.0.0.1:{port} --worker-class program.Worker", 2),
    "Hub.serve": (HUB_PROGRAM, "program.py {port}", 2),
    "lifespan on hypercorn": (ENTERING_PROGRAM, "-m hypercorn program:app --bind 127.0.0.1:{port}", 2),
    "App on hypercorn": (APP_PROGRAM, "-m hypercorn program:app --bind 127.0.0.1:{port}", 1),
}

# A server has the loop of its own choice.
pytestmark = pytest.mark.parametrize("run", ["asyncio"], indirect=True)

reactors = pytest.mark.parametrize("reactor", ["1", "0"], ids=["reactor", "transports"])


@contextlib.contextmanager
def running(directory: Path, program: str, command: str, port: int, **variables: str) -> Iterator[Program]:
    (directory / "program.py").write_text(program)
    arguments = [sys.executable, *command.format(port=port).split()]
    with running_program(arguments, port=port, env=environment(**variables), cwd=directory) as running:
        yield running


def answer_of(port: int, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        return response.read().decode()


def sockets_of(directory: Path) -> list[str]:
    """Return the sockets of the nodes. Each node removes its own one when it leaves the others."""
    return [path.name for path in directory.iterdir() if path.suffix == ".sock"]


@reactors
@pytest.mark.parametrize("way", WAYS)
async def test_hubs_without_a_connection_have_joined_when_the_first_request_is_answered(
    way, reactor, tmp_path, socket_directory
) -> None:
    program, command, hubs = WAYS[way]
    variables = {"WSHUB_BROKER": f"workers:{socket_directory}", "WSHUB_USE_REACTOR": reactor}
    port = free_port()
    with running(tmp_path, program, command, port, **variables) as running_one:
        await asyncio.to_thread(answer_of, port, "/live" if way == "Hub.serve" else "/")
        assert len(sockets_of(socket_directory)) == hubs
        output = await asyncio.to_thread(running_one.end)
    assert sockets_of(socket_directory) == []
    assert "Traceback" not in output


@pytest.mark.parametrize(("failure", "reactor"), [("the application fails", "1"), ("the port is taken", "0")])
async def test_a_server_that_cannot_start_leaves_no_node_behind(failure, reactor, tmp_path, socket_directory) -> None:
    (tmp_path / "program.py").write_text(FAILING_PROGRAM if failure == "the application fails" else PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if failure == "the port is taken" else free_port()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wshub", "serve", "program:app", "--lifespan", "on", "--port", str(port)),
            env=environment(WSHUB_BROKER=f"workers:{socket_directory}", WSHUB_USE_REACTOR=reactor),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    assert process.returncode == 3
    assert sockets_of(socket_directory) == []
    assert (b"address already in use" in errors.lower()) == (failure == "the port is taken")


@reactors
async def test_an_engine_that_never_answers_is_connected_to_at_once_and_delays_nothing(reactor, tmp_path) -> None:
    _, command, _ = WAYS["wshub serve"]
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)
        broker = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with running(tmp_path, PROGRAM, command, port, WSHUB_BROKER=broker, WSHUB_USE_REACTOR=reactor):
            assert await asyncio.to_thread(answer_of, port) == "hello"
            while True:
                with contextlib.suppress(BlockingIOError):
                    silent.accept()[0].close()
                    break
                await asyncio.sleep(0.01)
