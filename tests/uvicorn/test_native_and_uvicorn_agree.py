"""A hub that reads a request and an application on uvicorn see the same request, or both refuse it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.raw_peers import CONTROLS, REQUEST, code_that_ends, masked, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, Frame, Handshake, Hub, Message, Opcode
from wshub.app import App, Context
from wshub.protocol.http.request import RequestHead
from wshub.uvicorn.event_loop import accept_natively

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = b"Sec-WebSocket-Version: 13"
SERVERS = ["serve", "uvicorn", pytest.param("acceptor", marks=needs_reactor)]


def request_for(target: bytes, *fields: bytes) -> bytes:
    return (
        REQUEST[:-2].replace(b"GET / ", b"GET " + target + b" ")
        + b"".join(field + b"\r\n" for field in fields)
        + b"\r\n"
    )


def asgi_of(handler: EventHandler, subprotocols: tuple[str, ...] = ()) -> tuple[Hub, Any]:
    hub = Hub()
    return hub, Starlette(routes=[Mount("/", hub.asgi(handler, subprotocols=subprotocols))])


@contextlib.asynccontextmanager
async def served(server: str, handler: EventHandler, http: str = "httptools", **options: Any) -> AsyncIterator[str]:
    """Serve a hub in one of the ways. Yields its URL."""
    hub, app = asgi_of(handler)
    if server == "serve":
        async with hub.serve("127.0.0.1", 0, handler) as native:
            yield f"ws://127.0.0.1:{native.port}/"
        return
    if server == "acceptor":
        accept_natively(asyncio.get_running_loop())
    async with listening(app, http, **options) as address:
        yield f"ws://{address}/"


async def status_of(url: str, request: bytes) -> int:
    async with raw_peer(url, handshake=False) as peer:
        peer.write(request)
        return int((await peer.reader.readline()).split(b" ")[1])


def number_of(headers: Any) -> int:
    return int(dict(headers)[b"x-number"])


@pytest.mark.one_loop
@pytest.mark.parametrize(
    "name", [b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Sec-WebSocket-Extensions", b"Sec-Other", b"Cookie"]
)
async def test_every_byte_in_a_field_is_the_same_to_both_or_400_to_both(http, name) -> None:
    """Daphne once split fields at \\x0b, \\x0c, \\x1c to \\x1e and \\x85, as only Python's splitlines() does."""
    good = {b"Sec-WebSocket-Key": KEY, b"Sec-WebSocket-Version": VERSION}.get(name, name + b": ab").split(b": ")[1]
    values = [good[:1] + bytes([byte]) + good[1:] for byte in range(256)]
    # RFC 9112 section 2.2 allows a bare LF as the end of a line, and h11 accepts it.
    values += [good + bytes([byte]) for byte in range(256) if byte != 0x0A]

    native: dict[int, Any] = {}
    asgi: dict[int, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        headers = scope["headers"]
        asgi[number_of(headers)] = (scope["path"], scope["query_string"], headers, scope["subprotocols"])
        await send({"type": "websocket.accept"})

    def on_upgrade(request: RequestHead) -> None:
        headers = list(request.headers.raw)
        native[number_of(headers)] = (request.path, request.raw_query_string, headers, [])

    async with (
        Hub(on_upgrade=on_upgrade).serve("127.0.0.1", 0, EventHandler()) as server,
        listening(application, http, log_config=None) as address,
    ):
        urls = (f"ws://127.0.0.1:{server.port}/", f"ws://{address}/")

        async def both(number: int, value: bytes) -> tuple[int, int]:
            request = request_for(b"/path?query", b"X-Number: %d" % number, b"X-Last: 1")
            if name in request:
                start = request.index(name)
                request = request[:start] + request[request.index(b"\r\n", start) + 2 :]
            request = request.replace(b"X-Last", name + b": " + value + b"\r\nX-Last")
            first, second = [await status_of(url, request) for url in urls]
            return first, second

        for start in range(0, len(values), 32):
            numbers = range(start, min(start + 32, len(values)))
            statuses = await asyncio.gather(*(both(number, values[number]) for number in numbers))
            assert [(values[number], one) for number, (one, _) in zip(numbers, statuses, strict=True)] == [
                (values[number], other) for number, (_, other) in zip(numbers, statuses, strict=True)
            ]
            assert {status for pair in statuses for status in pair} <= {101, 400, 426}
        assert native == asgi
        assert len(native) > (1 if name in (b"Sec-WebSocket-Key", b"Sec-WebSocket-Version") else 400)


GOOD = {line.partition(b": ")[0]: line for line in REQUEST[:-4].split(b"\r\n")[1:]}
LEFT_OUT = {f"no {name.decode()}": REQUEST.replace(line + b"\r\n", b"") for name, line in GOOD.items()}
REFUSED = LEFT_OUT | {
    "two keys": request_for(b"/", KEY),
    "two versions": request_for(b"/", VERSION),
    "version 8": REQUEST.replace(b"Version: 13", b"Version: 8"),
    "two hosts": request_for(b"/", b"Host: b"),
    "two equal hosts": request_for(b"/", b"Host: a"),
    "a body": request_for(b"/", b"Content-Length: 5") + b"12345",
    "chunks": request_for(b"/", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "both": request_for(b"/", b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "a target of another host": request_for(b"http://b/"),
    "a target of another port": request_for(b"http://a:8080/"),
    "a target with a user": request_for(b"http://user@a/"),
    "a target of another scheme": request_for(b"ftp://a/"),
    "an authority": request_for(b"a:80"),
    "an asterisk": request_for(b"*"),
    "a fragment": request_for(b"/a#b"),
    "POST": REQUEST.replace(b"GET ", b"POST "),
    "a token too long": REQUEST.replace(b"Upgrade: websocket", b"Upgrade: websockets"),
    "an upgrade to a version": REQUEST.replace(b"Upgrade: websocket", b"Upgrade: websocket/13"),
    "another connection": REQUEST.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
    "200 fields": request_for(b"/", *(b"X-%d: 1" % number for number in range(200))),
    "a path of 9,000 bytes": request_for(b"/" + b"a" * 9000),
}


@pytest.mark.parametrize("server", SERVERS)
async def test_what_lacks_something_or_has_too_much_never_gets_a_101(http, server) -> None:
    opened: list[str] = []
    handler = EventHandler(on_open=lambda connection: opened.append(connection.path))
    async with served(server, handler, http, log_config=None) as url:
        statuses = {kind: await status_of(url, request) for kind, request in REFUSED.items()}
        assert {kind: status for kind, status in statuses.items() if not 400 <= status < 500} == {}
        assert opened == []
        for value in (b"keep-alive, Upgrade", b"Upgrade,keep-alive", b"keep-alive,  UPGRADE "):
            assert await status_of(url, REQUEST.replace(b"Connection: Upgrade", b"Connection: " + value)) == 101


UPGRADES = [
    [b"WebSocket"],
    [b"h2c, websocket"],
    [b"websocket, h2c"],
    [b"websocket,h2c"],
    [b"TLS/1.0 ,\tWEBSOCKET ,, x"],
    [b"h2c", b"websocket"],
    [b"websocket", b"h2c"],
    [b"", b"websocket"],
]


@pytest.mark.parametrize("server", SERVERS)
async def test_an_upgrade_may_be_one_of_several(http, server) -> None:
    async with served(server, EventHandler(), http, log_config=None) as url:
        for values in UPGRADES:
            fields = b"".join(b"Upgrade: " + value + b"\r\n" for value in values)
            assert await status_of(url, REQUEST.replace(b"Upgrade: websocket\r\n", fields)) == 101, values
        for fields in (b"Connection: upgrade\r\nConnection: keep-alive\r\n", b"Connection: close, Upgrade\r\n"):
            request = REQUEST.replace(b"Connection: Upgrade\r\n", fields)
            request = request.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket")
            assert await status_of(url, request) == 101, fields


@pytest.mark.parametrize("server", SERVERS)
async def test_a_target_in_absolute_form_is_the_path_and_query_that_it_names(http, server) -> None:
    told: list[tuple[str, str]] = []
    handler = EventHandler(on_open=lambda connection: told.append((connection.path, connection.request.target)))
    async with served(server, handler, http, log_config=None) as url:
        for target in (b"http://a/p%20q?r=s", b"WS://A:80/p%20q?r=s", b"https://a:443/p%20q?r=s", b"/p%20q?r=s"):
            assert await status_of(url, request_for(target)) == 101, target
            while not told:
                await asyncio.sleep(0)
            assert told.pop() == ("/p q", "/p%20q?r=s")
        assert await status_of(url, request_for(b"http://a")) == 101


@pytest.mark.parametrize("server", SERVERS)
async def test_an_empty_list_of_subprotocols_counts_as_none(http, server) -> None:
    async with served(server, EventHandler(), http, log_config=None) as url:
        for fields in ([b""], [b" "], [b"", b""], [b"", b"a"]):
            request = request_for(b"/", *(b"Sec-WebSocket-Protocol: " + field for field in fields))
            async with raw_peer(url, handshake=False) as peer:
                peer.write(request)
                head = await peer.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 ")
                assert b"Sec-WebSocket-Protocol" not in head


@pytest.mark.parametrize("server", SERVERS)
async def test_a_host_has_no_say_in_where_a_request_goes(http, server) -> None:
    told: list[tuple[str, str]] = []
    handler = EventHandler(on_open=lambda connection: told.append((connection.path, connection.headers["host"])))
    fields = (b"X-Forwarded-Host: b/other", b"X-Original-URL: /other", b"Forwarded: host=b;proto=https")
    async with served(server, handler, http, log_config=None) as url:
        for host in (b"a", b"b:80", b"[::1]:8080", b"a%2Fother", b"..", b"other"):
            request = request_for(b"/path", *fields).replace(b"Host: a\r\n", b"Host: " + host + b"\r\n")
            async with raw_peer(url, handshake=False) as peer:
                peer.write(request)
                assert b" 101 " in await peer.reader.readuntil(b"\r\n\r\n")
                peer.send(Frame.close())
                assert await peer.close_code() == 1000
            assert told[-1] == ("/path", host.decode())
        for host in (b"a/other", b"a?", b"a#", b"/path", b"user@a", b"a b", b"http://a/path"):
            request = request_for(b"/path", *fields).replace(b"Host: a\r\n", b"Host: " + host + b"\r\n")
            assert await status_of(url, request) == 400


@pytest.mark.parametrize("accepts", [False, pytest.param(True, marks=needs_reactor)], ids=["uvicorn", "acceptor"])
async def test_clients_in_parallel_never_get_anything_of_each_other(http, accepts) -> None:
    """Clients request a page and then a WebSocket on the same connection, in odd pieces."""
    count = 40

    app = App()
    hub = app.enable_websocket()
    ids: list[int] = []

    def greet(connection: Connection) -> None:
        ids.append(connection.id)
        request_name = connection.headers["x-name"]
        connection.send(f"{connection.path_params['name']} {request_name} {connection.path}")

    @app.get("/page/{name}")
    async def page(ctx: Context) -> None:
        await asyncio.sleep(0)
        ctx.response.send(f"page of {ctx.request.path_params['name']} {ctx.request.get_header('X-Name')}")

    @app.websocket("/native/{name}")
    async def native(connection: Connection) -> None:
        greet(connection)
        async for message in connection:
            connection.send(message)

    @app.get("/handled/{name}")
    def handled(ctx: Context) -> None:
        echo = EventHandler(on_open=greet, on_message=lambda connection, message: connection.send(message))
        hub.register(echo)

    async def one(url: str, number: int) -> None:
        kind = ("native", "handled")[number % 2]
        name = f"name-{number}"
        key = base64.b64encode(number.to_bytes(16, "big"))
        plain = f"GET /page/{name} HTTP/1.1\r\nHost: a\r\nX-Name: {name}\r\n\r\n".encode()
        upgrade = request_for(f"/{kind}/{name}".encode(), f"X-Name: {name}".encode())
        async with raw_peer(url, handshake=False) as peer:
            # For some clients the first request is the handshake: the acceptor serves it natively.
            requests = upgrade.replace(b"dGhlIHNhbXBsZSBub25jZQ==", key)
            pages = number // 2 % 2
            raw = plain * pages + requests
            for start in range(0, len(raw), 17 + number):
                peer.write(raw[start : start + 17 + number])
                await asyncio.sleep(0)
            for _ in range(pages):
                answer = await peer.reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")
                body = f"page of {name} {name}".encode()
                assert await peer.reader.readexactly(len(body)) == body
            head = await peer.reader.readuntil(b"\r\n\r\n")
            assert Handshake.generate_accept_key(key).encode() in head
            assert (await peer.frame()).payload == f"{name} {name} /{kind}/{name}".encode()
            peer.send(Frame.text(name))
            assert (await peer.frame()).payload == name.encode()

    if accepts:
        accept_natively(asyncio.get_running_loop())
    async with listening(app, http, log_config=None) as address:
        for _ in range(2):
            await asyncio.gather(*(one(f"ws://{address}/", number) for number in range(count)))
        assert len(ids) == len(set(ids)) == 2 * count
        assert min(ids[count:]) > max(ids[:count])


@pytest.mark.parametrize("server", SERVERS)
async def test_a_second_request_behind_a_handshake_is_answered_by_nobody(http, server) -> None:
    opened: list[str] = []
    handler = EventHandler(on_open=lambda connection: opened.append(connection.path))
    async with served(server, handler, http, log_config=None) as url, raw_peer(url, handshake=False) as peer:
        peer.write(request_for(b"/first") + request_for(b"/second"))
        head = await peer.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        # uvicorn drops data that came with the request. To a hub it is an invalid frame.
        peer.send(Frame.close())
        rest = await peer.reader.read()
        assert rest[:1] == b"\x88"
        assert b"HTTP/" not in rest
        assert opened == ["/first"]


# There is no line feed: Starlette matches it with no route.
HOSTILE = b"%0B%0C%1C%1D%1E%C2%85%C2%9B%E2%80%A8%0DCRITICAL%20forged%1B[2J"


@pytest.mark.parametrize("server", SERVERS[1:])
def test_no_line_of_the_log_has_a_control_character_of_a_client(run, http, server, caplog, monkeypatch) -> None:
    """Header fields are not logged. uvicorn logs the target with its query, and percent-encodes it."""
    for name in ("uvicorn.error", "uvicorn.access"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        def on_message(connection: Connection, message: Message) -> None:
            raise RuntimeError("asked to fail")

        fields = [name + b": \x85\x9bsecret" for name in (b"X-Secret", b"User-Agent", b"Authorization")]
        fields.append(b"Cookie: \x85\x9bsecret")
        fields.append(b"Origin: http://\x85\x9bsecret")
        good = request_for(b"/" + HOSTILE + b"?query%0D%0A" + HOSTILE, *fields)
        async with served(server, EventHandler(on_message=on_message), http, log_config=None) as url:
            caplog.set_level(logging.DEBUG, "uvicorn.error")
            caplog.set_level(logging.DEBUG, "uvicorn.access")
            ends = [
                masked(Frame.close(4000, "gone\r\nforged\x1b")),
                masked(Frame.text("secret\r\nforged\x1b")),
                masked(Frame(Opcode.CLOSE, b"\x0f\xa0secret\xff\r\n")),
                b"\xff\xff\r\nforged\x1b",
            ]
            for raw in ends:
                assert await code_that_ends(url, good, raw) > 0
            bad = [
                good.replace(b"%0D", b"%0D%0A", 1),
                good.replace(KEY, KEY + b"\x85"),
                good.replace(b"Upgrade: websocket", b"Upgrade: \x85\x9b"),
                good.replace(b"GET ", b"POST "),
                request_for(b"/\r\nforged\x1b"),
                request_for(b"/", b"X-Secret: a\x0bb\x1b"),
                b"\x16\x03\x01secret\r\n\r\n",
            ]
            for request in bad:
                async with raw_peer(url, handshake=False) as peer:
                    peer.write(request)
                    peer.writer.write_eof()
                    answer = await peer.reader.read()
                    assert b"secret" not in answer
                    assert b"forged" not in answer

    run(scenario())
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("asyncio")]
    assert sum("[accepted]" in line for line in lines) == 4
    assert [line for line in lines if CONTROLS & set(map(ord, line))] == []
    assert "secret" not in caplog.text
    assert "\x1b" not in caplog.text


async def both(request: bytes, http: str) -> tuple[int, int]:
    """Return two statuses: from a hub that reads the request, and from the same hub behind uvicorn."""
    hub = Hub()
    app = Starlette(routes=[Mount("/", hub.asgi(EventHandler()))])
    async with (
        Hub().serve("127.0.0.1", 0, EventHandler()) as server,
        listening(app, http, log_config=None) as address,
    ):
        return await status_of(f"ws://127.0.0.1:{server.port}/", request), await status_of(f"ws://{address}/", request)


@pytest.mark.parametrize("value", [b",", b"a, a", b"a b", b"a\xe9b", b"a\x85b", b'"a"', b"a/b", b"a;b", b"\t(a)"])
async def test_a_malformed_list_of_subprotocols_is_400_on_uvicorn_too(http, value) -> None:
    native, asgi = await both(REQUEST[:-2] + b"Sec-WebSocket-Protocol: " + value + b"\r\n\r\n", http)
    assert native == asgi == 400


@pytest.mark.parametrize("connection", [b"Upgrade", b"keep-alive, Upgrade"])
async def test_http_1_0_has_no_upgrades_on_uvicorn_either(http, connection) -> None:
    request = REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Connection: Upgrade", b"Connection: " + connection)
    native, asgi = await both(request, http)
    assert native == asgi == 400


async def test_a_head_of_more_than_16_kib_becomes_no_websocket_on_uvicorn_either() -> None:
    native, asgi = await both(REQUEST[:-2] + b"X-Long: " + b"a" * 1_000_000 + b"\r\n\r\n", "httptools")
    assert native == asgi == 431


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_reactor)])
@pytest.mark.parametrize(
    "forged",
    [
        b"192.0.2.1\x85CRITICAL forged\x9b2J",
        b"::1%\x9b2J\x85CRITICAL: forged",
        b"fe80::1%a forged",
        b"unknown",
        b"::1%",
    ],
)
def test_an_address_that_is_none_is_not_taken_from_a_proxy(run, native, forged, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)

    async def scenario() -> None:
        addresses = []
        app = App()
        app.enable_websocket()

        @app.websocket("/")
        async def endpoint(connection) -> None:
            addresses.append(connection.remote_address[0])

        if native:
            accept_natively(asyncio.get_running_loop())
        async with listening(app, log_config=None) as address:
            caplog.set_level(logging.INFO, "uvicorn.error")
            request = REQUEST[:-2] + b"X-Forwarded-For: " + forged + b"\r\n\r\n"
            assert await status_of(f"ws://{address}/", request) == 101
            while not addresses:
                await asyncio.sleep(0)
        assert addresses == ["127.0.0.1"]

    run(scenario())
    for record in caplog.records:
        assert not CONTROLS & set(map(ord, record.getMessage())), record.getMessage()


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_reactor)])
async def test_who_comes_from_no_address_has_the_limits_of_its_proxy(http, native) -> None:
    app = App()
    app.enable_websocket(max_connections_per_address=1)

    @app.websocket("/")
    async def endpoint(connection) -> None:
        await connection.receive()

    if native:
        accept_natively(asyncio.get_running_loop())
    async with (
        listening(app, http, log_config=None) as address,
        raw_peer(f"ws://{address}/", handshake=False) as first,
    ):
        first.write(REQUEST[:-2] + b"X-Forwarded-For: unknown\r\n\r\n")
        assert b" 101 " in await first.reader.readuntil(b"\r\n\r\n")
        for name in (b"unknown", b"nobody"):
            request = REQUEST[:-2] + b"X-Forwarded-For: " + name + b"\r\n\r\n"
            assert await status_of(f"ws://{address}/", request) == 429


