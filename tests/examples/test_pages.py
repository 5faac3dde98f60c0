"""The programs of the pages, run as the pages say, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest
import websockets
from starlette.testclient import TestClient

from tests.support.pages import page, snippet, write_programs
from tests.support.wshub_serve import serving
from wshub import Connection
from wshub.app import App

FRAMEWORKS = ["app.md", "django.md", "fastapi.md", "litestar.md", "starlette.md"]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_two_clients_of_the_program_of_a_framework_talk(name, tmp_path) -> None:
    write_programs(name, tmp_path)
    assert "wshub serve main:app\n" in page(name).read_text()

    async def scenario(address: str) -> None:
        url = f"ws://{address}/chat"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"

    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        assert "new WebSocket(" in httpx.get(f"http://{server.address}/", trust_env=False).text
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_the_first_program_relays_messages_to_the_others(tmp_path) -> None:
    write_programs("README.md", tmp_path)

    async def scenario(address: str) -> None:
        url = f"ws://{address}/chat/lobby"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await two.send("I am here")
            assert await one.recv() == "I am here"
            await one.send("hello")
            assert await two.recv() == "hello"

    with serving("chat:app", "--app-dir", str(tmp_path)) as server:
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_the_program_on_several_workers_reaches_the_members_on_each(tmp_path, socket_directory, monkeypatch) -> None:
    write_programs("cluster.md", tmp_path)
    monkeypatch.setenv("TMPDIR", str(socket_directory))

    async def scenario(address: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            url = f"ws://{address}/chat/lobby"
            clients = [await stack.enter_async_context(websockets.connect(url, proxy=None)) for _ in range(20)]
            received: set[int] = set()

            async def read(number: int, client: websockets.ClientConnection) -> None:
                await client.recv()
                received.add(number)

            readers = [asyncio.create_task(read(number, client)) for number, client in enumerate(clients)]
            # The workers may not have met yet.
            while len(received) < len(clients):
                await clients[0].send("hello")
                await asyncio.sleep(0.1)
            await asyncio.gather(*readers)

    with serving("chat:app", "--app-dir", str(tmp_path), "--workers", "2") as server:
        asyncio.run(asyncio.wait_for(scenario(server.address), 30))
        assert "Traceback" not in server.end()


def test_a_task_in_the_background_of_an_app_sends_to_all_clients() -> None:
    names: dict[str, Any] = {"App": App}
    exec(snippet("how-to/app.md", "async def lifespan"), names)

    @names["app"].websocket("/chat")
    async def chat(connection: Connection) -> None:
        async for _ in connection:
            pass

    with TestClient(names["app"]) as client, client.websocket_connect("/chat") as one:
        assert one.receive_text().count(":") == 2
