"""The HTTP API: in front of a hub with clients, and in front of a publisher without one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.free_ports import free_port
from tests.support.serving_hub import connected
from wshub import ConfigurationError, EventHandler, Hub, MisuseError
from wshub.brokers.memory import MemoryBroker, MemoryEngine
from wshub.brokers.workers import WorkersBroker
from wshub.publisher import AsyncPublisher, Publisher
from wshub.publisher.http import HttpApi

TOKEN, NEW_TOKEN = "token-of-the-tests", "another-token-of-the-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def client_of(application: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, **{"base_url": "http://api", "headers": HEADERS, **options})


@contextlib.asynccontextmanager
async def serving(hub: Hub) -> AsyncIterator[Any]:
    """Serve a hub with one client, who is in ``lobby`` and ``kitchen``, and is the user ``ann``."""

    def opened(connection: Any) -> None:
        connection.user = "ann"
        connection.join("lobby")
        connection.join("kitchen")

    async with hub, hub.serve("127.0.0.1", 0, EventHandler(on_open=opened)) as server:
        await hub.broker_started()
        async with connected(f"ws://127.0.0.1:{server.port}/") as client:
            await (await client.ping())
            yield client


@contextlib.asynccontextmanager
async def api_and_client(kind: str, directory: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Yield a client of the API, and the WebSocket client of a hub: the hub of the API, or one that it publishes to."""
    hub = Hub(broker=WorkersBroker(directory))
    async with serving(hub) as client:
        publisher = AsyncPublisher(f"workers:{directory}")
        try:
            async with client_of(HttpApi(hub if kind == "hub" else publisher, tokens=[TOKEN])) as api:
                yield api, client
        finally:
            await publisher.close()


both = pytest.mark.parametrize("kind", ["hub", "publisher"])


@both
async def test_each_command_reaches_its_clients(kind: str, socket_directory: Path) -> None:
    async with api_and_client(kind, socket_directory) as (api, client):
        receivers = 0 if kind == "hub" else 1
        for path, body in (
            ("publish", {"room": "lobby", "text": "hello"}),
            ("publish_to_all", {"json": {"ä": [1, None]}}),
            ("send_to_user", {"user": "ann", "base64": base64.b64encode(b"\0\xff").decode()}),
        ):
            response = await api.post(f"/{path}", json=body)
            assert (response.status_code, response.json()) == (200, {"receivers": receivers})
        assert [await client.recv() for _ in range(3)] == ["hello", '{"ä":[1,null]}', b"\0\xff"]
        rooms = ["lobby", "empty", "kitchen", "lobby"]
        response = await api.post("/publish_to_rooms", json={"rooms": rooms, "text": "twice"})
        assert [result["room"] for result in response.json()["results"]] == ["lobby", "empty", "kitchen"]
        assert [await client.recv() for _ in range(2)] == ["twice", "twice"]
        # The options of a message are those of publish().
        body = {"room": "lobby", "text": "price", "slow_consumer": "latest", "key": "EUR", "compress": False}
        assert (await api.post("/publish", json=body)).status_code == 200
        assert await client.recv() == "price"
        await api.post("/disconnect_user", json={"user": "ben"})
        response = await api.post("/disconnect_user", json={"user": "ann", "code": 4000, "reason": "bye"})
        assert (response.status_code, response.json()) == (200, {"done": True})
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")


