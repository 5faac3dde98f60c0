"""The programs in the documentation, run as their pages say."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from pathlib import Path

import httpx
import pytest
import websockets

from tests.support.wshub_serve import serving
from wshub import HubConfig, RateLimits

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROGRAM = r"^```python\n(# {}\.py\n.*?)^```$"
MAIN = re.compile(PROGRAM.format("main"), re.MULTILINE | re.DOTALL)
PAGES = sorted(path.name for path in DOCS.glob("*.md") if MAIN.search(path.read_text()))


def write_program(page: str, name: str, directory: Path) -> None:
    """Write the program of a page into a directory. The page says how to serve it."""
    text = (DOCS / page).read_text()
    found = re.search(PROGRAM.format(name), text, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert f"wshub serve {name}:app\n" in text
    (directory / f"{name}.py").write_text(found[1])


def test_there_is_a_page_for_each_framework() -> None:
    assert PAGES == ["app.md", "django.md", "fastapi.md", "litestar.md", "starlette.md"]


@pytest.mark.parametrize("page", PAGES)
def test_two_clients_of_the_program_of_a_page_talk(page, tmp_path) -> None:
    write_program(page, "main", tmp_path)

    async def scenario(address: str) -> None:
        url = f"ws://{address}/chat"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"

    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        assert "new WebSocket(" in httpx.get(f"http://{server.address}/", trust_env=False).text
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_the_program_on_slow_readers_sends_prices_to_whoever_has_been_welcomed(tmp_path) -> None:
    write_program("slow-readers.md", "ticker", tmp_path)

    async def scenario(address: str) -> None:
        url = f"ws://{address}/prices"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            assert await one.recv() == await two.recv() == "welcome"
            for price in ("BTC 1", "ETH 2", "BTC 3"):
                await one.send(price)
                assert await one.recv() == await two.recv() == price

    with serving("ticker:app", "--app-dir", str(tmp_path)) as server:
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_every_setting_and_event_is_somewhere_in_the_documentation() -> None:
    text = "".join(
        path.read_text() for path in [*DOCS.glob("*.md"), DOCS.parent / "SECURITY.md", DOCS.parent / "README.md"]
    )
    names = [field.name for config in (HubConfig, RateLimits) for field in dataclasses.fields(config)]
    names += ["on_drain", "forwarded_address", "path_params", "subprotocol", "last_ping_time", "last_pong_time"]
    assert [name for name in names if name not in text] == []


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_program_on_several_workers_reaches_the_members_on_each(tmp_path, socket_directory, monkeypatch) -> None:
    text = (DOCS / "cluster.md").read_text()
    assert "wshub serve chat:app --workers 4\n" in text
    found = re.search(PROGRAM.format("chat"), text, re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "chat.py").write_text(found[1])
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
