"""Arguments: subclasses of str and integer types are accepted, and unusable values are refused at the call."""

from __future__ import annotations

import array
import asyncio
import contextlib
import enum
import math
import mmap
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.odd_strings import STRINGS, Lobby, Odd, OddBytes, SafeString
from tests.support.serving_hub import connected, serving
from wshub import (
    CloseCode,
    CompressionConfig,
    ConfigurationError,
    Connection,
    EventHandler,
    Frame,
    Handshake,
    HandshakeError,
    Hub,
    HubConfig,
    InvalidMessageError,
    Message,
    MisuseError,
    RateLimits,
    RoomConfig,
)
from wshub.protocol.handshake.origin import check_origin
from wshub.protocol.http.headers import Headers


class Number(enum.IntEnum):
    ONE = 1
    BYE = 4000
    PORT = 65535


class Index:
    """An integer like NumPy's, which does not derive from int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@contextlib.asynccontextmanager
async def talking(**settings: Any) -> AsyncIterator[tuple[Hub, Connection, Any]]:
    """Yield a hub, its only connection, and the client of it."""
    opened = asyncio.get_running_loop().create_future()
    async with serving(EventHandler(on_open=opened.set_result), **settings) as (hub, url), connected(url) as client:
        yield hub, await opened, client


# Strings


@pytest.mark.parametrize("text", STRINGS, ids=lambda text: type(text).__name__)
async def test_a_str_of_any_subclass_is_sent_as_text(text) -> None:
    async with talking() as (hub, connection, client):
        connection.send(text)
        connection.send_text(text)
        connection.send_json({text: text} if type(text) is not Odd else ["lobby"])
        connection.send(Message(text))
        hub.broadcast(text)
        hub.broadcast_except(text, None)
        received = [await client.recv() for _ in range(6)]
        assert received[:2] == received[3:] == ["lobby"] * 3 or received[:2] + received[3:] == ["lobby"] * 5
        connection.send_ping(text)
        connection.close(4000, text)
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4000, "lobby")


@pytest.mark.parametrize("name", STRINGS, ids=lambda name: type(name).__name__)
async def test_a_str_of_any_subclass_names_the_same_room(name) -> None:
    async with talking(enable_compression=True) as (hub, connection, client):
        hub.configure_room(name, slow_consumer=SafeString("latest"))
        for joined, asked in ((name, "lobby"), ("lobby", name)):
            connection.join(joined)
            connection.join(asked)
            assert connection.rooms == hub.rooms == {"lobby"}
            assert all(type(room) is str for room in (*connection.rooms, *hub.rooms))
            assert connection.in_room(asked)
            assert hub.room_size(asked) == 1
            assert hub.room_members(asked) == [connection]
            assert hub.broadcast("x", room=asked, key=name) == 1
            assert hub.broadcast_to_room(asked, "x") == 1
            assert hub.broadcast_to_room_except(asked, "x", connection) == 0
            assert hub.stats(room=asked).connections == 1
            connection.leave(asked)
            assert not connection.in_room(joined)
        hub.join_room(connection, name)
        hub.leave_room(connection, name)
        assert hub.rooms == frozenset()
        assert [await client.recv() for _ in range(4)] == ["x"] * 4


async def test_a_str_of_a_subclass_is_one_from_another_thread_too() -> None:
    async with talking() as (hub, connection, client):

        def call() -> None:
            connection.join(Odd("lobby"))
            connection.send(Odd("one"))
            hub.broadcast(Odd("two"), room=Odd("lobby"))
            connection.leave(Odd("lobby"))
            connection.close(4000, Odd("bye"))

        await asyncio.to_thread(call)
        assert [await client.recv(), await client.recv()] == ["one", "two"]
        await client.wait_closed()
        assert client.close_reason == "bye"


async def test_what_is_no_str_is_no_name_of_a_room() -> None:
    async with talking() as (hub, connection, _):
        for name in (7, b"lobby", ["lobby"]):
            for call in (
                connection.join,
                connection.leave,
                connection.in_room,
                hub.room_size,
                hub.room_members,
                hub.configure_room,
                lambda name: hub.broadcast("x", room=name),
                lambda name: hub.stats(room=name),
            ):
                with pytest.raises(TypeError, match="the name of a room must be a str"):
                    call(name)


def test_settings_may_be_members_of_an_enumeration() -> None:
    policy = enum.StrEnum("policy", {"CLOSE": "close", "SHARED": "shared", "ZLIB": "zlib"})
    config = HubConfig(
        slow_consumer=policy.CLOSE,  # type: ignore[attr-defined]
        rates=RateLimits(excess=Odd("close")),  # type: ignore[arg-type]
        compression=CompressionConfig(engine=policy.ZLIB),  # type: ignore[attr-defined]
        allowed_origins=(Odd("https://example.com"), Odd("*")),
        trusted_proxies=(Odd("10.0.0.0/8"),),
        max_connections=Number.BYE,
        max_fragments=Index(5),  # type: ignore[arg-type]
    )
    assert config.compression is not None
    values = (config.slow_consumer, config.rates.excess, config.compression.engine, *config.allowed_origins)
    assert [str(value) for value in values] == ["close", "close", "zlib", "https://example.com", "*"]
    assert {type(value) for value in (*values, *config.trusted_proxies)} == {str}
    assert (config.max_connections, config.max_fragments) == (4000, 5)
    assert RoomConfig(compression=policy.SHARED, slow_consumer=Odd("latest")) == RoomConfig(  # type: ignore[attr-defined,arg-type]
        compression="shared", slow_consumer="latest"
    )


async def test_a_server_takes_strings_of_a_subclass() -> None:
    opened = asyncio.get_running_loop().create_future()
    hub = Hub(HubConfig(allowed_origins=(Odd("https://example.com"),)))
    handler = EventHandler(on_open=opened.set_result)
    serve = hub.serve(Odd("127.0.0.1"), 0, handler, path=Odd("/chat"), subprotocols=[Odd("v1"), Lobby.NAME])
    async with serve as server:
        url = f"ws://127.0.0.1:{server.port}/chat"
        async with connected(url, subprotocols=["v1"], origin="https://example.com") as client:
            assert client.subprotocol == "v1"
            connection = await opened
            connection.set_metadata(Lobby.NAME, 1)
            assert connection.get_metadata("lobby") == connection.metadata["lobby"] == 1
            connection.send("x", slow_consumer=Odd("drop_newest"))


async def test_a_refusal_takes_strings_of_a_subclass() -> None:
    def on_upgrade(request: Any) -> None:
        raise HandshakeError(Number.ONE + 402, Odd("no"), ((Odd("X-Name"), Odd("a")),))

    hub = Hub(on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nX-Name: a\r\n" in answer
    assert answer.endswith(b"\r\n\r\nno")


def test_headers_are_found_by_a_name_of_a_subclass() -> None:
    headers = Headers([(b"host", b"a"), (b"sec-websocket-protocol", b"v1, v2")])
    assert headers.get(Odd("host")) == headers[Odd("Host")] == "a"
    assert Handshake.choose_subprotocol(headers, [Odd("v2")]) == "v2"


# Bytes


async def test_whatever_has_a_buffer_is_sent_by_its_bytes() -> None:
    numbers = array.array("I", [1, 2])
    mapped = mmap.mmap(-1, 4)
    buffers = [OddBytes(b"bytes"), bytearray(b"bytes"), memoryview(b"bytes"), numbers, memoryview(numbers), mapped]
    async with talking() as (hub, connection, client):
        for buffer in buffers:
            connection.send(buffer)
            connection.send_binary(buffer)
            hub.broadcast(buffer)
            expected = bytes(memoryview(buffer))
            assert [await client.recv() for _ in range(3)] == [expected] * 3
            assert len(Message(buffer)) == len(expected)
        connection.send_text(OddBytes(b"text"))
        assert await client.recv() == "text"
        connection.close(4000, OddBytes(b"bye"))
        await client.wait_closed()
        assert client.close_reason == "bye"


async def test_a_buffer_that_is_not_contiguous_is_refused_and_nothing_is_sent() -> None:
    every_other = memoryview(bytearray(10))[::2]
    released = memoryview(b"x")
    released.release()
    async with talking() as (hub, connection, client):
        for call in (connection.send, connection.send_text, connection.send_binary, hub.broadcast, Message):
            with pytest.raises(InvalidMessageError, match=r"not contiguous: send bytes\(data\)"):
                call(every_other)
            with pytest.raises(ValueError, match="released"):
                call(released)
        with pytest.raises(InvalidMessageError, match="not contiguous"):
            connection.send_ping(every_other)
        connection.send(bytes(every_other))
        assert await client.recv() == bytes(5)


# Integers


async def test_a_connection_has_an_integer_for_its_id_and_a_bool_is_none() -> None:
    async with talking() as (hub, connection, _):
        assert connection.id == 1
        for right in (1, Number.ONE, Index(1)):
            assert hub.get_connection(right) is connection
            assert hub.broadcast("x", exclude=right) == 0
        assert hub.get_connection(2**80) is None
        for wrong in (True, 1.0, "1", object()):
            with pytest.raises(MisuseError, match="id must be an int, not"):
                hub.get_connection(wrong)
            with pytest.raises(MisuseError, match="exclude must be a Connection or the id of one, an int, not"):
                hub.broadcast("x", exclude=wrong)


async def test_a_close_code_is_an_integer() -> None:
    async with talking() as (hub, connection, client):
        for wrong in (4000.0, True, "4000", None, math.nan):
            for call in (connection.close, Frame.close, lambda code: hub.unregister(connection, code)):
                with pytest.raises(InvalidMessageError, match="a close code must be an int, such as 1000"):
                    call(wrong)
            with pytest.raises(InvalidMessageError, match="a close code must be an int"):
                await hub.close(wrong)
        for wrong_reason in (5, None, ["x"]):
            with pytest.raises(TypeError, match="a close reason must be a str or bytes"):
                connection.close(4000, wrong_reason)
        connection.close(Index(4000), "bye")
        await client.wait_closed()
        assert client.close_code == 4000
    assert Frame.close(Number.BYE) == Frame.close(4000)
    assert Frame.close(CloseCode.NORMAL) == Frame.close(1000)


@pytest.mark.parametrize(
    ("arguments", "what_is_right"),
    [
        ({"port": 70000}, "port must be an integer from 0 to 65535"),
        ({"port": -1}, "from 0 to 65535"),
        ({"port": True}, "from 0 to 65535"),
        ({"port": 8080.0}, "from 0 to 65535"),
        ({"port": "8080"}, "from 0 to 65535"),
        ({"backlog": -1}, "backlog must be an integer from 0"),
        ({"backlog": True}, "backlog"),
        ({"host": 5}, "host must be a str"),
        ({"path": "chat"}, 'as in "/chat"'),
        ({"path": 5}, "path must be a str"),
        ({"subprotocols": "chat"}, r"such as \['chat'\]"),
        ({"subprotocols": [b"chat"]}, "each of subprotocols must be a str"),
        ({"subprotocols": None}, "subprotocols must be a sequence of strings"),
        ({"unix": 5}, "unix must be the path"),
        ({"sock": 5}, "sock must be a socket"),
        ({"ssl": True}, "ssl must be an SSLContext"),
    ],
)
def test_an_argument_of_serve_that_cannot_be_is_refused_with_what_is_right(arguments, what_is_right) -> None:
    with pytest.raises(ConfigurationError, match=what_is_right):
        Hub().serve(handler=EventHandler(), **arguments)


async def test_a_unix_socket_may_have_a_path_object(tmp_path: Path) -> None:
    async with Hub().serve(unix=tmp_path / "s", handler=EventHandler(), backlog=Index(5)):  # type: ignore[arg-type]
        assert (tmp_path / "s").is_socket()


def test_subprotocols_of_an_asgi_application_are_no_single_string() -> None:
    with pytest.raises(ConfigurationError, match=r"such as \['chat'\]"):
        Hub().asgi(EventHandler(), subprotocols="chat")
    with pytest.raises(ConfigurationError, match=r"such as \['chat'\]"):
        Handshake.choose_subprotocol(Headers([(b"sec-websocket-protocol", b"c")]), "chat")


def test_origins_are_no_single_string_which_would_let_every_page_in() -> None:
    headers = Headers([(b"origin", b"https://evil.example")])
    with pytest.raises(MisuseError, match="not one string"):
        check_origin(headers, "https://*.example.com")


@pytest.mark.parametrize(
    ("settings", "what_is_right"),
    [
        ({"allowed_origins": "https://example.com"}, r"such as \('https://example.com',\)"),
        ({"allowed_origins": 5}, "sequence of strings"),
        ({"allowed_origins": ["https://example.com/"]}, "without a path or a slash"),
        ({"allowed_origins": ["https://example.com/chat"]}, "without a path or a slash"),
        ({"allowed_origins": ["example.com"]}, "scheme://host"),
        ({"allowed_origins": ["https://user@example.com"]}, "scheme://host"),
        ({"allowed_origins": ["https://example.com "]}, "scheme://host"),
        ({"allowed_origins": [b"https://example.com"]}, "scheme://host"),
        ({"trusted_proxies": "10.0.0.1"}, r"such as \('10.0.0.1',\)"),
        ({"trusted_proxies": ["proxy"]}, "no address and no network"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "host bits set"),
        ({"trusted_proxies": [5]}, "write a str"),
        ({"trusted_proxies": [True]}, "write a str"),
        ({"max_connections": 10.0}, "max_connections must be an integer"),
        ({"max_message_size": "64"}, "max_message_size must be an integer"),
        ({"ping_interval_ms": math.nan}, "ping_interval_ms must be an integer"),
        ({"idle_timeout_ms": True}, "idle_timeout_ms must be an integer"),
        ({"use_reactor": 1}, "use_reactor must be True or False"),
        ({"slow_consumer": "wait"}, '"close", "drop_newest", "drop_oldest" or "latest"'),
        ({"slow_consumer": 5}, "slow_consumer must be"),
        ({"compression": True}, "CompressionConfig"),
        ({"rates": {"messages": 5}}, "RateLimits"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_is_right(settings, what_is_right) -> None:
    with pytest.raises(ConfigurationError, match=what_is_right):
        HubConfig(**settings)


def test_settings_of_a_part_that_cannot_be_are_refused_with_what_is_right() -> None:
    for make, settings, what_is_right in (
        (RoomConfig, {"compression": "gzip"}, '"message" or "shared"'),
        (RoomConfig, {"restart_interval": 1.5}, "an integer from 1"),
        (RoomConfig, {"slow_consumer": True}, '"close"'),
        (RateLimits, {"messages": math.inf}, "messages must be an integer"),
        (RateLimits, {"excess": "drop"}, '"delay" or "close"'),
        (CompressionConfig, {"engine": "gzip"}, '"auto", "zlib" or "isal"'),
        (CompressionConfig, {"level": True}, "level must be an integer"),
        (CompressionConfig, {"server_context_takeover": 1}, "True or False"),
    ):
        with pytest.raises(ConfigurationError, match=what_is_right):
            make(**settings)


def test_a_refusal_has_an_integer_and_pairs() -> None:
    for status in (403.0, "403", True, None):
        with pytest.raises(TypeError, match="must be an int, such as 403"):
            HandshakeError(status, "no")
    with pytest.raises(TypeError, match=r"headers\.items\(\)"):
        HandshakeError(429, "no", {"Retry-After": "5"})  # type: ignore[arg-type]


def test_headers_of_a_response_are_pairs() -> None:
    for wrong in ({"x-name": "a"}, "x-name: a", 5):
        with pytest.raises(ConfigurationError, match="pairs of a name and a value"):
            Handshake.encode_headers(wrong)
    with pytest.raises(InvalidMessageError, match="must be a str or bytes"):
        Handshake.encode_headers([("content-language", 5)])  # type: ignore[list-item]


# Time


async def test_a_timeout_is_a_number_of_seconds() -> None:
    async with talking() as (_, connection, client):
        for wrong in (-1, -0.1, math.nan, True, "5", b"5", object(), 10**400):
            with pytest.raises(MisuseError, match="timeout must be None or a number of seconds"):
                await connection.receive(timeout=wrong)
        with pytest.raises(TimeoutError):
            await connection.receive(timeout=0)
        for right in (60, 60.0, Index(60), math.inf):
            await client.send("x")
            assert (await connection.receive(timeout=right)).data == "x"


# Methods that return no coroutine


async def test_what_queues_can_be_awaited_which_waits_for_nothing() -> None:
    async with talking() as (hub, connection, client):
        turns = []
        asyncio.get_running_loop().call_soon(turns.append, "another")
        calls: list[Any] = [
            connection.join("lobby"),
            connection.send("a"),
            connection.send_text("b"),
            connection.send_binary(b"c"),
            connection.send_json("d"),
            connection.send_text(Message("e")),
            connection.send_ping(),
            connection.send_pong(),
            connection.leave("lobby"),
            hub.join_room(connection, "lobby"),
            hub.leave_room(connection, "lobby"),
            connection.close(4000),
            hub.unregister(connection),
        ]
        for call in calls:
            assert await call is None
            assert call is calls[0]
            assert not call
        assert turns == []
        assert await asyncio.gather(calls[0], calls[0]) == [None, None]
        assert await asyncio.wait_for(calls[0], 5) is None
        assert [await client.recv() for _ in range(5)] == ["a", "b", b"c", '"d"', "e"]


async def test_what_queues_can_be_returned_by_a_handler_of_any_kind() -> None:
    async def awaits(connection: Connection, message: Message) -> Any:
        return await connection.send(message)

    async def returns(connection: Connection, message: Message) -> Any:
        return connection.send(message)

    handlers = (lambda connection, message: connection.send(message), awaits, returns, Connection.send)
    for handler in handlers:
        async with serving(EventHandler(on_message=handler)) as (_, url), connected(url) as client:
            for text in ("a", "b"):
                await client.send(text)
                assert await client.recv() == text


async def test_what_queues_can_be_awaited_in_another_thread() -> None:
    async with talking() as (_, connection, client):

        def call() -> None:
            async def send() -> None:
                await connection.send("a")
                await connection.send_ping()
                await connection.close(4000)

            asyncio.run(send())

        thread = threading.Thread(target=call)
        thread.start()
        assert await client.recv() == "a"
        await client.wait_closed()
        await asyncio.to_thread(thread.join)