@both
async def test_the_commands_of_a_batch_are_carried_out_in_their_order(kind: str, socket_directory: Path) -> None:
    async with api_and_client(kind, socket_directory) as (api, client):
        commands: list[Any] = [{"command": "publish", "room": "lobby", "text": str(number)} for number in range(100)]
        commands.insert(50, {"command": "send_to_user", "user": "ann", "json": {}})
        response = await api.post("/batch", json={"commands": commands})
        assert response.status_code == 200
        assert len(response.json()["results"]) == 101
        got = [await client.recv() for _ in range(101)]
        assert [text for text in got if text != "{}"] == [str(number) for number in range(100)]
        wrong: list[Any] = [
            {"command": "publish", "room": "lobby", "text": "one"},
            {"command": "publish", "text": "no room"},
            {"command": "shut_down"},
            {"room": "lobby"},
            7,
            {"command": ["publish"]},
            {"command": "disconnect_user", "user": "ben", "code": 1006},
            {"command": "publish", "room": "lobby", "text": "two"},
        ]
        response = await api.post("/batch", json={"commands": wrong})
        assert response.status_code == 207
        results = response.json()["results"]
        assert ["error" in result for result in results] == [False, *[True] * 6, False]
        assert results[1]["error"] == {"code": "invalid_request", "message": "commands[1] needs the field 'room'"}
        assert [await client.recv() for _ in range(2)] == ["one", "two"]
        assert (await api.post("/batch", json={"commands": []})).json() == {"results": []}


async def test_a_hub_answers_questions(socket_directory: Path) -> None:
    other = Hub(broker=WorkersBroker(socket_directory, several_in_process=True))
    hub = Hub(broker=WorkersBroker(socket_directory, several_in_process=True))
    async with serving(hub), serving(other), client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        async with asyncio.timeout(10):
            while len(await hub.nodes()) < 2:
                await asyncio.sleep(0.01)
        response = await api.get("/room_counts", params={"room": ["lobby", "kitchen", "empty", "lobby"]})
        assert response.json() == {"rooms": {"lobby": 2, "kitchen": 2, "empty": 0}}
        nodes = (await api.get("/nodes")).json()["nodes"]
        assert (nodes[0]["hub"], nodes[0]["connections"]) == ("hub", 1)
        assert len(nodes) == 2
        assert set(nodes[0]) == {
            *("id", "hub", "host", "pid", "started_at", "connections", "heard_ms", "hears_this_node"),
        }
        for query in ("", "?room=" + "&room=".join(map(str, range(101)))):
            assert (await api.get(f"/room_counts{query}")).status_code == 400


async def test_a_publisher_says_that_questions_need_a_hub(socket_directory: Path) -> None:
    async with api_and_client("publisher", socket_directory) as (api, _):
        for path in ("/nodes", "/room_counts?room=lobby"):
            response = await api.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (501, "needs_hub")


@both
async def test_health_needs_no_token(kind: str, socket_directory: Path) -> None:
    async with api_and_client(kind, socket_directory) as (api, _):
        async with asyncio.timeout(10):
            while (response := await api.get("/health", headers={"Authorization": ""})).status_code != 200:
                assert response.json() == {"ok": False, "broker": "starting"}
                await asyncio.sleep(0.01)
        assert response.json() == {"ok": True, "broker": "connected"}
        assert (await api.head("/health")).status_code == 200


async def test_the_health_of_a_hub_without_a_broker() -> None:
    hub = Hub(broker="none")
    async with client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        async with serving(hub):
            assert (await api.get("/health")).json() == {"ok": True, "broker": None}
            assert (await api.post("/publish", json={"room": "lobby", "text": "x"})).json() == {"receivers": 0}
        assert (await api.get("/health")).status_code == 503
        response = await api.post("/publish", json={"room": "lobby", "text": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "broker_unavailable")


# Tokens


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}, {TOKEN}",
        "Bearer \xff\xfe",
    ],
)
async def test_another_token_is_refused(authorization: str | None) -> None:
    headers = {"authorization": authorization.encode("latin-1")} if authorization is not None else {}
    async with client_of(HttpApi(Hub(broker="none"), tokens=[TOKEN]), headers=headers) as api:
        for method, path in (("POST", "/publish"), ("POST", "/batch"), ("GET", "/nodes"), ("GET", "/room_counts")):
            response = await api.request(method, path, content=b"{")
            assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {NEW_TOKEN}", f"BEARER {NEW_TOKEN} "])
async def test_each_of_several_tokens_is_accepted(authorization: str) -> None:
    hub = Hub(broker="none")
    api_of_hub = HttpApi(hub, tokens=[NEW_TOKEN, TOKEN])
    async with hub, client_of(api_of_hub, headers={"authorization": authorization}) as api:
        assert (await api.get("/nodes")).status_code == 200