@pytest.mark.parametrize("taken", [False, pytest.param(True, marks=needs_reactor)], ids=["transport", "descriptor"])
async def test_a_handshake_behind_a_page_that_takes_its_time_is_answered_after_it(http, taken) -> None:
    written = asyncio.Event()
    app = App()
    app.enable_websocket(use_reactor=taken)

    @app.get("/slow")
    async def slow(ctx: Context) -> None:
        await written.wait()
        ctx.response.send("private page")

    @app.websocket("/ws")
    async def endpoint(connection: Connection) -> None:
        connection.send("hello")
        await connection.receive()

    async with (
        listening(app, http, log_config=None) as address,
        raw_peer(f"ws://{address}/", handshake=False) as peer,
    ):
        page = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
        peer.write(page + request_for(b"/ws"))
        # After this answer, uvicorn has read both requests.
        assert await status_of(f"ws://{address}/", page.replace(b"/slow", b"/nowhere")) == 404
        written.set()
        assert b" 200 " in await peer.reader.readuntil(b"\r\n\r\n")
        assert await peer.reader.readexactly(12) == b"private page"
        assert b" 101 " in await peer.reader.readuntil(b"\r\n\r\n")
        assert (await peer.frame()).payload == b"hello"


async def test_a_server_that_shuts_down_answers_what_stands_before_a_handshake(http) -> None:
    written = asyncio.Event()
    reached = asyncio.Event()
    app = App()
    app.enable_websocket()

    @app.get("/slow")
    async def slow(ctx: Context) -> None:
        reached.set()
        await written.wait()
        ctx.response.send("private page")

    @app.websocket("/ws")
    async def endpoint(connection: Connection) -> None:
        raise AssertionError

    async with contextlib.AsyncExitStack() as stack:
        async with listening(app, http, log_config=None) as address:
            peer = await stack.enter_async_context(raw_peer(f"ws://{address}/", handshake=False))
            peer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + request_for(b"/ws"))
            await reached.wait()
            # The server begins to shut down first.
            asyncio.get_running_loop().call_later(0.2, written.set)
        answer = await peer.reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"private page")
