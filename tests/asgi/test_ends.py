"""The ends of connections on each ASGI server: the client's view, the application's view, and the log.

``docs/topics/ends.md`` shows the same cases as tables. A case also has the ends that differ on other servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.asgi_servers import COMMANDS, Server, serving

APPLICATION = "tests.asgi.ending_application:app"
ORIGIN: Any = "http://ok.example"

UVICORN = ("uvicorn, websockets", "uvicorn, sansio", "uvicorn, wsproto")
OTHERS = (*UVICORN, "hypercorn", "granian", "daphne")
DROPPED = "1006"


@dataclass(frozen=True)
class End:
    """The expected end. ``None`` allows anything: with that server it depends on chance, or on a timeout."""

    client: str | None
    told: tuple[str, ...] | None = ()
    errors: int | None = 0


@dataclass(frozen=True)
class Case:
    """A way to serve a connection and a way to end it. ``others`` has the servers on which the end differs."""

    path: str
    end: End
    others: dict[str, End] = field(default_factory=dict)
    client: str = "waits"
    says: str | None = None
    messages: tuple[str, ...] = ()

    def on(self, server: str) -> End:
        return self.others.get(server, self.end)


LAST = ("last words",)
READY = ("ready",)


def each(servers: tuple[str, ...], end: End) -> dict[str, End]:
    return dict.fromkeys(servers, end)


def without_reason(code: int, *, told: tuple[str, ...] = (), errors: int = 0) -> dict[str, End]:
    """Return the end on daphne, which does not send the reason."""
    return {"daphne": End(f"{code}", told, errors)}


# In FastAPI, hub.accept() learns of the endpoint's end on every server.
FASTAPI = [
    Case("/fastapi/accept/returns", End("1000"), messages=LAST),
    Case("/fastapi/accept/raises", End("1011", errors=1), {"daphne": End("4011", errors=1)}, messages=LAST),
    Case("/fastapi/accept/is_cancelled", End("1011", errors=1), {"hypercorn": End("1011"), "daphne": End("4011")}),
    Case("/fastapi/accept/closes", End("4001 enough"), without_reason(4001), messages=LAST),
    Case("/fastapi/accept/raises_WebSocketException", End("4400 why"), without_reason(4400), messages=LAST),
    Case(
        "/fastapi/accept/closes_the_websocket",
        End("4401 bye"),
        without_reason(4401) | {"granian": End(None, None, None)},
        messages=LAST,
    ),
    Case("/fastapi/accept/raises_HTTPException", End("1011", errors=1), {"daphne": End("4011", errors=1)}),
    Case("/fastapi/dependency/returns", End("1000", ("torn down",)), messages=LAST),
    Case(
        "/fastapi/dependency/raises_WebSocketException",
        End("4400 why", ("torn down",)),
        without_reason(4400, told=("torn down",)),
        messages=LAST,
    ),
    Case("/fastapi/accept/fails_in_a_group", End(DROPPED), client="vanishes"),
]

# In Starlette, the server ends the connection when the endpoint ends.
STARLETTE = [
    Case(
        "/starlette/accept/returns",
        End("1000"),
        each(UVICORN, End(DROPPED)) | {"hypercorn": End("1011"), "granian": End(None, None, None)},
        messages=LAST,
    ),
    Case(
        "/starlette/accept/raises",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1)) | {"granian": End(None, None, None), "daphne": End("4011", errors=1)},
        messages=LAST,
    ),
    Case(
        "/starlette/accept/is_cancelled",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1))
        | {"hypercorn": End("1011"), "granian": End(None, None, None), "daphne": End("4011")},
    ),
    Case(
        "/starlette/accept/closes",
        End("4001 enough"),
        without_reason(4001) | {"granian": End(None, None, None)},
        messages=LAST,
    ),
    Case("/starlette/accept/closes_and_waits", End("4001 enough"), without_reason(4001), messages=LAST),
    Case(
        "/starlette/accept/raises_WebSocketException",
        End("4400 why"),
        without_reason(4400) | {"granian": End(None, None, None)},
        messages=LAST,
    ),
    Case(
        "/starlette/accept/raises_HTTPException",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1)) | {"granian": End(None, None, None), "daphne": End("1000")},
    ),
    Case(
        "/starlette/accept/fails_in_a_group",
        End(DROPPED),
        each(OTHERS, End(DROPPED, errors=1)),
        client="vanishes",
    ),
]

# A task of the endpoint has accepted the connection. The connection still ends with the endpoint.
TASKS = [
    Case("/fastapi/gather/returns", End("1000"), messages=LAST),
    Case("/fastapi/group/raises", End("1011", errors=1), {"daphne": End("4011", errors=1)}, messages=LAST),
    *(
        Case(
            f"/starlette/{way}/returns",
            End("1000"),
            each(UVICORN, End(DROPPED))
            | {"hypercorn": End("1011"), "granian": End(None, None, None), "daphne": daphne},
            messages=LAST,
        )
        for way, daphne in (("gather", End("open")), ("group", End("open")))
    ),
]

# Middleware replaces the accept message. wshub then serves over ASGI, as on other servers, and still learns of the end.
REBUILT = [
    Case(
        f"/rebuilt/accept/{end}",
        expected,
        {server: End(None, None, None) for server in OTHERS},
        messages=LAST if words else (),
    )
    for end, expected, words in (
        ("returns", End("1000"), True),
        ("raises", End("1011", errors=1), True),
        ("is_cancelled", End("1011", errors=1), False),
        ("closes", End("4001 enough"), True),
        ("raises_WebSocketException", End("4400 why"), True),
        ("raises_HTTPException", End("1011", errors=1), False),
    )
]

FAILS = End("1011 internal error", errors=1)

# The hub runs these endpoints, so it learns of their end on every server.
LIVES = [
    case
    for way in ("/starlette/life", "/own/life", "/rebuilt/life")
    for case in (
        Case(f"{way}/returns", End("1000"), messages=LAST),
        Case(f"{way}/raises", FAILS, {"daphne": End("4011", errors=1)}, messages=LAST),
        Case(f"{way}/is_cancelled", FAILS, {"daphne": End("4011", errors=1)}),
        Case(f"{way}/closes", End("4001 enough"), without_reason(4001), messages=LAST),
        Case(f"{way}/raises_WebSocketException", FAILS, {"daphne": End("4011", errors=1)}, messages=LAST),
        Case(f"{way}/fails_in_a_group", End(DROPPED), client="vanishes"),
    )
]

HANDLERS = [
    Case(
        "/starlette/asgi/x",
        End("1011 internal error", ("on_close 1011 internal error",), 1),
        {"daphne": End("4011", ("on_close 1011 internal error",), 1)},
        says="raises",
        messages=READY + LAST,
    ),
    Case(
        "/starlette/asgi/x",
        End("4001 enough", None),
        without_reason(4001, told=("on_close 4001 enough",)),
        says="closes",
        messages=READY + LAST,
    ),
]

PLAIN = [
    Case(
        "/fastapi/plain/returns",
        End("1000"),
        each(UVICORN, End(DROPPED)) | {"hypercorn": End("1011"), "granian": End("1005"), "daphne": End("open")},
        messages=LAST,
    ),
    Case(
        "/fastapi/plain/raises",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1)) | {"granian": End("1005", errors=1)},
        messages=LAST,
    ),
    Case(
        "/fastapi/plain/is_cancelled",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1))
        | {"hypercorn": End("1011"), "granian": End("1005", errors=1), "daphne": End("open")},
    ),
    Case("/fastapi/plain/closes", End("4001 enough"), without_reason(4001)),
    Case("/fastapi/plain/raises_WebSocketException", End("4400 why"), without_reason(4400)),
    Case(
        "/fastapi/plain/raises_HTTPException",
        End("1011", errors=1),
        each(UVICORN, End(DROPPED, errors=1)) | {"granian": End("1005", errors=1), "daphne": End("open")},
    ),
    Case(
        "/fastapi/plain/sends_to_a_lost_client",
        End(DROPPED),
        each(OTHERS, End(DROPPED, errors=1)),
        client="vanishes",
    ),
]


def told_by(way: str, ordinary: str, lost: str, code: int, reason: str = "") -> tuple[str, ...]:
    words = {
        "accept": lost if code == 1006 else ordinary,
        "life": lost if code == 1006 else ordinary,
        "gather": lost if code == 1006 else ordinary,
        "wait_for": lost if code == 1006 else ordinary,
        "group": lost if code == 1006 else ordinary,
        "asgi": "on_close",
        "handled": "on_close",
        "plain": "disconnect",
    }[way.rsplit("/", 1)[1]]
    first = f"{words} {code} {reason}".strip()
    return (first, "accept() returns") if way.endswith("handled") else (first,)


def closed_by_client(way: str) -> Case:
    def told(code: int, reason: str = "") -> tuple[str, ...]:
        return told_by(way, "async for ends", "ConnectionLost", code, reason)

    others = {
        "hypercorn": End("4002", told(1006)),
        "granian": End("4002", told(4002)),
        "daphne": End("1000", told(4002)),
    }
    return Case(f"{way}/receives", End("4002", told(4002, "why")), others, client="closes", messages=READY)


def lost(way: str) -> Case:
    def told(code: int) -> tuple[str, ...]:
        return told_by(way, "async for ends", "ConnectionLost", code)

    others = each(("uvicorn, sansio", "uvicorn, wsproto", "granian"), End(DROPPED, told(1005)))
    return Case(f"{way}/receives", End(DROPPED, told(1006)), others, client="vanishes", messages=READY)


WAYS = (
    "/fastapi/accept",
    "/fastapi/handled",
    "/fastapi/plain",
    "/fastapi/gather",
    "/starlette/accept",
    "/starlette/gather",
    "/starlette/wait_for",
    "/starlette/group",
    "/starlette/asgi",
    "/starlette/life",
    "/rebuilt/accept",
    "/own/life",
)
CLIENTS = [*(closed_by_client(way) for way in WAYS), *(lost(way) for way in WAYS)]

ERROR = End("HTTP 500", errors=1)
BEFORE = [
    case
    for way in ("/fastapi/before", "/starlette/before")
    for case in (
        Case(
            f"{way}/returns",
            End("HTTP 500"),
            each(UVICORN, ERROR) | {"granian": End("HTTP 403"), "daphne": End("no answer")},
        ),
        Case(f"{way}/raises", ERROR, {"granian": End("HTTP 403", errors=1)}),
        Case(
            f"{way}/is_cancelled",
            ERROR,
            {"hypercorn": End("HTTP 500"), "granian": End("HTTP 403", errors=1), "daphne": End("no answer")},
        ),
        Case(
            f"{way}/raises_HTTPException",
            End("HTTP 401"),
            {"uvicorn, sansio": End("HTTP 401", errors=1), "daphne": End("no answer")},
        ),
        Case(f"{way}/raises_WebSocketException", End("HTTP 403")),
        Case(f"{way}/is_refused", End("HTTP 403"), {"uvicorn, sansio": End("HTTP 403", errors=1)}),
    )
] + [
    Case(path, End("HTTP 401"), {"uvicorn, sansio": End("HTTP 401", errors=1), "daphne": End("no answer")})
    for path in ("/guarded/asgi/x", "/guarded/accept/returns")
]

# The client is at fault, so there is no error in the log.
NO_JSON = [
    Case(f"{way}/receives_no_JSON", End("1007 expected JSON"), others, says="{", messages=READY)
    for way, others in (
        ("/fastapi/accept", without_reason(4007)),
        ("/starlette/accept", without_reason(4007)),
        ("/rebuilt/accept", {server: End(None, None, None) for server in OTHERS}),
        ("/starlette/life", without_reason(4007)),
        ("/own/life", without_reason(4007)),
    )
]

CASES = NO_JSON + FASTAPI + STARLETTE + TASKS + REBUILT + LIVES + HANDLERS + PLAIN + CLIENTS + BEFORE

PATIENCE = 1.0
"""Seconds to wait before a connection counts as open, or a request as unanswered."""


@pytest.fixture(scope="module", params=list(COMMANDS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, APPLICATION) as running:
        yield running


def asked(server: Server, path: str) -> Any:
    with urllib.request.urlopen(f"http://{server.address}{path}", timeout=10) as response:
        return json.load(response)


async def end_of(server: Server, case: Case, received: list[str]) -> str:
    """Return how a connection ends, as its client sees it."""
    origin: Any = "http://evil.example" if case.path.endswith("is_refused") else ORIGIN
    patient = "open" not in str(case.on(server.name).client) and case.on(server.name).client != "no answer"
    try:
        client = await connect(
            f"ws://{server.address}{case.path}",
            origin=origin,
            proxy=None,
            open_timeout=10 if patient else PATIENCE,
        )
    except InvalidStatus as refused:
        return f"HTTP {refused.response.status_code}"
    except TimeoutError:
        return "no answer"
    try:
        return await end_of_open(client, case, received, 10 if patient else PATIENCE)
    except TimeoutError:
        return "open"
    finally:
        client.transport.abort()


async def end_of_open(client: ClientConnection, case: Case, received: list[str], patience: float) -> str:
    if case.says is not None:
        await client.send(case.says)
    try:
        if case.client != "waits":
            received.append(str(await client.recv()))
        if case.client == "closes":
            await client.close(4002, "why")
            return str(client.close_code)
        if case.client == "vanishes":
            client.transport.abort()
        while True:
            received.append(str(await asyncio.wait_for(client.recv(), patience)))
    except ConnectionClosed:
        return f"{client.close_code} {client.close_reason}".strip()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path[1:]} {case.says or ''} {case.client}")
def test_a_connection_ends_as_the_table_says(server, case) -> None:
    async def scenario() -> None:
        expected = case.on(server.name)
        if expected.client is None:
            pytest.skip(f"on {server.name} this end depends on chance")
        asked(server, "/begin")
        received: list[str] = []
        client = await end_of(server, case, received)
        assert client == expected.client
        if case.client != "vanishes":
            assert tuple(received) == case.messages
        await settled(server, expected)

    asyncio.run(scenario())


async def settled(server: Server, expected: End) -> None:
    """Wait until the application has all expected events, the log all errors, and no connection is left."""
    state: Any = None
    for _ in range(300):
        state = asked(server, "/state")
        told_all = expected.told is None or len(state["told"]) >= len(expected.told)
        if told_all and state["connections"] == 0 and len(state["logged"]) >= (expected.errors or 0):
            break
        await asyncio.sleep(0.01)
    assert state["connections"] == 0
    assert expected.told is None or tuple(state["told"]) == expected.told
    assert expected.errors is None or len(state["logged"]) == expected.errors, state["logged"]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_server_that_stops_closes_with_its_code(name) -> None:
    """wshub sends 1001 in every way to serve. Granian and daphne send no close frame."""
    if name == "hypercorn" and sys.version_info >= (3, 12):
        # It waits for Server.wait_closed(), which returns once all clients have gone. It closes none of them before.
        pytest.skip("hypercorn does not stop while a client is connected, on Python 3.12 and later")
    code = {"hypercorn": 1011, "granian": 1006, "daphne": 1006} | dict.fromkeys(UVICORN, 1012)
    paths = ("/fastapi/accept/receives", "/starlette/asgi/x", "/starlette/life/receives", "/fastapi/plain/receives")

    async def scenario(server: Server) -> None:
        clients = [await connect(f"ws://{server.address}{path}", origin=ORIGIN, proxy=None) for path in paths]
        for client in clients:
            assert await client.recv() == "ready"
        os.kill(server.process.pid, signal.SIGTERM)
        for client in clients:
            await client.wait_closed()
            assert client.close_code == code.get(name, 1001)

    with serving(name, APPLICATION) as server:
        asyncio.run(asyncio.wait_for(scenario(server), 60))
