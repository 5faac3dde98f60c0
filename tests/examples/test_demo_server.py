"""The servers of the demo, with clients that do what no page does."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.examples.demo import EXAMPLES, serving_demo
from tests.support.free_ports import free_port
from tests.support.programs import environment, running_program


def entering(name: str, room: str = "general", after: int | None = None) -> str:
    return json.dumps({"type": "enter", "room": room, "name": name, "after": after})


def saying(text: str, room: str = "general", message_id: str | None = None) -> str:
    return json.dumps({"type": "say", "room": room, "id": message_id or uuid.uuid4().hex, "text": text})


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A port on which the demo is served."""
    port = free_port()
    with serving_demo(port, tmp_path_factory.mktemp("demo") / "chat.sqlite3") as server:
        yield port
        printed = server.end()
    assert "Traceback" not in printed, printed


@pytest.fixture
def room() -> str:
    return uuid.uuid4().hex


def chatting(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}/chat", proxy=None)


def received(client: ClientConnection, *types: str) -> dict[str, Any]:
    """Return the next message of one of these types."""
    while True:
        message = json.loads(client.recv(20))
        if message["type"] in types:
            return message


def test_a_message_that_is_sent_again_is_stored_once_and_acknowledged_again(port, room) -> None:
    with chatting(port) as ada, chatting(port) as ben:
        for client, name in ((ada, "Ada"), (ben, "Ben")):
            client.send(entering(name, room))
            assert received(client, "history")["messages"] == []
        for _ in range(2):
            ada.send(saying("hello", room, "the-same-id"))
            assert received(ada, "ack")["number"] == 1
        ada.send(saying("bye", room))
        assert [received(ben, "said")["text"] for _ in range(2)] == ["hello", "bye"]


def test_a_client_that_leaves_at_once_has_sent_its_message(port, room) -> None:
    with chatting(port) as ben:
        ben.send(entering("Ben", room))
        received(ben, "history")
        with chatting(port) as ada:
            ada.send(entering("Ada", room))
            ada.send(saying("gone", room))
        assert received(ben, "said")["text"] == "gone"


def test_history_comes_in_pages_that_end_with_the_newest_message(port, room) -> None:
    with chatting(port) as ada:
        ada.send(entering("Ada", room))
        for number in range(1, 71):
            ada.send(saying(str(number), room))
        while received(ada, "ack")["number"] < 70:
            pass
        ada.send(json.dumps({"type": "fetch", "room": room, "after": 5}))
        page = received(ada, "history")
        assert [entry["number"] for entry in page["messages"]] == list(range(6, 56))
        assert (page["after"], page["newest"]) == (5, 70)
        ada.send(entering("Ada", room))
        page = received(ada, "history")
        assert [entry["text"] for entry in page["messages"]] == [str(number) for number in range(21, 71)]


def test_the_members_of_a_room_are_listed_as_they_come_and_go(port, room) -> None:
    with chatting(port) as ada:
        ada.send(entering("Ada", room))
        assert received(ada, "members")["count"] == 1
        with chatting(port) as ben:
            ben.send(entering("  Ben\u202e \n Bo  ", room))
            assert [member["name"] for member in received(ada, "members")["members"]] == ["Ada", "Ben Bo"]
        assert received(ada, "members")["count"] == 1


