"""A hub under FastAPI on every ASGI server: connections, handlers and limits are the same on each."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.asgi_servers import COMMANDS, serving

ORIGIN: Any = "http://ok.example"


@pytest.fixture(scope="module", params=list(COMMANDS))
def server(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def address(server: str) -> Iterator[str]:
    with serving(server) as running:
        yield running.address


def asked(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return json.load(response)


async def until(address: str, path: str, condition: Callable[[Any], bool]) -> Any:
    """Ask until the answer is the expected one. The test's time limit ends the loop."""
    while not condition(answer := asked(address, path)):
        await asyncio.sleep(0.01)
    return answer


@asynccontextmanager
async def lobby(address: str, path: str = "/ws/some%20where?x=1", **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"ws://{address}{path}", **{"origin": ORIGIN, "proxy": None, **options}) as client:
        yield client


@pytest.mark.one_loop
async def test_members_of_a_room_reach_each_other(address) -> None:
    async with lobby(address, additional_headers={"X-Name": "one"}) as one, lobby(address) as two:
        assert await one.recv() == "/ws/some where one"
        assert await two.recv() == "/ws/some where -"
        await two.send("héllo")
        assert [await one.recv(), await two.recv()] == ["héllo"] * 2
        await one.send(bytes(range(256)) * 200)
        assert [await one.recv(), await two.recv()] == [bytes(range(256)) * 200] * 2


async def test_very_many_messages_arrive_whole_and_in_order(address) -> None:
    async with lobby(address, "/accepted/me") as client:
        assert await client.recv() == "me me"
        for number in range(500):
            await client.send(f"{number}")
        assert [await client.recv() for _ in range(500)] == [f"{number}" for number in range(500)]


async def test_a_subprotocol_is_chosen(address) -> None:
    for path in ("/ws/", "/accepted/me"):
        async with lobby(address, path, subprotocols=["a", "b"]) as client:
            assert client.subprotocol == "b"


async def test_header_fields_of_the_answer_reach_the_client(address, server) -> None:
    if server in ("daphne", "granian"):
        pytest.skip(f"{server} drops the header fields of an accept message")

    async with lobby(address, "/accepted/me") as client:
        assert client.response.headers.get("X-Extra") == "yes"


async def test_an_origin_that_is_not_allowed_is_refused(address) -> None:
    for path in ("/ws/", "/accepted/me"):
        with pytest.raises(InvalidStatus) as refused:
            async with lobby(address, path, origin="http://evil.example"):
                pass
        assert refused.value.response.status_code == 403


async def code_of(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed):
        while True:
            await client.recv()
    assert client.close_code is not None
    return client.close_code


async def test_a_message_that_is_too_long_closes_with_1009(address, server) -> None:
    async with lobby(address) as client:
        await client.send(b"x" * 100_001)
        assert await code_of(client) == (4009 if server == "daphne" else 1009)


async def test_a_handler_that_fails_closes_with_1011(address, server) -> None:
    async with lobby(address) as client:
        await client.send("fail")
        assert await code_of(client) == (4011 if server == "daphne" else 1011)


async def test_the_hub_closes_with_its_code_and_reason_and_tells_on_close(address) -> None:
    async with lobby(address) as client:
        await client.send("bye")
        assert await code_of(client) == 4001
        await until(address, "/told", lambda told: any(one.startswith("4001") for one in told))


async def test_a_close_of_the_client_reaches_on_close(address, server) -> None:
    async with lobby(address, "/handled") as client:
        await client.recv()
        await client.close(4002, "why")
    code = 1006 if server == "hypercorn" else 4002
    told = await until(address, "/told", lambda told: f"after {code}" in told)
    if server not in ("hypercorn", "daphne", "granian"):
        assert "4002 why" in told


async def test_an_application_that_only_sends_notices_that_its_client_has_left(address) -> None:
    before = asked(address, "/told").count("the feed has ended")
    async with lobby(address, "/feed") as client:
        assert await client.recv() == "tick"
    await until(address, "/told", lambda told: told.count("the feed has ended") > before)


async def test_an_endpoint_that_returns_ends_its_connection(address, server) -> None:
    async with lobby(address, "/accepted/me") as client:
        await client.send("return")
        code = await code_of(client)
        assert code == 1000 or server not in ("uvicorn, wshub", "wshub serve")
    async with lobby(address, "/accepted/me") as client:
        await client.send("raise")
        code = await code_of(client)
        assert code == 1011 or server not in ("uvicorn, wshub", "wshub serve")


async def test_an_app_of_wshub_is_served_too(address) -> None:
    async with lobby(address, "/own/echo/you") as client:
        assert await client.recv() == "you"
        await client.send("there")
        assert await client.recv() == "there"


async def test_nothing_is_left_and_every_message_is_accounted_for(address) -> None:
    for _ in range(20):
        async with lobby(address) as client:
            await client.recv()
    # The client of this connection disappears without a close frame.
    vanishing = await connect(f"ws://{address}/feed", origin=ORIGIN, proxy=None)
    vanishing.transport.abort()
    await until(address, "/count", lambda count: count == {"connections": 0, "unaccounted": 0})
