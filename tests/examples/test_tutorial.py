"""The programs of the tutorial, with real clients. Each page builds on the files of the pages before it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.support import chromium
from tests.support.free_ports import free_port
from tests.support.pages import snippet, write_programs
from tests.support.programs import Program, environment, running_program

PAGES = [
    "tutorial/chat.md",
    "tutorial/rooms.md",
    "tutorial/authentication.md",
    "tutorial/slow-readers.md",
    "tutorial/tests.md",
]
PASSWORDS = {"ann": "wonderland", "ben": "westminster"}


class Chat:
    """The program of a page in a directory, and where it is served."""

    def __init__(self, name: str, directory: Path) -> None:
        for earlier in PAGES[: PAGES.index(name) + 1]:
            write_programs(earlier, directory)
        self.directory = directory
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.origin = f"http://{self.address}"
        program = directory / "chat.py"
        program.write_text(program.read_text().replace("http://127.0.0.1:8000", self.origin))

    @contextlib.contextmanager
    def served(self, **variables: str) -> Iterator[Program]:
        """Serve it, and check at the end that nothing has failed."""
        where = ["--port", str(self.port), "--app-dir", str(self.directory)]
        command = [sys.executable, "-m", "wshub", "serve", "chat:app", *where]
        with running_program(command, port=self.port, env=environment(CHAT_SECRET="a secret", **variables)) as program:
            yield program
            assert "Traceback" not in program.end()

    def connect(self, path: str, **headers: str) -> Any:
        origin = headers.pop("Origin", self.origin)
        return websockets.connect(f"ws://{self.address}{path}", proxy=None, origin=origin, additional_headers=headers)

    async def log_in(self, user: str, password: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.origin, trust_env=False) as client:
            return await client.post("/login", data={"name": user, "password": password})

    async def session(self, user: str) -> dict[str, str]:
        """Log in. Returns the header field with the session."""
        answer = await self.log_in(user, PASSWORDS[user])
        return {"Cookie": f"session={answer.raise_for_status().cookies['session']}"}

    async def log_out(self, session: dict[str, str]) -> None:
        async with httpx.AsyncClient(base_url=self.origin, trust_env=False) as client:
            (await client.post("/logout", headers=session)).raise_for_status()


async def event(client: websockets.ClientConnection, kind: str) -> dict[str, Any]:
    """Return the next notice of a kind."""
    while (notice := json.loads(await client.recv()))["event"] != kind:
        pass
    return notice


async def refusal(opening: Any) -> int:
    """Return the status of a handshake that is refused."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        await opening
    return refused.value.response.status_code


async def say(client: websockets.ClientConnection, text: str) -> None:
    await client.send(json.dumps({"type": "say", "text": text}))


def run_scenario(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 45))


def test_two_clients_of_the_first_chat_hear_each_other(tmp_path) -> None:
    chat = Chat("tutorial/chat.md", tmp_path)

    async def scenario() -> None:
        async with chat.connect("/chat") as one, chat.connect("/chat") as two:
            await one.send("hello")
            assert await one.recv() == await two.recv() == "hello"

    with chat.served():
        assert "new WebSocket(" in httpx.get(chat.origin, trust_env=False).text
        run_scenario(scenario())


def test_members_of_a_room_hear_one_another_and_who_comes_and_goes(tmp_path) -> None:
    chat = Chat("tutorial/rooms.md", tmp_path)

    async def scenario() -> None:
        async with chat.connect("/chat/cats?name=ann") as ann, chat.connect("/chat/dogs?name=cleo") as cleo:
            assert (await event(ann, "joined"))["members"] == ["ann"]
            async with chat.connect("/chat/cats?name=ben") as ben:
                assert (await event(ann, "joined"))["members"] == ["ann", "ben"]
                await ben.send("meow")
                assert (await event(ann, "said"))["text"] == "meow"
                await event(ben, "said")
            assert await event(ann, "left") == {"event": "left", "name": "ben", "text": "", "members": ["ann"]}
            async with chat.connect("/chat/cats") as guest:
                assert (await event(ann, "joined"))["name"].startswith("guest ")
                guest.transport.abort()
                await event(ann, "left")
            await cleo.send("woof")
            await event(cleo, "joined")
            assert (await event(cleo, "said"))["text"] == "woof"
        async with chat.connect("/chat/mice") as nowhere:
            await nowhere.wait_closed()
            assert (nowhere.close_code, nowhere.close_reason) == (4004, "There is no such room.")

    with chat.served():
        run_scenario(scenario())


@pytest.mark.parametrize("name", ["tutorial/authentication.md", "tutorial/slow-readers.md"])
def test_only_users_from_the_page_may_enter_a_room(name, tmp_path) -> None:
    chat = Chat(name, tmp_path)

    async def scenario() -> None:
        assert (await chat.log_in("ann", "guessed")).status_code == 401
        ann = await chat.session("ann")
        assert await refusal(chat.connect("/chat/cats")) == 401
        assert await refusal(chat.connect("/chat/cats", Cookie="session=ann.forged")) == 401
        assert await refusal(chat.connect("/chat/mice", **ann)) == 404
        assert await refusal(chat.connect("/chat/cats", Origin="https://evil.example", **ann)) == 403
        async with chat.connect("/chat/cats", **ann) as client:
            assert (await event(client, "joined"))["name"] == "ann"
            await chat.log_out(ann)
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (4001, "You have logged out.")

    with chat.served():
        run_scenario(scenario())


