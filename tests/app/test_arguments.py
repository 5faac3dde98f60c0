"""Arguments of an App and of ASGI messages: subclasses of str are accepted, and invalid values are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import uvicorn
from click.testing import CliRunner

from tests.support.odd_strings import STRINGS, Lobby, Odd
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import ConfigurationError, MisuseError
from wshub.app import App, Context
from wshub.cli.command_line import main
from wshub.serving.listening import bind_address
from wshub.uvicorn.running import run as serve


@pytest.fixture
def uvicorn_run(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace ``uvicorn.run`` with a function that only records its options."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: calls.append(options))
    return calls


@pytest.mark.parametrize("text", STRINGS, ids=lambda text: type(text).__name__)
async def test_a_str_of_any_subclass_is_one_in_the_messages_of_an_asgi_application(http, text) -> None:
    async def application(scope, receive, send) -> None:
        await receive()
        headers = [(b"x-name", b"a")]
        await send({"type": Odd("websocket.accept"), "subprotocol": text, "headers": headers})
        await send({"type": Odd("websocket.send"), "text": text})
        await send({"type": "websocket.send", "text": text + "!" if type(text) is not Odd else Odd("lobby!")})
        await send({"type": Odd("websocket.close"), "code": 4000, "reason": text})

    async with (
        listening(application, http) as address,
        connected(f"ws://{address}/", subprotocols=["lobby"]) as client,
    ):
        assert client.subprotocol == "lobby"
        assert [await client.recv(), await client.recv()] == ["lobby", "lobby!"]
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4000, "lobby")


async def test_a_str_of_a_subclass_is_one_in_a_response_and_in_routes() -> None:
    app = App()
    hub = app.enable_websocket()

    @app.get(Odd("/page"))
    def page(ctx: Context) -> None:
        ctx.response.set_header(Odd("X-Name"), Odd("a"))
        ctx.response.send(Odd("page"))

    @app.get("/upgrade")
    def upgrade(ctx: Context) -> None:
        connection = ctx.response.upgrade_websocket(subprotocols=[Lobby.NAME], on_message=lambda c, m: c.send(m))
        hub.join_room(connection, Lobby.NAME)

    async with listening(app) as address:
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            answer = await client.get("/page")
            assert (answer.text, answer.headers["x-name"]) == ("page", "a")
        async with connected(f"ws://{address}/upgrade", subprotocols=["lobby"]) as peer:
            assert peer.subprotocol == "lobby"
            assert hub.room_size("lobby") == 1
            await peer.send("x")
            assert await peer.recv() == "x"


def test_a_route_is_given_a_function_of_the_context() -> None:
    app = App()
    app.enable_websocket()

    def generates(ctx):
        yield

    async def generates_later(ctx):
        yield

    for method in (app.get, app.post, app.put, app.patch, app.delete):
        for function in (generates, generates_later):
            with pytest.raises(MisuseError, match="generator function"):
                method("/", function)
        with pytest.raises(MisuseError, match=r"a handler is called with \(ctx\)"):
            method("/", lambda: None)
        with pytest.raises(MisuseError, match="must be a function"):
            method("/", 5)
        with pytest.raises(ConfigurationError, match="path must be a str"):
            method(5, print)
    with pytest.raises(MisuseError, match="has no yield"):
        app.websocket("/")(generates_later)
    with pytest.raises(MisuseError, match=r"\(connection\)"):

        @app.websocket("/")
        async def nothing() -> None: ...

    assert app.router.routes == []


async def test_a_response_refuses_what_cannot_be_sent() -> None:
    refused: list[str] = []
    app = App()
    app.enable_websocket()

    @app.get("/")
    def page(ctx: Context) -> None:
        response: Any = ctx.response
        for call in (
            lambda: response.set_status(404.0),
            lambda: response.set_status(True),
            lambda: response.set_status("404"),
            lambda: response.set_header("X-Name", 5),
            lambda: response.set_header(b"X-Name", "a"),
            lambda: response.send(5),
            lambda: response.send(None),
            lambda: response.upgrade_websocket(subprotocols="chat"),
            lambda: response.upgrade_websocket(on_mesage=print),
        ):
            try:
                call()
            except (MisuseError, ConfigurationError, TypeError) as error:
                refused.append(str(error))
        response.send("page")

    async with listening(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        answer = await client.get("/")
        assert (answer.status_code, answer.text) == (200, "page")
    assert len(refused) == 9


@pytest.mark.parametrize("port", [70000, -1, True, 8080.0, "8080"])
def test_a_port_that_cannot_be_is_refused_and_nothing_is_served(uvicorn_run, port) -> None:
    with pytest.raises(ConfigurationError, match="port must be an integer from 0 to 65535"):
        App().listen(port=port)
    with pytest.raises(ConfigurationError, match="port must be an integer from 0 to 65535"):
        serve("main:app", port=port)
    assert uvicorn_run == []


def test_a_port_and_a_backlog_that_can_be_are_uvicorns(uvicorn_run) -> None:
    App().listen(port=65535, backlog=0)
    with pytest.raises(ConfigurationError, match="backlog"):
        App().listen(backlog=-1)
    assert [(call["port"], call["backlog"]) for call in uvicorn_run] == [(65535, 0)]


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "-1"], ["--backlog", "-1"]])
def test_the_command_refuses_a_port_that_cannot_be_in_one_line(uvicorn_run, arguments) -> None:
    result = CliRunner().invoke(main, ["serve", "main:app", *arguments])
    assert result.exit_code == 2
    assert f"Error: {arguments[0][2:]} must be an integer from 0" in result.output
    assert uvicorn_run == []


async def test_no_other_port_is_bound_than_the_one_that_was_given() -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 65535"):
        await bind_address("localhost", 70000)


def test_settings_of_an_app_are_those_of_a_hub() -> None:
    async def generates(request):
        yield

    with pytest.raises(ConfigurationError, match="max_connections"):
        App().enable_websocket(max_connections=5.0)
    with pytest.raises(MisuseError, match="HubConfig"):
        App().enable_websocket({"max_connections": 5})  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="generator function"):
        App().enable_websocket(on_upgrade=generates)  # type: ignore[arg-type]


async def test_handlers_of_an_app_may_await_what_queues() -> None:
    app = App()
    app.enable_websocket()

    @app.websocket("/echo")
    async def echo(connection) -> None:
        await connection.join("lobby")
        async for message in connection:
            await connection.send(message)
            await connection.close(4000)

    async with listening(app) as address, connected(f"ws://{address}/echo") as client:
        await client.send("x")
        assert await asyncio.wait_for(client.recv(), 30) == "x"
        await client.wait_closed()
        assert client.close_code == 4000
