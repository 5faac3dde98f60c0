"""The examples for frameworks, run as a reader runs them, with real clients."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest
import websockets

from tests.examples.test_examples import running
from tests.support import chromium

SECRET = "a secret of at least thirty-two bytes"


def within(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


async def status_of(url: str, **options: Any) -> int:
    """Return the status of the response to a handshake."""
    try:
        async with websockets.connect(url, proxy=None, **options):
            return 101
    except websockets.InvalidStatus as error:
        return error.response.status_code


def test_the_fastapi_chat_tells_a_new_client_what_it_has_missed() -> None:
    async def scenario(port: int) -> None:
        url = f"ws://127.0.0.1:{port}/chat/red?name="
        async with websockets.connect(url + "Ada", proxy=None) as ada:
            assert json.loads(await ada.recv()) == {"name": "Ada", "event": "joined", "text": ""}
            await ada.send("hello")
            said = {"name": "Ada", "event": "said", "text": "hello"}
            assert json.loads(await ada.recv()) == said
            async with websockets.connect(url + "Ben", proxy=None) as ben:
                assert json.loads(await ben.recv()) == said
                assert json.loads(await ben.recv())["event"] == "joined"
                async with httpx.AsyncClient(trust_env=False) as client:
                    names = (await client.get(f"http://127.0.0.1:{port}/rooms/red")).json()
                assert names == ["Ada", "Ben"]
            assert json.loads(await ada.recv())["name"] == "Ben"
            assert json.loads(await ada.recv()) == {"name": "Ben", "event": "left", "text": ""}

    with running("fastapi_chat.py") as port:
        within(scenario(port))


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="a browser does not start with the sanitizers preloaded")
@pytest.mark.skipif(chromium.PATH is None, reason="there is no chromium on this machine")
def test_two_tabs_chat_under_fastapi() -> None:
    from playwright.sync_api import sync_playwright

    with running("fastapi_chat.py") as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.PATH, args=chromium.OPTIONS)
        context = browser.new_context()
        context.set_default_timeout(15_000)
        ada, ben = context.new_page(), context.new_page()
        try:
            for page, name in ((ada, "Ada"), (ben, "Ben")):
                page.goto(f"http://127.0.0.1:{port}/")
                page.fill("#name", name)
                page.click("text=Enter")
                page.wait_for_selector("#text:not([disabled])")
                page.get_by_text(f"{name} has joined the room").wait_for()
            ada.fill("#text", "hello")
            ada.click("#send")
            for page in (ada, ben):
                page.get_by_text("Ada: hello", exact=True).wait_for()
        finally:
            browser.close()


def test_only_a_client_with_a_session_may_connect_under_starlette() -> None:
    async def scenario(port: int) -> None:
        url, origin = f"ws://127.0.0.1:{port}/live", "http://127.0.0.1:8080"
        assert await status_of(url, origin=origin) == 401
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            answer = await client.post("/login", params={"user": "ada"})
            cookie = {"Cookie": f"session={answer.cookies['session']}"}
            assert await status_of(url, origin="http://evil.example", additional_headers=cookie) == 403
            async with websockets.connect(url, proxy=None, origin=origin, additional_headers=cookie) as ada:
                await ada.send("hello")
                assert await ada.recv() == "ada: hello"
                await client.post("/logout")
                await ada.wait_closed()
                assert (ada.close_code, ada.close_reason) == (4001, "logged out")

    with running("starlette_sessions.py") as port:
        within(scenario(port))


def token(secret: str = SECRET, lifetime: int = 60, **claims: Any) -> str:
    # Imported here: cryptography, which it needs, leaks some bytes in every process that imports it.
    import jwt

    return jwt.encode({"sub": "ada", "exp": int(time.time()) + lifetime, **claims}, secret, "HS256")


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="cryptography leaks some bytes when it is imported")
def test_a_token_opens_the_rooms_that_it_names_and_no_other(monkeypatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)

    async def scenario(port: int) -> None:
        url = f"ws://127.0.0.1:{port}/rooms/red"
        valid = token(rooms=["red"])
        assert await status_of(url) == 401
        assert await status_of(f"{url}?token=nonsense") == 401
        assert (
            await status_of(url, subprotocols=["bearer", token("another secret of thirty-two bytes", rooms=["red"])])
            == 401
        )
        assert await status_of(url, subprotocols=["bearer", token(lifetime=-60, rooms=["red"])]) == 401
        assert await status_of(url, subprotocols=["bearer", token(rooms=["blue"])]) == 403
        async with (
            websockets.connect(url, proxy=None, subprotocols=["bearer", valid]) as one,
            websockets.connect(f"{url}?token={valid}", proxy=None) as two,
        ):
            assert one.subprotocol == "bearer"
            await two.send("hello")
            assert await one.recv() == await two.recv() == "ada: hello"

    with running("jwt_authentication.py") as port:
        within(scenario(port))


def test_a_notice_reaches_every_tab_of_its_user_under_django() -> None:
    async def scenario(port: int) -> None:
        url, origin = f"ws://127.0.0.1:{port}/notices", f"http://127.0.0.1:{port}"
        assert await status_of(url, origin=origin) == 401
        assert await status_of(url, origin=origin, additional_headers={"Cookie": "sessionid=nonsense"}) == 401
        async with (
            httpx.AsyncClient(base_url=origin, trust_env=False) as ada,
            httpx.AsyncClient(base_url=origin, trust_env=False) as ben,
        ):
            assert (await ada.post("/login", data={"user": "ada", "password": "guessed"})).status_code == 401
            assert (await ben.post("/notify", data={"user": "ada", "text": "hello"})).status_code == 401
            for name, client in (("ada", ada), ("ben", ben)):
                assert (await client.post("/login", data={"user": name, "password": "wshub"})).text == "welcome"
            cookie = {"Cookie": f"sessionid={ada.cookies['sessionid']}"}
            assert await status_of(url, origin="http://evil.example", additional_headers=cookie) == 403
            options: dict[str, Any] = {"proxy": None, "origin": origin, "additional_headers": cookie}
            async with websockets.connect(url, **options) as one, websockets.connect(url, **options) as two:
                answer = await ben.post("/notify", data={"user": "ada", "text": "your build is green"})
                assert answer.json() == {"connections": 2}
                assert await one.recv() == await two.recv() == "your build is green"
                assert (await ada.post("/notify", data={"user": "ben", "text": "?"})).json() == {"connections": 0}

    with running("django_notifications.py") as port:
        within(scenario(port))


def test_what_is_posted_reaches_those_who_subscribe_to_it() -> None:
    async def scenario(port: int) -> None:
        options: dict[str, Any] = {"proxy": None, "subprotocols": ["graphql-transport-ws"]}
        async with websockets.connect(f"ws://127.0.0.1:{port}/graphql", **options) as client:

            async def operate(number: int, query: str) -> None:
                message = {"id": str(number), "type": "subscribe", "payload": {"query": query}}
                await client.send(json.dumps(message))

            await client.send(json.dumps({"type": "connection_init"}))
            assert json.loads(await client.recv())["type"] == "connection_ack"
            await operate(0, 'subscription { posts(room: "red") }')
            reached = 0
            number = 0
            while not reached:
                number += 1
                await operate(number, '{ readers(room: "red") }')
                reached = json.loads(await client.recv())["payload"]["data"]["readers"]
                assert json.loads(await client.recv())["type"] == "complete"
            await operate(number + 1, 'mutation { post(room: "red", text: "hello") }')
            received = [json.loads(await client.recv()) for _ in range(3)]
            assert {"id": "0", "type": "next", "payload": {"data": {"posts": "hello"}}} in received

    with running("graphql_subscriptions.py") as port:
        within(scenario(port))
