"""The programs of the pages on migrating: each one before and after, with the clients of its page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.support.free_ports import free_port
from tests.support.pages import page, program, write_programs
from tests.support.programs import environment, running_program
from tests.support.redis_engine import running_engine
from tests.support.replacing import replaced

NODE = shutil.which("node")


def within(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def command_for(name: str, port: int) -> list[str]:
    """Return the command that serves a program: what came before is on plain uvicorn."""
    server = ["uvicorn", f"{name}:app"] if name == "before" else ["wshub", "serve", f"{name}:app"]
    return [sys.executable, "-m", *server, "--port", str(port)]


@pytest.mark.parametrize("name", ["before", "after"])
def test_a_chat_of_websockets(name: str, tmp_path: Path) -> None:
    port = free_port()
    text = replaced(program("from-websockets.md", f"{name}.py"), {"8765": str(port)})
    (tmp_path / f"{name}.py").write_text(text)

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}"
        async with websockets.connect(url, proxy=None) as ada, websockets.connect(url, proxy=None) as ben:
            for message in ("hello", b"bytes"):
                await ada.send(message)
                assert await ada.recv() == await ben.recv() == message
            await ben.close()
            await ada.send("alone")
            assert await ada.recv() == "alone"

    with running_program([sys.executable, f"{name}.py"], port=port, env=environment(), cwd=tmp_path) as server:
        within(scenario())
        assert "Traceback" not in server.end()


@pytest.mark.parametrize("name", ["before", "after"])
def test_a_chat_of_fastapi(name: str, tmp_path: Path) -> None:
    port = free_port()
    write_programs("from-fastapi-websocket.md", tmp_path)

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}/chat"
        async with (
            websockets.connect(f"{url}/red?name=Ada", proxy=None) as ada,
            websockets.connect(f"{url}/red?name=Ben", proxy=None) as ben,
            websockets.connect(f"{url}/blue?name=Cleo", proxy=None) as cleo,
        ):
            await ada.send("hello")
            assert await ada.recv() == await ben.recv() == "Ada: hello"
            await ben.close()
            assert await ada.recv() == "Ben has left"
            await cleo.send("hi")
            assert await cleo.recv() == "Cleo: hi"

    with running_program(command_for(name, port), port=port, env=environment(), cwd=tmp_path) as server:
        within(scenario())
        assert "Traceback" not in server.end()


@pytest.mark.parametrize("name", ["before", "after", "step"])
def test_a_chat_of_django(name: str, tmp_path: Path) -> None:
    port = free_port()
    write_programs("from-channels.md", tmp_path)
    if name == "step":
        (tmp_path / "step.py").write_text(channels_with_a_hub())

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}/chat"
        async with (
            websockets.connect(f"{url}/red", proxy=None) as ada,
            websockets.connect(f"{url}/red", proxy=None) as ben,
            websockets.connect(f"{url}/blue", proxy=None) as cleo,
        ):
            await ada.send("hello")
            assert await ada.recv() == await ben.recv() == "hello"
            async with httpx.AsyncClient(trust_env=False) as browser:
                assert (await browser.get(f"http://127.0.0.1:{port}/notify/red")).text == "sent"
            assert await ada.recv() == await ben.recv() == "A word from the server."
            await cleo.send("hi")
            assert await cleo.recv() == "hi"

    with running_program(command_for(name, port), port=port, env=environment(), cwd=tmp_path) as server:
        within(scenario())
        assert "Traceback" not in server.end()


def channels_with_another_layer() -> str:
    """Return the program of Channels with the layer of wshub in place of its own."""
    return replaced(
        program("from-channels.md", "before.py"),
        {"channels.layers.InMemoryChannelLayer": "wshub.django.ChannelLayer"},
    )


@pytest.mark.parametrize("broker", ["workers", "redis"])
def test_consumers_of_channels_in_several_workers(broker: str, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "layer.py").write_text(channels_with_another_layer())

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}/chat/red"
        clients = [await websockets.connect(url, proxy=None) for _ in range(8)]
        for number, sender in enumerate(clients):
            await sender.send(f"hello {number}")
            assert {await client.recv() for client in clients} == {f"hello {number}"}
        async with httpx.AsyncClient(trust_env=False) as browser:
            for _ in range(4):
                assert (await browser.get(f"http://127.0.0.1:{port}/notify/red")).text == "sent"
                assert {await client.recv() for client in clients} == {"A word from the server."}
        for client in clients:
            await client.close()

    with contextlib.ExitStack() as stack:
        command = [*command_for("layer", port), "--workers", "2"]
        if broker == "redis":
            command += ["--broker", stack.enter_context(running_engine("redis")).url]
        server = stack.enter_context(running_program(command, port=port, env=environment(), cwd=tmp_path))
        within(scenario())
        assert "Traceback" not in server.end()


def channels_with_a_hub() -> str:
    """Return the program of Channels with the function of the page in place of its consumer."""
    before = program("from-channels.md", "before.py")
    step = (
        page("from-channels.md")
        .read_text()
        .split("takes the place of a consumer that needs the scope:\n\n```python\n")[1]
        .split("```")[0]
    )
    settings = """INSTALLED_APPS=["channels", "django.contrib.auth", "django.contrib.contenttypes"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies","""
    head = replaced(before[: before.index("class Chat")], {'INSTALLED_APPS=["channels"],': settings})
    return f"""{head}
from channels.auth import AuthMiddlewareStack
from wshub import Hub

hub = Hub()


def notify(request, room):
    hub.broadcast("A word from the server.", room=room)
    return HttpResponse("sent")


urlpatterns = [path("notify/<room>", notify)]
{step}"""


def test_a_chat_of_socketio_before(tmp_path: Path) -> None:
    import socketio

    port = free_port()
    write_programs("from-socketio.md", tmp_path)

    async def scenario() -> None:
        async with socketio.AsyncSimpleClient() as ada:
            await ada.connect(f"http://127.0.0.1:{port}?name=Ada", transports=["websocket"])
            await ada.emit("join", "red")
            await ada.emit("say", {"room": "red", "text": "hello"})
            assert await ada.receive() == ["said", {"name": "Ada", "text": "hello"}]

    with running_program(command_for("before", port), port=port, env=environment(), cwd=tmp_path) as server:
        within(scenario())
        assert "Traceback" not in server.end()


def test_a_chat_of_socketio_after(tmp_path: Path) -> None:
    port = free_port()
    write_programs("from-socketio.md", tmp_path)

    async def scenario() -> None:
        url = f"ws://127.0.0.1:{port}/chat"
        async with (
            websockets.connect(f"{url}?name=Ada", proxy=None) as ada,
            websockets.connect(f"{url}?name=Ben", proxy=None) as ben,
        ):
            for client in (ada, ben):
                await client.send('["join", "red"]')
                await client.send('["say", {"room": "red", "text": "hello"}]')
                assert json.loads(await client.recv())[0] == "said"
            assert json.loads(await ada.recv()) == ["said", {"name": "Ben", "text": "hello"}]

    with running_program(command_for("after", port), port=port, env=environment(), cwd=tmp_path) as server:
        within(scenario())
        assert "Traceback" not in server.end()


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="Node.js does not start with the sanitizers preloaded")
@pytest.mark.skipif(NODE is None, reason="there is no node on this machine")
def test_the_page_of_a_chat_of_socketio_after(tmp_path: Path) -> None:
    assert NODE is not None
    port = free_port()
    write_programs("from-socketio.md", tmp_path)
    script = tmp_path / "page.js"
    location = f"globalThis.location = {{ host: '127.0.0.1:{port}' }};\n"
    close = "setInterval(() => said && socket.close(), 10);"
    text = replaced((tmp_path / "after.js").read_text(), {"console.log(": "said = true; console.log("})
    script.write_text(f"{location}let said = false;\n{text}\n{close}\nsocket.onclose = () => process.exit(0);\n")
    with running_program(command_for("after", port), port=port, env=environment(), cwd=tmp_path):
        command = [NODE, "--experimental-websocket", str(script)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert result.stdout == "Ada hello\n", result.stderr
