"""An App on uvicorn: Starlette serves HTTP, and the hub takes over WebSockets."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
import websockets
from uvicorn.protocols.utils import ClientDisconnected

from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import EventHandler, Handshake, MisuseError
from wshub.app import App, Context


def make_app() -> App:
    app = App()
    hub = app.enable_websocket(max_message_size=1 << 23)

    @app.get("/")
    def home(ctx: Context) -> None:
        ctx.response.set_header("Content-Type", "text/html")
        ctx.response.send(f"hello {ctx.request.query_params.get('name', 'you')}")

    @app.post("/items/{number:int}")
    async def item(ctx: Context) -> None:
        body = await ctx.request.json()
        ctx.response.set_status(201)
        ctx.response.send_json({"number": ctx.request.path_params["number"], "body": body})

    @app.websocket("/echo/{name}")
    async def echo(connection) -> None:
        connection.send(f"hello {connection.path_params['name']} at {connection.path}")
        async for message in connection:
            connection.send(message)

    def seed_chat(ctx: Context) -> None:
        if not Handshake.validate_request(ctx):
            ctx.response.set_status(400)
            return
        connection = hub.register(
            EventHandler(
                on_open=lambda connection: hub.broadcast_to_room("general", "A new user joined!"),
                on_message=lambda connection, message: hub.broadcast_to_room("general", message.data),
                on_close=lambda connection, code, reason: hub.broadcast_to_room("general", "A user left"),
            )
        )
        connection.metadata["user_id"] = ctx.request.get_header("X-User-Id") or "anonymous"
        hub.join_room(connection, "general")

    app.router.get("/chat", seed_chat)

    @app.get("/upgrade")
    def upgrade(ctx: Context) -> None:
        ctx.response.set_header("X-Extra", "yes")
        ctx.response.upgrade_websocket(
            subprotocols=["v1"], on_message=lambda connection, message: connection.send(message)
        )

    @app.get("/denied")
    def denied(ctx: Context) -> None:
        ctx.response.set_status(401)
        ctx.response.set_header("WWW-Authenticate", "Bearer")
        ctx.response.send("who are you?")

    @app.get("/changes-its-mind")
    def changes_its_mind(ctx: Context) -> None:
        hub.join_room(hub.register(EventHandler()), "ghosts")
        ctx.response.set_status(403)

    @app.get("/too-late")
    def too_late(ctx: Context) -> None:
        app.late = asyncio.create_task(register_later())

    async def register_later() -> None:
        await asyncio.sleep(0)
        hub.join_room(hub.register(EventHandler()), "ghosts")

    @app.get("/broken")
    def broken(ctx: Context) -> None:
        hub.join_room(hub.register(EventHandler()), "ghosts")
        raise RuntimeError("broken on purpose")

    return app


async def test_a_request_cannot_be_registered_once_its_handler_has_returned(http) -> None:
    app = make_app()
    async with listening(app, http) as address:
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://{address}/too-late", proxy=None)
        with pytest.raises(MisuseError, match="has returned"):
            await app.late
        assert app.ws_hub.connection_count == 0


async def test_http_is_served_beside_websockets(http) -> None:
    async with listening(make_app(), http) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        answer = await client.get("/", params={"name": "Ada"})
        assert (answer.status_code, answer.text) == (200, "hello Ada")
        assert answer.headers["content-type"].startswith("text/html")
        answer = await client.post("/items/7", json={"a": 1})
        assert (answer.status_code, answer.json()) == (201, {"number": 7, "body": {"a": 1}})
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/chat")).status_code == 400
        assert (await client.get("/upgrade")).status_code == 426


async def test_a_taken_over_connection_carries_megabytes_and_very_many_messages(http) -> None:
    async with (
        listening(make_app(), http) as address,
        connected(f"ws://{address}/echo/Ada", max_size=None) as client,
    ):
        assert await client.recv() == "hello Ada at /echo/Ada"
        big = bytes(range(256)) * (4 << 12)
        await client.send(big)
        assert await client.recv() == big
        sent = [str(index) for index in range(500)]
        for message in sent:
            await client.send(message)
        assert [await client.recv() for _ in sent] == sent


@needs_reactor
async def test_the_descriptor_goes_to_the_reactor_and_the_server_sends_no_shutdown(http) -> None:
    app = make_app()
    async with listening(app, http) as address, connected(f"ws://{address}/upgrade") as client:
        await client.send("still open")
        assert await client.recv() == "still open"
        assert app.ws_hub is not None
        assert app.ws_hub.bind().connection_count == 1


async def test_the_chat_of_the_seed_runs(http) -> None:
    app = make_app()
    async with listening(app, http) as address, connected(f"ws://{address}/chat") as first:
        assert await first.recv() == "A new user joined!"
        async with connected(f"ws://{address}/chat", additional_headers={"X-User-Id": "7"}) as second:
            assert await first.recv() == await second.recv() == "A new user joined!"
            await second.send("hi")
            assert await first.recv() == await second.recv() == "hi"
            assert app.ws_hub is not None
            assert {one.get_metadata("user_id") for one in app.ws_hub.room_members("general")} == {"anonymous", "7"}
        assert await first.recv() == "A user left"


async def test_the_answer_carries_headers_and_the_subprotocol(http) -> None:
    async with (
        listening(make_app(), http) as address,
        connected(f"ws://{address}/upgrade", subprotocols=["v1"]) as client,
    ):
        assert client.subprotocol == "v1"
        assert client.response.headers["X-Extra"] == "yes"
        assert "Date" in client.response.headers


@pytest.mark.parametrize(
    ("path", "status"), [("/denied", 401), ("/changes-its-mind", 403), ("/broken", 500), ("/", 426), ("/no", 403)]
)
async def test_a_refusal_reaches_the_client_and_leaves_nothing_behind(http, path, status) -> None:
    app = make_app()
    async with listening(app, http) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}{path}", proxy=None)
        response = caught.value.response
        assert response.status_code == status
        if status == 401:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.body == b"who are you?"
        assert app.ws_hub is not None
        assert app.ws_hub.connection_count == 0
        assert app.ws_hub.rooms == frozenset()


async def test_the_hubs_own_limits_hold_on_this_path_too(http) -> None:
    app = App()
    hub = app.enable_websocket(max_connections=1, allowed_origins=("https://example.com",))

    @app.websocket("/")
    async def endpoint(connection) -> None:
        async for _ in connection:
            pass

    async with listening(app, http) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/", proxy=None, origin="https://evil.org")
        assert caught.value.response.status_code == 403
        async with connected(f"ws://{address}/", origin="https://example.com"):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(f"ws://{address}/", proxy=None, origin="https://example.com")
            assert caught.value.response.status_code == 503
        assert hub.stats().refused == {403: 1, 503: 1}


async def test_a_kept_alive_connection_becomes_a_websocket_after_an_ordinary_request(http) -> None:
    app = make_app()
    body = "x" * (1 << 22)

    @app.get("/large")
    def large(ctx: Context) -> None:
        ctx.response.send(body)

    async with listening(app, http) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        # The second request arrives while the first response is still being sent.
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(
            b"GET /upgrade HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert await reader.readexactly(1 << 22) == body.encode()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"\x81\x82\x00\x00\x00\x00hi")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.close()


async def test_shutting_uvicorn_down_closes_all_connections_with_1001(http) -> None:
    app = make_app()
    async with listening(app, http) as address:
        client = await websockets.connect(f"ws://{address}/upgrade", subprotocols=["v1"], proxy=None)
        waiting = asyncio.create_task(client.recv())
        await asyncio.sleep(0)
    with pytest.raises(websockets.ConnectionClosed):
        await waiting
    assert client.close_code == 1001


async def test_an_earlier_response_that_still_leaves_keeps_the_transport(http, monkeypatch) -> None:
    """The transport then serves the connection, and no data is lost."""
    from wshub.uvicorn import protocol as uvicorn_protocol

    monkeypatch.setattr(uvicorn_protocol.WebSocketProtocol, "_can_be_taken", lambda self: False)

    app = make_app()
    async with listening(app, http) as address:
        async with connected(f"ws://{address}/upgrade", subprotocols=["v1"], max_size=None) as client:
            big = "x" * (4 << 20)
            await client.send(big)
            assert await client.recv() == big
            for index in range(300):
                await client.send(str(index))
            assert [await client.recv() for _ in range(300)] == [str(index) for index in range(300)]
        assert client.close_code == 1000
        assert app.ws_hub is not None
        while app.ws_hub.connection_count:
            await asyncio.sleep(0)
        stats = app.ws_hub.stats()
        assert stats.messages_accepted == stats.messages_delivered == 301


async def test_tls_is_served_over_the_asyncio_link(http, certificate) -> None:
    context = certificate.client_context()
    app = make_app()
    async with (
        listening(app, http, ssl_keyfile=certificate.key, ssl_certfile=certificate.chain) as address,
        connected(
            f"wss://localhost:{address.rpartition(':')[2]}/upgrade", ssl=context, host="127.0.0.1", max_size=None,
            subprotocols=["v1"],
        ) as client,
    ):  # fmt: skip
        for message in ("secret", "y" * (1 << 20)):
            await client.send(message)
            assert await client.recv() == message
        await client.close(4000, "done")
        assert client.close_code == 4000


async def test_an_asgi_application_that_knows_nothing_of_wshub_is_served(http) -> None:
    async def application(scope, receive, send) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", **{k: v for k, v in event.items() if k != "type"}})
        scope["state"]["seen"] = event
        assert await receive() == event
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})
        ended.set_result(event)

    global ended
    ended = asyncio.get_running_loop().create_future()
    async with listening(application, http) as address:
        async with connected(f"ws://{address}/") as client:
            for message in ("text", b"binary"):
                await client.send(message)
                assert await client.recv() == message
            await client.close(4002, "why")
        assert await ended == {"type": "websocket.disconnect", "code": 4002, "reason": "why"}


@pytest.mark.parametrize(("trusted", "expected"), [("127.0.0.1", "203.0.113.9"), ("192.0.2.1", "127.0.0.1")])
async def test_the_address_is_the_one_that_a_trusted_proxy_tells(http, trusted, expected) -> None:
    app = App()
    app.enable_websocket()

    @app.websocket("/")
    async def tell(connection) -> None:
        connection.send_json(connection.remote_address)

    told = {"X-Forwarded-For": "203.0.113.9"}
    async with (
        listening(app, http, forwarded_allow_ips=trusted) as address,
        websockets.connect(f"ws://{address}/", proxy=None, additional_headers=told) as client,
    ):
        assert json.loads(await client.recv())[0] == expected


async def test_what_comes_before_an_application_asks_for_it_is_kept(http) -> None:
    asked = asyncio.Event()

    async def application(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asked.wait()
        await send({"type": "websocket.send", "text": (await receive())["text"]})

    async with (
        listening(application, http) as address,
        websockets.connect(f"ws://{address}/", proxy=None) as client,
    ):
        await client.send("early")
        await (await client.ping())
        asked.set()
        assert await client.recv() == "early"


async def test_the_answer_has_the_subprotocol_that_the_application_accepts_with(http) -> None:
    app = make_app()

    async def middleware(scope, receive, send) -> None:
        async def send_changed(message) -> None:
            await send(message | {"subprotocol": "v2"} if message["type"] == "websocket.accept" else message)

        await app(scope, receive, send_changed)

    async with (
        listening(middleware, http) as address,
        connected(f"ws://{address}/upgrade", subprotocols=["v1", "v2"]) as client,
    ):
        assert client.subprotocol == "v2"
        assert app.ws_hub is not None
        assert app.ws_hub.get_connection(1).subprotocol == "v2"


@pytest.mark.parametrize("taken", [True, False], ids=["reactor", "transport"])
async def test_compression_is_negotiated_by_an_app_on_every_link(http, monkeypatch, taken) -> None:
    from wshub.uvicorn import protocol as uvicorn_protocol

    if not taken:
        monkeypatch.setattr(uvicorn_protocol.WebSocketProtocol, "_can_be_taken", lambda self: False)

    app = App()
    hub = app.enable_websocket(enable_compression=True)

    @app.websocket("/echo")
    async def echo(connection) -> None:
        async for message in connection:
            connection.send(message)

    text = "all work and no play " * 500
    async with (
        listening(app, http) as address,
        connected(f"ws://{address}/echo", compression="deflate") as client,
    ):
        answer = "permessage-deflate; client_no_context_takeover"
        assert client.response.headers["Sec-WebSocket-Extensions"] == answer
        for _ in range(3):
            await client.send(text)
            assert await client.recv() == text
        stats = hub.stats()
        assert stats.compression.compressions == 3
        assert stats.bytes_sent < 1000


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_plain_application_is_compressed_as_uvicorn_is_configured(http, enabled) -> None:
    async def application(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})

    async with (
        listening(application, http, ws_per_message_deflate=enabled) as address,
        connected(f"ws://{address}/", compression="deflate") as client,
    ):
        assert ("Sec-WebSocket-Extensions" in client.response.headers) == enabled
        await client.send("a" * 1000)
        assert await client.recv() == "a" * 1000


async def test_register_outside_of_a_request_says_where_it_belongs() -> None:
    hub = App().enable_websocket()
    with pytest.raises(MisuseError, match="in a handler of an App"):
        hub.register(EventHandler())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["generator", "asynchronous generator"])
def test_a_handler_that_returns_a_generator_fails_and_says_why(run, http, asynchronous, caplog, monkeypatch) -> None:
    def generates():
        yield

    async def generates_later():
        yield

    async def scenario() -> None:
        app = App()
        app.get("/")(lambda ctx: generates_later() if asynchronous else generates())
        async with listening(app, http, log_config=None) as address, httpx.AsyncClient() as client:
            assert (await client.get(f"http://{address}/")).status_code == 500

    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    run(scenario())
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(error) for error in errors] == [MisuseError]
    assert "a handler has no yield" in str(errors[0])