def test_a_private_message_reaches_all_tabs_of_both_users_and_nobody_else(tmp_path) -> None:
    chat = Chat("tutorial/authentication.md", tmp_path)

    async def scenario() -> None:
        ann, ben = await chat.session("ann"), await chat.session("ben")
        async with contextlib.AsyncExitStack() as stack:
            tabs = [await stack.enter_async_context(chat.connect("/chat/cats", **user)) for user in (ann, ann, ben)]
            await tabs[0].send("@ben only you")
            for tab in tabs:
                assert await event(tab, "whispered") == {"event": "whispered", "name": "ann", "text": "only you"}
            await tabs[0].send("@ann a note")
            await tabs[0].send("to all")
            assert json.loads(await tabs[2].recv())["text"] == "to all"

    with chat.served():
        run_scenario(scenario())


def test_a_client_that_comes_back_gets_all_that_it_missed_however_much_it_is(tmp_path) -> None:
    chat = Chat("tutorial/slow-readers.md", tmp_path)
    texts = [f"{number} " + "x" * 3900 for number in range(150)]

    async def scenario() -> None:
        ann = await chat.session("ann")
        async with contextlib.AsyncExitStack() as stack:
            # Each connection has a rate of its own.
            clients = [await stack.enter_async_context(chat.connect("/chat/cats", **ann)) for _ in range(5)]
            last = (await event(clients[-1], "joined"))["number"]
            for number, text in enumerate(texts):
                await say(clients[number % 5], text)
                for client in clients:
                    await event(client, "said")
        async with chat.connect(f"/chat/cats?after={last}", **ann) as back:
            # By now the server could have sent all of it: far more than max_send_buffer.
            await asyncio.sleep(0.5)
            assert [(await event(back, "said"))["text"] for _ in texts] == texts
            await say(back, "here again")
            assert (await event(back, "said"))["text"] == "here again"
        async with chat.connect("/chat/cats?after=nonsense", **ann) as new:
            assert (await event(new, "said"))["text"] == texts[0]

    with chat.served():
        run_scenario(scenario())


def test_a_typing_notice_reaches_the_others_and_bad_messages_end_only_their_connection(tmp_path) -> None:
    chat = Chat("tutorial/slow-readers.md", tmp_path)

    async def scenario() -> None:
        ann = await chat.session("ann")
        async with chat.connect("/chat/cats", **ann) as one, chat.connect("/chat/cats", **ann) as two:
            await one.send('{"type": "typing"}')
            assert await event(two, "typing") == {"event": "typing", "name": "ann"}
            await say(one, "done")
            await event(one, "said")
            for bad, code in (("hello", 1007), ("[" * 4000, 1007), ('{"type": "say", "text": 1}', 4000)):
                async with chat.connect("/chat/cats", **ann) as client:
                    await client.send(bad)
                    await client.wait_closed()
                    assert client.close_code == code
            await say(one, "still here")
            await event(two, "said")
            assert (await event(two, "said"))["text"] == "still here"

    with chat.served():
        run_scenario(scenario())


def test_the_settings_for_production_read_the_origins_and_the_service_says_when_it_is_ready(tmp_path) -> None:
    chat = Chat("tutorial/slow-readers.md", tmp_path)
    program = tmp_path / "chat.py"
    settings = snippet("tutorial/deployment.md", "ORIGINS = ")
    text = re.sub(r"^hub = .*?^\)$", lambda _: settings, program.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "shutdown_spread_ms" in text
    program.write_text("import os\n" + text + snippet("tutorial/deployment.md", "from wshub.health"))

    async def scenario() -> None:
        ann = await chat.session("ann")
        async with chat.connect("/chat/cats", Origin="https://chat.example.com", **ann) as client:
            await event(client, "joined")
        assert await refusal(chat.connect("/chat/cats", **ann)) == 403

    with chat.served(CHAT_ORIGINS="https://chat.example.com"):
        run_scenario(scenario())
        assert httpx.get(f"{chat.origin}/health/ready", trust_env=False).status_code == 200


def test_the_tests_of_the_tutorial_pass(tmp_path) -> None:
    for name in PAGES:
        write_programs(name, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_chat.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert "6 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif("WSHUB_SANITIZED" in os.environ, reason="a browser does not start with the sanitizers preloaded")
@pytest.mark.skipif(chromium.PATH is None, reason="there is no chromium on this machine")
def test_two_users_chat_in_browsers_and_come_back_when_the_server_restarts(tmp_path) -> None:
    from playwright.sync_api import sync_playwright

    chat = Chat("tutorial/slow-readers.md", tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.PATH, args=chromium.OPTIONS)
        pages = {user: browser.new_context().new_page() for user in PASSWORDS}
        try:
            with chat.served():
                for user, page in pages.items():
                    page.set_default_timeout(20_000)
                    page.goto(chat.origin)
                    page.fill("[name=name]", user)
                    page.fill("[name=password]", PASSWORDS[user])
                    page.click("text=Log in")
                    page.get_by_text("Connected to lobby").wait_for()
                pages["ann"].fill("#text", "hello")
                pages["ben"].get_by_text("ann is typing").wait_for()
                pages["ann"].click("text=Send")
                for page in pages.values():
                    page.get_by_text("ann: hello", exact=True).wait_for()
            for page in pages.values():
                page.get_by_text("Disconnected (1001)").or_(page.get_by_text("Disconnected (1006)")).wait_for()
            with chat.served():
                for page in pages.values():
                    page.get_by_text("Connected to lobby").wait_for()
                pages["ben"].fill("#text", "welcome back")
                pages["ben"].click("text=Send")
                for page in pages.values():
                    page.get_by_text("ben: welcome back", exact=True).wait_for()
                    assert page.get_by_text("ann: hello", exact=True).count() == 1
                pages["ben"].click("text=Log out")
                pages["ben"].get_by_text("Disconnected (4001)").wait_for()
        finally:
            browser.close()
