"""The program of ``docs/topics/security.md``: who logs in over HTTP may connect, with a cookie or a token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.examples.test_framework_examples import status_of
from tests.support.pages import blocks, program, snippet
from tests.support.serving_hub import connected
from tests.support.serving_hub import serving as serving_hub
from tests.support.wshub_serve import serving
from wshub import EventHandler

PAGE = "topics/security.md"
ORIGIN: Any = "http://127.0.0.1:8000"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "login.py").write_text(program(PAGE, "login.py"))
    assert any("wshub serve login:app\n" in block for block in blocks(PAGE, "sh"))
    with serving("login:app", "--app-dir", str(tmp_path)) as server:
        yield server.address
        assert "Traceback" not in server.end()


async def log_in(address: str, name: str, password: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
        return await client.post("/login", json={"name": name, "password": password})


def test_a_private_message_reaches_all_tabs_and_programs_of_its_user(address: str) -> None:
    url = f"ws://{address}/messages"

    async def scenario() -> None:
        for name, password in (("ann", "green"), ("eve", ""), ("", ""), ("ann", "bläu")):
            assert (await log_in(address, name, password)).status_code == 401
        ann = await log_in(address, "ann", "blue")
        bob = await log_in(address, "bob", "green")
        assert "httponly" in ann.headers["set-cookie"].lower()
        cookie = {"Cookie": f"session={bob.cookies['session']}"}
        token = bob.json()["token"]
        bearer = {"Authorization": f"Bearer {token}"}
        async with (
            connected(url, origin=ORIGIN, additional_headers=cookie) as tab,
            connected(url, origin=ORIGIN, subprotocols=["bearer", token]) as page,
            connected(url, additional_headers=bearer) as tool,
            connected(url, origin=ORIGIN, additional_headers={"Cookie": f"session={ann.cookies['session']}"}) as sender,
        ):
            assert page.subprotocol == "bearer"
            await sender.send("bob hello you")
            for client in (tab, page, tool):
                assert await client.recv() == "ann: hello you"
            async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
                assert (await http.post("/logout")).status_code == 401
                assert (await http.post("/logout", headers=bearer)).status_code == 200
            for client in (tab, page, tool):
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (4001, "logged out")
            await sender.send("ann still here")
            assert await sender.recv() == "ann: still here"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_client_that_has_not_logged_in_is_refused(address: str) -> None:
    url = f"ws://{address}/messages"

    async def scenario() -> None:
        ann = await log_in(address, "ann", "blue")
        cookie = {"Cookie": f"session={ann.cookies['session']}"}
        assert await status_of(url, origin=ORIGIN) == 401
        assert await status_of(url, origin=ORIGIN, additional_headers={"Cookie": "session=guessed"}) == 401
        assert await status_of(url, origin=ORIGIN, subprotocols=["bearer", "guessed"]) == 401
        assert await status_of(url, additional_headers={"Authorization": "Bearer guessed"}) == 401
        assert await status_of(url, origin="http://evil.example", additional_headers=cookie) == 403
        assert await status_of(url, origin=ORIGIN, additional_headers=cookie) == 101

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def test_on_upgrade_reads_the_cookie_of_a_request(tmp_path: Path) -> None:
    class User:
        name = "ann"
        role = "admin"

    async def find_user(session: str) -> User | None:
        return User() if session == "known" else None

    names: dict[str, Any] = {"find_user": find_user}
    exec(snippet(PAGE, "async def on_upgrade"), names)
    opened: list[Any] = []
    handler = EventHandler(on_open=lambda connection: opened.append((connection.user, connection.metadata)))
    async with names["hub"] as hub, hub.serve("127.0.0.1", 0, handler) as server:
        url = f"ws://127.0.0.1:{server.port}"
        assert await status_of(url) == 401
        assert await status_of(url, additional_headers={"Cookie": "session=guessed"}) == 401
        assert await status_of(url, additional_headers={"Cookie": "a=1; session=known"}) == 101
    assert opened == [("ann", {"user": "ann", "role": "admin"})]


async def test_a_client_logs_in_with_its_first_message(tmp_path: Path) -> None:
    source = snippet(PAGE, "async def enter").replace("        ...\n", "        connection.send(connection.user)\n")
    names: dict[str, Any] = {"user_of_token": {"known": "ann"}.get}
    exec(source.replace("timeout=10", "timeout=0.1"), names)
    async with serving_hub(names["enter"]) as (_, url):
        async with connected(url) as client:
            await client.send("known")
            await client.send("who am I?")
            assert await client.recv() == "ann"
        for messages in (["guessed"], []):
            async with connected(url) as client:
                for message in messages:
                    await client.send(message)
                await client.wait_closed()
                assert client.close_code == 4001
