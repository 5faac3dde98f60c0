"""The fragments of the page on FastAPI, put together to one program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from tests.support.pages import load, snippet

PAGE = "fastapi.md"
USERS = {"1": "ann", "2": "ben"}


@pytest.fixture
def client(tmp_path: Path) -> Any:
    module: Any = load(PAGE, "main.py", tmp_path)
    module.sessions = USERS
    for start in ("def user_of", "async def enter", '@app.post("/notices")'):
        exec(snippet(PAGE, start), vars(module))
    with TestClient(module.app) as client:
        yield client


def enter(client: Any, session: str) -> Any:
    return client.websocket_connect("/rooms/red", headers={"Cookie": f"session={session}"})


def test_who_has_not_logged_in_gets_401(client: Any) -> None:
    with pytest.raises(WebSocketDenialResponse) as refusal, enter(client, "3"):
        pass
    assert refusal.value.status_code == client.post("/users/ann/messages", params={"text": "x"}).status_code == 401


def test_the_members_of_a_room_hear_who_is_in_it(client: Any) -> None:
    with enter(client, "1") as ann:
        assert ann.receive_text() == "In this room: ann"
        with enter(client, "2") as ben:
            assert ann.receive_text() == ben.receive_text() == "In this room: ann, ben"
            ben.send_text("hello")
            assert ann.receive_text() == ben.receive_text() == "ben: hello"
        assert ann.receive_text() == "In this room: ann"
        assert client.post("/notices", params={"text": "at noon"}).json() == {"connections": 1}


def test_a_private_message_reaches_all_tabs_of_its_user(client: Any) -> None:
    with enter(client, "1") as tab, enter(client, "1") as other_tab:
        assert [tab.receive_text(), tab.receive_text(), other_tab.receive_text()] == ["In this room: ann"] * 3
        client.post("/users/ann/messages", params={"text": "psst"}, headers={"Cookie": "session=2"})
        assert tab.receive_text() == other_tab.receive_text() == "ben whispers: psst"
