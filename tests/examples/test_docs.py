"""The programs of the documentation, run as their pages say."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
import websockets

from tests.app.command import serving

DOCS = Path(__file__).resolve().parents[2] / "docs"
MAIN = re.compile(r"^```python\n(# main\.py\n.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(path.name for path in DOCS.glob("*.md") if MAIN.search(path.read_text()))


def test_there_is_a_page_for_each_framework() -> None:
    assert PAGES == ["app.md", "django.md", "fastapi.md", "litestar.md", "starlette.md"]


@pytest.mark.parametrize("page", PAGES)
def test_two_clients_of_the_program_of_a_page_talk(page, tmp_path) -> None:
    text = (DOCS / page).read_text()
    found = MAIN.search(text)
    assert found is not None
    assert "wshub serve main:app\n" in text
    (tmp_path / "main.py").write_text(found[1])

    async def scenario(address: str) -> None:
        url = f"ws://{address}/chat"
        async with websockets.connect(url, proxy=None) as one, websockets.connect(url, proxy=None) as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"

    with serving("main:app", "--app-dir", str(tmp_path)) as server:
        assert "new WebSocket(" in httpx.get(f"http://{server.address}/", trust_env=False).text
        asyncio.run(asyncio.wait_for(scenario(server.address), 20))
        assert "Traceback" not in server.end()


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