@pytest.mark.parametrize(
    "message",
    [
        b"binary",
        "no JSON",
        "[" * 10_000,
        "[]",
        '{"type": "enter", "room": "general"}',
        '{"type": "enter", "room": "general", "name": 5}',
        '{"type": "enter", "room": "no room", "name": "Ada"}',
        '{"type": "enter", "room": "general", "name": "Ada", "after": -1}',
        '{"type": "enter", "room": "general", "name": "Ada", "after": 1e300}',
        '{"type": "fetch", "room": "general", "after": 99999999999999999999999}',
        '{"type": "say", "room": "general", "id": "' + "x" * 100 + '", "text": "hello"}',
        '{"type": "say", "room": ["general"], "id": "12345678", "text": "hello"}',
        '{"type": ["say"]}',
    ],
)
def test_a_message_that_no_page_sends_closes_its_connection_alone(port, room, message) -> None:
    with chatting(port) as ada, chatting(port) as mallory:
        ada.send(entering("Ada", room))
        received(ada, "history")
        mallory.send(message)
        with pytest.raises(ConnectionClosedError) as closed:
            while True:
                mallory.recv(20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        ada.send('{"type": "ping"}')
        received(ada, "pong")


@pytest.mark.parametrize("text", ["", " \n ", "\x00\x1b", "x" * 2_001])
def test_a_text_that_is_empty_or_too_long_is_refused_and_the_connection_goes_on(port, room, text) -> None:
    with chatting(port) as ada:
        ada.send(entering("Ada", room))
        ada.send(saying(text, room, "refused-id"))
        assert received(ada, "refused", "ack")["id"] == "refused-id"
        ada.send(saying("fine", room))
        assert received(ada, "ack")["number"] == 1


def test_control_characters_and_lone_surrogates_do_not_reach_others(port, room) -> None:
    with chatting(port) as ada:
        ada.send(entering("\ud800\x00", room))
        ada.send(saying("a\x00\x1b[31m\ud800\u0085b\nc", room))
        entry = received(ada, "ack")
        assert (entry["name"], entry["text"]) == ("Guest", "a[31m?b\nc")


def test_more_messages_than_the_rate_are_delayed_and_none_is_lost(port, room) -> None:
    with chatting(port) as ada:
        ada.send(entering("Ada", room))
        for number in range(130):
            ada.send(saying(str(number), room))
        assert [received(ada, "ack")["number"] for _ in range(130)] == list(range(1, 131))


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_a_page_is_one_response_whose_policy_allows_only_its_own_scripts(port, path) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert re.findall(r"""(?:src|href)=["'](?!/|#|data:)[^"']*""", answer.text) == []
    assert re.findall(r"""\s(?:style|on\w+)=["']""", answer.text) == []


SERVERS = {
    "wshub serve on asyncio": ("-m", "wshub", "serve", "demo:app", "--loop", "asyncio"),
    "uvicorn with its own protocol": ("-m", "uvicorn", "demo:app", "--ws", "websockets-sansio"),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("reactor", ["0", "1"])
def test_the_demo_runs_on_other_servers_too(tmp_path, server, reactor) -> None:
    port = free_port()
    command = [sys.executable, *SERVERS[server], "--app-dir", str(EXAMPLES), "--port", str(port)]
    variables = environment(CHAT_HISTORY=str(tmp_path / "chat.sqlite3"), WSHUB_USE_REACTOR=reactor)
    with running_program(command, port=port, env=variables) as program:
        with chatting(port) as ada, chatting(port) as ben:
            for client, name in ((ada, "Ada"), (ben, "Ben")):
                client.send(entering(name))
                received(client, "history")
            ada.send(saying("hello"))
            assert received(ben, "said")["text"] == "hello"
            assert received(ada, "ack")["number"] == 1
        with connect(f"ws://127.0.0.1:{port}/dashboard/prices/latest/slow", proxy=None) as slow:
            slow.recv(20)
            while dropped_prices(port)["replaced"] < 1_000:
                slow.recv(20)
        assert "Traceback" not in program.end()


@pytest.mark.parametrize(
    ("program", "path", "other"), [("chat.py", "/", "/dashboard"), ("dashboard.py", "/dashboard", "/")]
)
def test_each_program_also_runs_alone(tmp_path, program, path, other) -> None:
    port = free_port()
    with serving_demo(port, tmp_path / "chat.sqlite3", program) as server:
        assert httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
        assert httpx.head(f"http://127.0.0.1:{port}{other}", trust_env=False).status_code == 404
        assert "Traceback" not in server.end()


def test_a_question_that_names_no_reader_is_answered_all_the_same(port) -> None:
    with connect(f"ws://127.0.0.1:{port}/dashboard/statistics", proxy=None) as watcher:
        for question in ("0", "none", b"\xff", "9" * 200, "-1", '{"a": 1}'):
            watcher.send(question)
            assert json.loads(watcher.recv(20))["waiting"] == 0


def dropped_prices(port: int) -> dict[str, int]:
    """Return how many prices the server has dropped so far, by reason."""
    with connect(f"ws://127.0.0.1:{port}/dashboard/statistics", proxy=None) as watcher:
        watcher.send("0")
        return json.loads(watcher.recv(20))["hubs"]["prices"]["dropped"]


def test_a_slow_reader_gets_the_newest_prices_and_a_fast_one_gets_all(port) -> None:
    url = f"ws://127.0.0.1:{port}/dashboard/prices/latest"
    before = dropped_prices(port)
    with connect(url, proxy=None) as fast, connect(f"{url}/slow", proxy=None) as slow:
        assert json.loads(fast.recv(20))["rate"] == 5000
        assert json.loads(slow.recv(20))["slow_rate"] == 3000
        numbers: dict[int, int] = {}
        for _ in range(20_000):
            symbol, _, number, _ = json.loads(fast.recv(20))
            assert number == numbers.get(symbol, number - 1) + 1
            numbers[symbol] = number
        received_slowly: dict[int, int] = {}
        for _ in range(300):
            symbol, _, number, _ = json.loads(slow.recv(20))
            assert number > received_slowly.get(symbol, 0)
            received_slowly[symbol] = number
        after = dropped_prices(port)
    assert after["replaced"] - before["replaced"] > 10_000
    assert all(after[reason] == before[reason] for reason in ("oldest", "newest", "slow"))


@pytest.mark.long
@pytest.mark.parametrize(("policy", "reason"), [("drop_oldest", "oldest"), ("drop_newest", "newest")])
def test_another_policy_drops_prices_that_a_slow_reader_would_get_late(port, policy, reason) -> None:
    with (
        connect(f"ws://127.0.0.1:{port}/dashboard/prices/{policy}/slow", proxy=None) as slow,
        connect(f"ws://127.0.0.1:{port}/dashboard/statistics", proxy=None) as watcher,
    ):
        reader = json.loads(slow.recv(20))["reader"]
        dropped = 0
        while dropped < 1_000:
            watcher.send(str(reader))
            answer = json.loads(watcher.recv(20))
            dropped = answer["hubs"]["prices"]["dropped"][reason]
        assert answer["waiting"] > 50_000


def test_a_slow_reader_that_must_not_miss_a_price_is_closed(port) -> None:
    with connect(f"ws://127.0.0.1:{port}/dashboard/prices/close/slow", proxy=None) as slow:
        with pytest.raises(ConnectionClosedError) as closed:
            while True:
                slow.recv(20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


def test_a_policy_that_does_not_exist_is_refused(port) -> None:
    with connect(f"ws://127.0.0.1:{port}/dashboard/prices/nonsense", proxy=None) as reader:
        with pytest.raises(ConnectionClosedError) as closed:
            reader.recv(20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_the_feed_stops_with_its_last_reader_and_starts_with_the_next(port) -> None:
    url = f"ws://127.0.0.1:{port}/dashboard/"
    for _ in range(2):
        with connect(f"{url}prices/close", proxy=None) as reader:
            for _ in range(100):
                reader.recv(20)
        with connect(f"{url}statistics", proxy=None) as watcher:
            cluster = None
            while cluster != 0:
                watcher.send("0")
                cluster = json.loads(watcher.recv(20))["hubs"]["prices"]["rooms"]


def test_a_room_keeps_its_newest_messages_and_a_new_process_goes_on_counting(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import chat_history

    monkeypatch.setattr(chat_history, "KEPT_MESSAGES", 10)
    monkeypatch.setattr(chat_history, "MAX_ROOMS", 2)
    file: Path = tmp_path / "chat.sqlite3"
    with closing(chat_history.History(file)) as history:
        for number in range(25):
            history.add("red", f"id-{number}", "Ada", str(number))
        history.add("blue", "id-1", "Ada", "another room has ids of its own")
        with pytest.raises(chat_history.Refused):
            history.add("green", "id-1", "Ada", "one room too many")
        epoch = history.epoch
    with closing(chat_history.History(":memory:")) as another:
        assert another.epoch != epoch
    with closing(chat_history.History(file)) as history:
        assert history.epoch == epoch
        assert [entry["number"] for entry in history.after("red", 0, 50)] == list(range(16, 26))
        assert history.add("red", "id-24", "Ada", "24") == (history.after("red", 24, 1)[0], False)
        entry, is_new = history.add("red", "id-25", "Ada", "25")
        assert (entry["number"], is_new) == (26, True)
