"""The ASGI specification's requirements for WebSocket servers, checked with wshub's protocol class for uvicorn."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import websockets
from uvicorn.protocols.utils import ClientDisconnected

from tests.support.raw_peers import REQUEST, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import Frame, Opcode
from wshub.protocol.http.request import MAX_EARLY_SIZE
from wshub.uvicorn import protocol as uvicorn_protocol
from wshub.uvicorn.protocol import NOT_DUPLICATED, WebSocketProtocol


async def accept(receive, send, **fields: Any) -> None:
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **fields})


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """A function that returns the messages logged as errors."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_is_raised_after_a_disconnect_is_what_asgi_asks_for() -> None:
    assert issubclass(ClientDisconnected, OSError)


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_the_scope_is_complete(http) -> None:
    scopes = future()

    async def application(scope, receive, send) -> None:
        scopes.set_result(scope)
        await accept(receive, send)

    async with (
        listening(application, http, root_path="/root") as address,
        connected(
            f"ws://{address}/a%20b/%C3%A9?q=1&q=2", subprotocols=["v1", "v2"], additional_headers={"X-Twice": "1"}
        ) as client,
    ):
        scope = await scopes
        assert scope["client"] == list(client.local_address) or scope["client"] == client.local_address
        assert tuple(scope["server"]) == client.remote_address
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["http_version"] == "1.1"
    assert scope["scheme"] == "ws"
    assert scope["root_path"] == "/root"
    assert scope["path"] == "/root/a b/\u00e9"
    assert scope["raw_path"] == b"/root/a%20b/%C3%A9"
    assert scope["query_string"] == b"q=1&q=2"
    assert scope["subprotocols"] == ["v1", "v2"]
    assert scope["state"] == {}
    assert scope["extensions"]["websocket.http.response"] == {}
    headers = scope["headers"]
    assert (b"x-twice", b"1") in headers
    assert all(type(name) is bytes and type(value) is bytes and name == name.lower() for name, value in headers)