@pytest.mark.parametrize("tokens", [[], "a-single-string-as-token", ["short"], [TOKEN, "with spaces in between"], [7]])
def test_a_token_that_can_be_guessed_or_cannot_be_sent_is_refused(tokens: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        HttpApi(Hub(broker="none"), tokens=tokens)
    assert "with spaces" not in str(raised.value)
    assert "a-single-string" not in str(raised.value)


# Requests


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("\xff", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("9" * 10_000, "no JSON"),
        ('{"room": "a", "json": NaN}', "NaN"),
        ('{"room": "a", "json": [1e999]}', "too large"),
        ("[]", "type object"),
        ("{}", "'room'"),
        ('{"room": "a"}', "one of the fields text, json, base64"),
        ('{"room": "a", "text": "x", "json": 1}', "one of the fields"),
        ('{"room": 7, "text": "x"}', "the field 'room' must be of the type string"),
        ('{"rom": "a", "text": "x"}', "'rom'"),
        ('{"room": "a", "text": "x", "slow_consumer": "no"}', "close, drop_newest"),
        ('{"room": "a", "text": "x", "compress": 1}', "boolean"),
        ('{"room": "a", "text": null}', "'text'"),
        ('{"room": "a", "base64": "?"}', "no base64"),
        ('{"room": "a", "base64": "ä"}', "no base64"),
        ('{"room": "a", "text": "\\ud800"}', "cannot be sent"),
        ('{"room": "a", "json": "\\ud800"}', "cannot be sent"),
    ],
)
@both
async def test_a_wrong_body_is_refused_with_what_is_wrong(
    kind: str, body: str, message: str, socket_directory: Path
) -> None:
    target = Hub(broker="none") if kind == "hub" else AsyncPublisher(f"workers:{socket_directory}")
    async with client_of(HttpApi(target, tokens=[TOKEN])) as api:
        response = await api.post("/publish", content=body.encode("latin-1" if body == "\xff" else "utf-8"))
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
        assert message in response.json()["error"]["message"]
        assert response.headers["content-type"] == "application/json"
    await target.close()


@pytest.mark.parametrize("body", ["[]", "{}", '{"commands": 7}', '{"commands": [], "more": 1}'])
async def test_a_wrong_batch_is_refused(body: str) -> None:
    async with client_of(HttpApi(Hub(broker="none"), tokens=[TOKEN])) as api:
        assert (await api.post("/batch", content=body)).status_code == 400


