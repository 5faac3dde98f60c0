"""The HTTP API and rooms with history or presence, over each broker that keeps them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.publisher.test_http_api import TOKEN, client_of
from tests.support.broker_node import until
from tests.support.history_nodes import ROOM, history_node
from tests.support.history_nodes import client_of as history_client
from tests.support.redis_engine import RedisEngine, running_engine
from tests.support.serving_hub import connected
from wshub import EventHandler, HistoryConfig, Hub
from wshub.brokers.choosing import broker_from_url
from wshub.brokers.interface import Broker
from wshub.publisher import AsyncPublisher
from wshub.publisher.http import HttpApi


def broker_of(request: pytest.FixtureRequest, kind: str, stack: contextlib.ExitStack) -> Broker | str:
    """Return a new broker; ``none`` stands for a hub that is alone."""
    if kind == "workers":
        return broker_from_url(f"workers:{request.getfixturevalue('socket_directory')}") or "none"
    if kind == "none":
        return kind
    return broker_from_url(stack.enter_context(running_engine(kind)).url) or "none"


@contextlib.asynccontextmanager
async def api_of(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[tuple[Hub, httpx.AsyncClient]]:
    """Yield a hub with the rooms ``kept`` and ``here``, and a client of its API."""
    with contextlib.ExitStack() as stack:
        hub = Hub(broker=broker_of(request, kind, stack))
        hub.configure_room("kept*", history=HistoryConfig(size=20))
        if kind != "workers":
            hub.configure_room("here", presence=True)
        async with hub, client_of(HttpApi(hub, tokens=[TOKEN])) as api:
            await hub.broker_started()
            yield hub, api


histories = pytest.mark.parametrize("kind", ["none", "workers", "redis", "valkey"])
presences = pytest.mark.parametrize("kind", ["none", "redis", "valkey"])


@histories
async def test_the_history_of_a_room_is_read_page_by_page(kind: str, request: pytest.FixtureRequest) -> None:
    async with api_of(request, kind) as (_, api):
        empty = (await api.get("/history", params={"room": "kept"})).json()
        assert (empty["publications"], empty["gap"], empty["next"]) == ([], "", None)
        for number in range(15):
            await api.post("/publish", json={"room": "kept", "text": str(number), "publisher": "ann"})
        for reverse, expected in (("false", list(range(1, 16))), ("true", list(range(15, 0, -1)))):
            offsets: list[int] = []
            pages = 0
            page: Any = {"next": {}}
            while page["next"] is not None:
                place = {"since": page["next"]["offset"], "epoch": page["next"]["epoch"]} if page["next"] else {}
                response = await api.get("/history", params={"room": "kept", "limit": 4, "reverse": reverse, **place})
                assert response.status_code == 200
                page = response.json()
                assert page["position"] == {"offset": 15, "epoch": empty["position"]["epoch"]}
                offsets += [found["offset"] for found in page["publications"]]
                pages += 1
            assert offsets == expected
            assert pages == 4
        first = (await api.get("/history", params={"room": "kept", "limit": 1})).json()["publications"][0]
        assert (first["text"], first["publisher"], first["time"] > 1_700_000_000) == ("0", "ann", True)
        # Some messages are trimmed by now.
        for number in range(15, 30):
            await api.post("/publish", json={"room": "kept", "base64": base64.b64encode(bytes([number])).decode()})
        place = {"room": "kept", "since": 2, "epoch": empty["position"]["epoch"]}
        page = (await api.get("/history", params=place)).json()
        assert page["gap"] == "trimmed"
        assert [found["offset"] for found in page["publications"]] == list(range(11, 31))
        assert base64.b64decode(page["publications"][-1]["base64"]) == bytes([29])
        page = (await api.get("/history", params={**place, "epoch": "another"})).json()
        assert page["gap"] == "epoch"
        assert (await api.get("/history", params={"room": "kept", "limit": 0})).json()["publications"] == []


@histories
async def test_a_message_with_an_idempotency_key_is_stored_once(kind: str, request: pytest.FixtureRequest) -> None:
    async with api_of(request, kind) as (hub, api):
        body = {"room": "kept", "text": "once", "idempotency_key": "order 7"}
        responses = await asyncio.gather(*(api.post("/publish", json=body) for _ in range(5)))
        answers = [response.json() for response in responses]
        assert len({(found["position"]["offset"], found["position"]["epoch"]) for found in answers}) == 1
        assert sorted(found["is_duplicate"] for found in answers) == [False, True, True, True, True]
        rooms = {"rooms": ["kept", "kept too", "lobby"], "text": "to all", "idempotency_key": "order 8"}
        for is_duplicate in (False, True):
            response = await api.post("/publish_to_rooms", json=rooms)
            assert response.status_code == 207
            results = response.json()["results"]
            assert [found.get("is_duplicate") for found in results] == [is_duplicate, is_duplicate, None]
            assert [found["position"]["offset"] for found in results[:2]] == [2, 1]
            assert results[2]["error"]["code"] == "no_history"
        assert len((await hub.history("kept")).publications) == 2
        batch = {"commands": [{"command": "publish", **body}, {"command": "publish", **body, "room": "lobby"}]}
        response = await api.post("/batch", json=batch)
        assert response.json()["results"][0]["is_duplicate"]
        assert response.json()["results"][1]["error"]["code"] == "no_history"
        response = await api.post("/publish", json={**body, "room": "lobby"})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "no_history")
        assert "leave the key out" in response.json()["error"]["message"]


async def test_members_get_what_the_api_of_a_publisher_stores(redis_engine: RedisEngine) -> None:
    publisher = AsyncPublisher(redis_engine.url, histories={ROOM: HistoryConfig()})
    broker = broker_from_url(redis_engine.url)
    assert broker is not None
    async with history_node(broker) as node, history_client(node) as client:
        async with client_of(HttpApi(publisher, tokens=[TOKEN])) as api:
            published = []
            one, two = secrets.token_hex(4), secrets.token_hex(4)
            for key in (one, one, two):
                body = {"room": ROOM, "text": f"key {key}", "idempotency_key": key}
                published.append((await api.post("/publish", json=body)).json())
            assert [found["is_duplicate"] for found in published] == [False, True, False]
            response = await api.post("/publish", json={"room": "lobby", "text": "x", "idempotency_key": "1"})
            assert response.json()["error"]["code"] == "no_history"
            for path in ("history", "presence", "presence_counts"):
                response = await api.get(f"/{path}", params={"room": ROOM})
                assert (response.status_code, response.json()["error"]["code"]) == (501, "needs_hub")
        await until(lambda: client.data == [f"key {one}", f"key {two}"])
        assert client.offsets[0] == (published[0]["position"]["epoch"], published[0]["position"]["offset"])
    await publisher.close()


@presences
async def test_the_members_of_a_room_are_read_page_by_page(kind: str, request: pytest.FixtureRequest) -> None:
    numbers = iter(range(100))

    def opened(connection: Any) -> None:
        number = next(numbers)
        connection.user = f"user {number % 10}" if number < 20 else None
        connection.join("here", info={"number": number})

    async with api_of(request, kind) as (hub, api), hub.serve("127.0.0.1", 0, EventHandler(on_open=opened)) as server:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(25):
                await stack.enter_async_context(connected(f"ws://127.0.0.1:{server.port}/"))
            async with asyncio.timeout(10):
                while (await hub.presence_counts("here")).connections < 25:
                    await asyncio.sleep(0.01)
            response = await api.get("/presence_counts", params={"room": "here"})
            assert response.json() == {"rooms": {"here": {"connections": 25, "users": 15}}}
            members: list[Any] = []
            cursor, is_first = "", True
            while cursor or is_first:
                is_first = False
                page = (await api.get("/presence", params={"room": "here", "limit": 10, "cursor": cursor})).json()
                members += page["members"]
                cursor = page["cursor"]
            assert sorted(member["info"]["number"] for member in members) == list(range(25))
            assert {member["user"] for member in members} == {f"user {number}" for number in range(10)} | {None}
            assert all(set(member) == {"node", "connection", "user", "info"} for member in members)
        for wrong in ("x", "-1", "1 "):
            response = await api.get("/presence", params={"room": "here", "cursor": wrong})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
            assert "cursor" in response.json()["error"]["message"]


async def test_rooms_that_keep_nothing_are_told_apart() -> None:
    hub = Hub(broker="none")
    hub.configure_room("kept", history=HistoryConfig())
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        for path, room, code in (
            ("history", "lobby", "no_history"),
            ("presence", "kept", "no_presence"),
            ("presence_counts", "lobby", "no_presence"),
        ):
            response = await api.get(f"/{path}", params={"room": room})
            assert (response.status_code, response.json()["error"]["code"]) == (404, code)
            assert room in response.json()["error"]["message"]
        for wrong in ({"since": 1}, {"epoch": "abc"}):
            response = await api.get("/history", params={"room": "kept", **wrong})
            assert response.status_code == 400
            assert "together" in response.json()["error"]["message"]


async def test_the_questions_need_a_token_where_the_api_is_mounted() -> None:
    hub = Hub(broker="none")
    hub.configure_room("kept", history=HistoryConfig(), presence=True)
    application = Starlette(routes=[Mount("/internal/api", HttpApi(hub, tokens=[TOKEN]))])
    async with hub, client_of(application) as api:
        for path in ("history", "presence", "presence_counts"):
            place = f"/internal/api/{path}?room=kept"
            assert (await api.get(place)).status_code == 200
            assert (await api.get(place, headers={"authorization": "Bearer another"})).status_code == 401


async def test_an_engine_that_is_full_or_away_is_told(own_engine: RedisEngine) -> None:
    hub = Hub(broker=broker_from_url(own_engine.url))
    hub.configure_room("kept", history=HistoryConfig())
    hub.configure_room("here", presence=True)
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        await hub.broker_started()
        body = {"room": "kept", "text": "x"}
        assert (await api.post("/publish", json=body)).status_code == 200
        own_engine.command("CONFIG", "SET", "maxmemory", "1")
        response = await api.post("/publish", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "broker_refused")
        own_engine.command("CONFIG", "SET", "maxmemory", "0")
        own_engine.stop()
        async with asyncio.timeout(10):
            while hub.health().ok:
                await asyncio.sleep(0.01)
        for path, room in (("history", "kept"), ("presence", "here"), ("presence_counts", "here")):
            response = await api.get(f"/{path}", params={"room": room})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "broker_unavailable")