@pytest.mark.parametrize("pieces", [[b"who are you?"], [b"who ", b"are ", b"you?"], [b""]])
async def test_a_denial_reaches_the_client_whole_however_it_is_sent(http, pieces) -> None:
    async def application(scope, receive, send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        headers = [(b"www-authenticate", b"Basic"), (b"x-many", b"1"), (b"x-many", b"2")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        for piece in pieces[:-1]:
            await send({"type": "websocket.http.response.body", "body": piece, "more_body": True})
        await send({"type": "websocket.http.response.body", "body": pieces[-1]})

    async with listening(application, http) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/", proxy=None)
    response = caught.value.response
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Basic"
    assert response.headers.get_all("x-many") == ["1", "2"]
    assert response.body == b"".join(pieces)


async def test_a_denial_without_end_is_paced_by_its_reader(http) -> None:
    sent = 0
    ended = future()

    async def application(scope, receive, send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        try:
            while True:
                await send({"type": "websocket.http.response.body", "body": bytes(65536), "more_body": True})
                sent += 65536
        except OSError as error:
            ended.set_result(error)

    async with listening(application, http) as address:
        async with raw_peer(f"ws://{address}/", handshake=False) as peer:
            peer.write(
                b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            peer.reader._transport.pause_reading()
            before = -1
            # The number stands still when every buffer on the way is full.
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 64 << 20
        await ended


@pytest.mark.parametrize("more_body", [False, True])
async def test_who_does_not_read_why_it_is_refused_is_ended(http, more_body, monkeypatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "REFUSAL_TIMEOUT", 0.1)

    ended = future()
    lost = future()
    connection_lost = WebSocketProtocol.connection_lost

    def note(self: WebSocketProtocol, error: Exception | None) -> None:
        connection_lost(self, error)
        lost.set_result(None)

    monkeypatch.setattr(WebSocketProtocol, "connection_lost", note)

    async def application(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        try:
            await send({"type": "websocket.http.response.body", "body": bytes(32 << 20), "more_body": more_body})
        except OSError as error:
            ended.set_result(error)

    async with listening(application, http) as address, raw_peer(f"ws://{address}/", handshake=False) as peer:
        peer.reader._transport.pause_reading()
        peer.write(REQUEST)
        await lost
        if more_body:
            assert isinstance(await ended, ClientDisconnected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-bad name: injected", b"a"),
        (b"", b"a"),
        (b"x-a\r\nx-b", b"a"),
        *((b"x-a", b"a" + bytes([byte]) + b"b") for byte in (0, 0x0A, 0x0B, 0x0D, 0x1B, 0x7F)),
    ],
)
async def test_no_field_of_a_denial_is_more_than_a_field(http, name, value, errors) -> None:
    async def application(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": [(name, value)]})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    async with listening(application, http) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/", proxy=None)
        assert caught.value.response.status_code == 500
        assert "x-b" not in caught.value.response.headers


async def test_a_close_before_the_accept_is_a_403(http) -> None:
    async def application(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4000, "reason": "no"})
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})

    async with listening(application, http) as address:
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websockets.connect(f"ws://{address}/", proxy=None)


@pytest.mark.parametrize("raises", [False, True])
async def test_an_application_that_never_answers_is_a_500(http, raises, errors) -> None:
    async def application(scope, receive, send) -> None:
        if raises:
            raise RuntimeError("asked to fail")

    async with listening(application, http, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus, match="500"):
            await websockets.connect(f"ws://{address}/", proxy=None)
    assert len(errors()) == raises


async def test_headers_and_the_subprotocol_of_an_accept_reach_the_client(http) -> None:
    async def application(scope, receive, send) -> None:
        headers = [(b"x-name", b"value"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await accept(receive, send, subprotocol="v2", headers=headers)

    async with (
        listening(application, http) as address,
        connected(f"ws://{address}/", subprotocols=["v1", "v2"]) as client,
    ):
        assert client.subprotocol == "v2"
        assert client.response.headers["x-name"] == "value"
        assert client.response.headers.get_all("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(("raises", "code"), [(False, 1000), (True, 1011)])
async def test_an_application_that_ends_closes_its_connection(http, raises, code, errors) -> None:
    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": "last words"})
        if raises:
            raise RuntimeError("asked to fail")

    async with listening(application, http, log_config=None) as address, connected(f"ws://{address}/") as client:
        assert await client.recv() == "last words"
        await client.wait_closed()
        assert client.close_code == code
    assert errors() == (["Exception in ASGI application"] if raises else [])


@pytest.mark.parametrize(
    ("close", "expected"),
    [
        (b"\x0f\xa2why", (4002, "why")),
        (b"\x03\xe8", (1000, "")),
        (b"", (1005, "")),
        (None, (1006, "")),
    ],
    ids=["code and reason", "code", "neither", "reset"],
)
async def test_a_disconnect_tells_the_code_and_the_reason_as_often_as_it_is_asked_for(http, close, expected) -> None:
    told = future()

    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        told.set_result([await receive() for _ in range(3)])

    async with listening(application, http) as address, raw_peer(f"ws://{address}/") as peer:
        if close is None:
            peer.reset()
        else:
            peer.send(Frame(opcode=Opcode.CLOSE, payload=close))
        messages = await told
    assert [message["type"] for message in messages] == ["websocket.disconnect"] * 3
    assert messages[0] == messages[1] == messages[2]
    assert messages[0]["code"] == expected[0]
    assert close is None or messages[0]["reason"] == expected[1]


async def test_an_application_that_only_sends_notices_that_its_client_has_left(http, errors) -> None:
    ended = future()

    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0)
        except Exception as error:
            ended.set_result(error)
            raise

    async with listening(application, http, log_config=None) as address:
        async with connected(f"ws://{address}/") as client:
            assert await client.recv() == "tick"
        assert isinstance(await ended, OSError)
    # A lost client is not an error of the application.
    assert errors() == []


async def test_an_application_closes_with_its_code_and_reason(http) -> None:
    ended = future()

    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})
        ended.set_result(await receive())

    async with listening(application, http) as address, connected(f"ws://{address}/") as client:
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4001, "enough")
        assert (await ended)["code"] == 4001