async def test_limits_hold() -> None:
    hub = Hub(broker="none")
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN], max_body=200, max_commands=2)) as api:
        fits = json.dumps({"text": "x" * 188})
        assert (await api.post("/publish_to_all", content=fits)).status_code == 200

        async def chunks(length: int) -> AsyncIterator[bytes]:
            for _ in range(length):
                yield b"x"

        for content in (fits + " ", chunks(201)):
            response = await api.post("/publish_to_all", content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
        command = {"command": "publish_to_all", "text": "x"}
        assert (await api.post("/batch", json={"commands": [command] * 2})).status_code == 200
        assert (await api.post("/batch", json={"commands": [command] * 3})).status_code == 400
        rooms_in_batch = {"command": "publish_to_rooms", "rooms": ["a", "b"], "text": "x"}
        assert (await api.post("/batch", json={"commands": [rooms_in_batch]})).status_code == 200
        assert (await api.post("/batch", json={"commands": [rooms_in_batch, command]})).status_code == 400
        for rooms, status in ((["a", "b"], 200), (["a", "b", "c"], 400), ([], 400)):
            assert (await api.post("/publish_to_rooms", json={"rooms": rooms, "text": "x"})).status_code == status


async def test_other_paths_and_methods_get_json_too() -> None:
    async with client_of(HttpApi(Hub(broker="none"), tokens=[TOKEN])) as api:
        response = await api.get("/publish")
        assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
        response = await api.post("/nowhere")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


# Failures


async def test_a_broker_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wshub.publisher.session.START_TIMEOUT", 0.1)
    publisher = AsyncPublisher(f"redis://127.0.0.1:{free_port()}")
    async with client_of(HttpApi(publisher, tokens=[TOKEN])) as api:
        for path, body in (("publish", {"room": "a", "text": "x"}), ("disconnect_user", {"user": "ann"})):
            response = await api.post(f"/{path}", json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "broker_unavailable")
            assert response.headers["retry-after"] == "1"
        assert (await api.get("/health")).status_code == 503
        response = await api.post("/publish_to_rooms", json={"rooms": ["a", "b"], "text": "x"})
        assert response.status_code == 207
        assert [result["error"]["code"] for result in response.json()["results"]] == ["broker_unavailable"] * 2
    await publisher.close()


async def test_an_answer_of_the_broker_that_is_lost_is_told() -> None:
    engine = MemoryEngine()
    broker = MemoryBroker(engine)
    hub = Hub(broker=broker)
    async with serving(hub) as client, client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        engine.freeze()
        posting = asyncio.create_task(api.post("/publish", json={"room": "lobby", "text": "x"}))
        # The connections of the hub get it at once.
        assert await client.recv() == "x"
        engine.cut(broker)
        engine.heal()
        response = await posting
        assert (response.status_code, response.json()["error"]["code"]) in (
            (504, "broker_uncertain"),
            (503, "broker_unavailable"),
        )


async def test_a_failure_of_the_program_is_logged_and_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Hub, "publish", fail)
    with caplog.at_level(logging.ERROR, "wshub.server"):
        async with client_of(HttpApi(Hub(broker="none"), tokens=[TOKEN])) as api:
            response = await api.post("/publish", json={"room": "a", "text": "x"})
            assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
            batch = {"commands": [{"command": "publish_to_all", "text": "x"}]}
            assert (await api.post("/batch", json=batch)).json()["results"][0]["error"]["code"] == "internal"
    assert "secret" not in response.text
    assert caplog.text.count("ZeroDivisionError: a secret") == 2


@pytest.mark.parametrize("target", [None, "redis://localhost", Publisher("redis://localhost")])
def test_another_target_is_refused(target: Any) -> None:
    with pytest.raises(MisuseError, match="a Hub or an AsyncPublisher"):
        HttpApi(target, tokens=[TOKEN])


@pytest.mark.parametrize("limits", [{"max_body": 0}, {"max_commands": True}, {"max_body": "1"}])
def test_a_wrong_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        HttpApi(Hub(broker="none"), tokens=[TOKEN], **limits)


# Serving


async def test_it_can_be_mounted(socket_directory: Path) -> None:
    hub = Hub(broker="none")
    application = Starlette(routes=[Mount("/internal/api", HttpApi(hub, tokens=[TOKEN]))])
    async with serving(hub) as client, client_of(application) as api:
        response = await api.post("/internal/api/publish", json={"room": "lobby", "text": "mounted"})
        assert response.status_code == 200
        assert await client.recv() == "mounted"
        document = (await api.get("/internal/api/openapi.json")).json()
        assert document["servers"] == [{"url": "/internal/api"}]


async def test_it_closes_its_publisher_when_the_server_ends(socket_directory: Path) -> None:
    publisher = AsyncPublisher(f"workers:{socket_directory}")
    api = HttpApi(publisher, tokens=[TOKEN])
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    outgoing: asyncio.Queue[Any] = asyncio.Queue()
    lifespan = asyncio.create_task(api({"type": "lifespan"}, incoming.get, outgoing.put))
    await incoming.put({"type": "lifespan.startup"})
    assert (await outgoing.get())["type"] == "lifespan.startup.complete"
    assert publisher._session is not None
    await incoming.put({"type": "lifespan.shutdown"})
    assert (await outgoing.get())["type"] == "lifespan.shutdown.complete"
    await lifespan
    assert publisher._session is None
    assert len(asyncio.all_tasks()) == 1


def test_no_repr_has_a_token() -> None:
    assert TOKEN not in repr(HttpApi(Hub(broker="none"), tokens=[TOKEN]))