async def test_send_waits_for_a_client_that_does_not_read_whoever_sends(http) -> None:
    sent = 0

    async def application(scope, receive, send) -> None:
        await accept(receive, send)

        async def pour() -> None:
            nonlocal sent
            for _ in range(500):
                await send({"type": "websocket.send", "bytes": bytes(65536)})
                sent += 1

        await asyncio.gather(*(pour() for _ in range(4)))

    async with (
        listening(application, http) as address,
        connected(f"ws://{address}/", max_queue=1, max_size=None) as client,
    ):
        before = -1
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 1900
        for _ in range(2000):
            assert len(await client.recv()) == 65536
        await client.wait_closed()
        assert client.close_code == 1000


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.accept"},
        {"type": "websocket.http.response.start", "status": 403, "headers": []},
        {"type": "websocket.unheard-of"},
    ],
)
async def test_what_cannot_be_sent_on_an_open_connection_raises(http, message) -> None:
    raised = future()

    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        with pytest.raises(RuntimeError) as caught:
            await send(message)
        raised.set_result(str(caught.value))

    async with listening(application, http) as address, connected(f"ws://{address}/"):
        assert message["type"] in await raised


async def test_lines_cannot_be_put_into_an_answer(http, errors) -> None:
    async def application(scope, receive, send) -> None:
        await accept(receive, send, headers=[(b"x-name", b"value\r\nx-more: 1")])

    async with listening(application, http, log_config=None) as address:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{address}/", proxy=None)
    assert caught.value.response.status_code == 500
    assert "x-more" not in caught.value.response.headers
    assert len(errors()) == 1


async def test_what_a_client_sends_before_the_accept_is_kept_up_to_a_bound(http) -> None:
    asked = asyncio.Event()
    received: list[bytes] = []
    ends: list[str] = []

    async def application(scope, receive, send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        if scope["path"] == "/waits":
            ends.append((await receive())["type"])
            return
        await asked.wait()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            received.append(message["bytes"])

    async with listening(application, http) as address:
        async with raw_peer(f"ws://{address}/", handshake=False) as peer:
            peer.write(REQUEST)
            await asyncio.sleep(0.05)
            for number in range(6):
                peer.send(Frame.binary(b"%3d" % number + bytes(10_000)))
            await asyncio.sleep(0.05)
            asked.set()
            assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            peer.send(Frame.close(1000))
            assert await peer.close_code() == 1000
            assert [message[:3] for message in received] == [b"%3d" % number for number in range(6)]
        async with raw_peer(f"ws://{address}/waits", handshake=False) as peer:
            peer.write(REQUEST.replace(b"GET / ", b"GET /waits "))
            await asyncio.sleep(0.05)
            peer.write(bytes(2 * MAX_EARLY_SIZE))
            # The early data exceeds the limit, so the application gets a disconnect message.
            while not ends:
                await asyncio.sleep(0)
            assert ends == ["websocket.disconnect"]


class WithoutSpareDescriptors:
    """The socket of a transport in a process that has reached its limit of descriptors."""

    def dup(self) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@needs_reactor
def test_without_a_descriptor_to_spare_the_transport_serves_the_connection(run, http, monkeypatch, errors) -> None:
    async def application(scope, receive, send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "text": (await receive())["text"]})

    real_duplicate = WebSocketProtocol._duplicate

    def duplicate(protocol: WebSocketProtocol) -> int:
        transport = protocol._transport
        protocol._transport = SimpleNamespace(get_extra_info=lambda name: WithoutSpareDescriptors())
        try:
            return real_duplicate(protocol)
        finally:
            protocol._transport = transport

    async def scenario() -> None:
        monkeypatch.setattr(WebSocketProtocol, "_duplicate", duplicate)
        async with listening(application, http) as address:
            for _ in range(3):
                async with connected(f"ws://{address}/") as client:
                    await client.send("served")
                    assert await client.recv() == "served"

    NOT_DUPLICATED.recovered()
    run(scenario())
    assert [line.partition(",")[0] for line in errors()] == ["a connection stays with its transport"]
