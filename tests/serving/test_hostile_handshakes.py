"""Known failures of other WebSocket servers, caused by handshakes and callbacks that no other test covers."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cpu_time import least_seconds
from tests.support.raw_peers import CONTROLS, MASK, REQUEST, code_that_ends, masked, raw_peer
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import serving
from wshub import (
    CompressionConfig,
    Connection,
    EventHandler,
    Frame,
    Handshake,
    HandshakeError,
    Hub,
    HubConfig,
    Opcode,
    RateLimits,
)
from wshub.core.admission import client_address
from wshub.protocol.compression.negotiation import negotiate
from wshub.protocol.handshake.origin import check_origin
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead

SOURCE = Path(__file__).resolve().parents[2] / "src" / "wshub"
MODULES = sorted(path for path in SOURCE.rglob("*") if path.suffix in {".py", ".pyx", ".pxd"})


@pytest.fixture(params=[pytest.param(True, id="reactor", marks=needs_reactor), pytest.param(False, id="transports")])
def reactor(request: pytest.FixtureRequest) -> bool:
    return request.param


def request_for(target: str, *fields: str, host: str = "a", key: str = "dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# Regular expressions, and other code that reads a field more than once


def test_no_module_has_a_regular_expression_or_splits_where_only_python_does() -> None:
    """``splitlines``, and ``split`` without an argument, split on bytes that are ordinary in HTTP."""
    assert len(MODULES) > 50
    wrong = re.compile(r"^\s*(?:from|c?import) +(?:re|regex|fnmatch|glob)\b|\.r?split\(\)|\.splitlines\(", re.MULTILINE)
    # What these brokers match comes from the application and the engine.
    modules = [path for path in MODULES if not path.name.startswith(("nats_", "nats.", "redis_"))]
    assert {path.name: found for path in modules if (found := wrong.findall(path.read_text()))} == {}


def judge(value: bytes) -> None:
    """Use a value in every way in which the hub uses a field of a handshake, or its target."""
    names = ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key", "Origin", "X-Forwarded-For"]
    fields = [(name.encode(), value) for name in [*names, "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"]]
    proxies = [ipaddress.ip_network("127.0.0.0/8")]
    checks: list[Callable[[Headers], object]] = [
        lambda headers: Handshake.check_request("GET", "1.1", headers),
        lambda headers: Handshake.choose_subprotocol(headers, ["chat"]),
        lambda headers: check_origin(headers, ["https://*.example.com", "https://example.com"]),
        lambda headers: client_address(("127.0.0.1", 1), headers, proxies),
        lambda headers: negotiate(CompressionConfig(), headers.get_all_raw(b"sec-websocket-extensions")),
    ]
    for check in checks:
        try:
            check(Headers(fields))
        except HandshakeError as error:
            assert error.status in (400, 403, 426)
    target = "/" + "".join(map(chr, value)).encode("ascii", "replace").decode().replace("#", "")
    request = RequestHead("GET", target, "1.1", Headers())
    assert request.path
    assert request.query_params is not None


@pytest.mark.parametrize("start", [b"x", b'"'], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    "unit",
    [
        *(b",", b"a,", b" ,", b" ", b"\t", b'"', b'\\"', b";", b"a;b=", b'a="\\",', b"=", b"%", b"%41", b"&", b"a=b&"),
        *(b"*.", b"https://", b"\xe9,", b"127.0.0.1,"),
        *(b"permessage-deflate,", b"permessage-deflate; server_max_window_bits=99,"),
    ],
    ids=repr,
)
def test_no_value_of_a_field_takes_more_than_linear_time(unit: bytes, start: bytes) -> None:
    def seconds(size: int) -> float:
        # Each attempt gets its own value, because results may be cached.
        values = [b"%s%d%sx" % (start, attempt, unit * (size // len(unit))) for attempt in range(2)]
        return least_seconds(judge, values)

    # For 32 times the bytes, quadratic code takes 1,024 times as long.
    assert seconds(256_000) < 160 * max(seconds(8_000), 0.0005)


def test_very_many_fields_of_one_name_take_linear_time_from_an_asgi_server_too() -> None:
    def read(count: int) -> None:
        for name in (b"x", b"connection", b"sec-websocket-protocol", b"cookie"):
            headers = Headers([(name, b"a")] * count)
            assert len(headers.get_all(name.decode())) == count
            assert headers.get(name.decode()) == "a"
            with pytest.raises(HandshakeError):
                Handshake.check_request("GET", "1.1", headers)

    assert least_seconds(read, [40_000] * 2) < 30 * max(least_seconds(read, [5_000] * 2), 0.001)


# Memory before the handshake is accepted


async def test_who_is_refused_and_does_not_hang_up_is_one_of_a_bounded_number(reactor) -> None:
    settings = {"max_pending_handshakes": 10, "use_reactor": reactor}
    async with serving(EventHandler(), **settings) as (hub, url):
        peers = [raw_peer(url, handshake=False) for _ in range(50)]
        for peer in peers:
            entered = await peer.__aenter__()
            entered.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await entered.reader.readline()).startswith(b"HTTP/1.1 426 ")
            for _ in range(5):
                await asyncio.sleep(0)
            assert hub.bind().connection_count <= 12
        for peer in peers:
            await peer.__aexit__(None, None, None)


async def test_nothing_is_read_of_a_client_that_has_not_been_let_in_yet(reactor) -> None:
    decision = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    async def on_upgrade(request: RequestHead) -> None:
        asked.set()
        await decision

    hub = Hub(HubConfig(use_reactor=reactor), on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        async with raw_peer(f"ws://127.0.0.1:{server.port}/", handshake=False) as peer:
            peer.write(REQUEST)
            await asked.wait()
            peer.write(masked(Frame.binary(bytes(60_000))) * 300)
            for _ in range(500):
                await asyncio.sleep(0)
            assert hub.stats().bytes_received < 1 << 19
            decision.set_exception(HandshakeError(401, "Who are you?"))
            assert (await peer.reader.readline()).startswith(b"HTTP/1.1 401 ")
        while hub.bind().connection_count:
            await asyncio.sleep(0)
        assert hub.stats().messages_received == 0


# Isolation between clients


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "on_upgrade waits"])
async def test_handshakes_in_parallel_never_get_anything_of_each_other(reactor, waits) -> None:
    """Daphne and Channels mixed up the scopes of clients."""
    count = 60

    loop = asyncio.get_running_loop()
    told: dict[int, tuple[Any, ...]] = {}
    ids: list[int] = []

    async def on_upgrade(request: RequestHead) -> dict[str, Any]:
        # Later requests get their decision sooner.
        number = int(request.query_params["number"])
        decided = loop.create_future()
        loop.call_later((count - number) / 10_000, decided.set_result, None)
        await decided
        return {"number": number}

    def on_open(connection: Connection) -> None:
        ids.append(connection.id)
        connection.send(f"open {connection.path}")

    def on_message(connection: Connection, message: Any) -> None:
        name = connection.headers["x-name"]
        told[int(message.data)] = (connection.path, name, connection.metadata.get("number"))
        connection.send(message)

    config = HubConfig(use_reactor=reactor)
    hub = Hub(config, on_upgrade=on_upgrade if waits else None)
    handler = EventHandler(on_open=on_open, on_message=on_message)
    async with hub.serve("127.0.0.1", 0, handler) as server:

        async def one(number: int) -> None:
            key = base64.b64encode(number.to_bytes(16, "big")).decode()
            request = request_for(f"/path-{number}?number={number}", f"X-Name: name-{number}", key=key)
            async with raw_peer(f"ws://127.0.0.1:{server.port}/", handshake=False) as peer:
                sent = request + masked(Frame.text(str(number)))
                for start in range(0, len(sent), 11 + number):
                    peer.write(sent[start : start + 11 + number])
                    await asyncio.sleep(0)
                head = await peer.reader.readuntil(b"\r\n\r\n")
                assert f"Sec-WebSocket-Accept: {Handshake.generate_accept_key(key)}\r\n".encode() in head
                assert (await peer.frame()).payload == f"open /path-{number}".encode()
                assert (await peer.frame()).payload == str(number).encode()

        await asyncio.gather(*map(one, range(count)))
        assert told == {
            number: (f"/path-{number}", f"name-{number}", number if waits else None) for number in range(count)
        }
        assert len(set(ids)) == count
        # Ids are never reused, even after the first connections have closed.
        await asyncio.gather(*map(one, range(count)))
        assert len(set(ids)) == 2 * count
        assert ids[count:] == sorted(ids[count:]) or waits
        assert min(ids[count:]) > max(ids[:count])


async def test_a_second_request_behind_the_first_is_no_request(reactor) -> None:
    opened: list[str] = []
    handler = EventHandler(on_open=lambda connection: opened.append(connection.path))
    async with serving(handler, use_reactor=reactor) as (_, url), raw_peer(url, handshake=False) as peer:
        peer.write(request_for("/first") + request_for("/second", "Cookie: session=1"))
        answer = await peer.reader.read()
        assert answer.startswith(b"HTTP/1.1 101 ")
        _, _, rest = answer.partition(b"\r\n\r\n")
        assert rest[:1] == b"\x88"
        assert rest[2:4] == (1002).to_bytes(2, "big")
        assert answer.count(b"HTTP/1.1") == 1
        assert opened == ["/first"]


async def test_no_field_says_where_a_request_goes_but_its_target(reactor) -> None:
    """Starlette took the path from a URL that it had built with ``Host``."""

    opened: list[str] = []
    handler = EventHandler(on_open=lambda connection: opened.append(connection.path))
    others = [
        "X-Forwarded-Host",
        "Forwarded",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "Referer",
    ]
    async with serving(handler, path="/ws", use_reactor=reactor) as (_, url):

        async def status(request: bytes) -> int:
            async with raw_peer(url, handshake=False) as peer:
                peer.write(request)
                return int((await peer.reader.readline()).split(b" ")[1])

        for host in ("a", "ws", "a:80", "[::1]:8080", "other.example", "a%2Fother", "a%3F", "..", "localhost"):
            fields = [f"{name}: /other" for name in others]
            assert await status(request_for("/ws", *fields, host=host)) == 101
            fields = [f"{name}: /ws" for name in others]
            for target in ("/other", "/", "//ws", "/ws/", "/%2Fws", "/other?/ws", "/other/..%2Fws"):
                assert await status(request_for(target, *fields, host=host)) == 404
        for host in ("a/ws", "a/ws?", "a#", "/ws", "user@a", "a\\ws", "a ws", "http://a/ws"):
            assert await status(request_for("/other", host=host)) == 400
            assert await status(request_for("/ws", host=host)) == 400
        assert set(opened) == {"/ws"}


# The log

HOSTILE = "\x0b\x0c\x1c\x1d\x1e\x85\x9b\u2028\r\nCRITICAL forged\x1b[2J"
ENCODED = "%0B%0C%1C%1D%1E%C2%85%C2%9B%E2%80%A8%0D%0ACRITICAL%20forged%1B[2J"


def test_the_log_has_nothing_of_a_client_but_its_path_and_its_reason_which_are_escaped(run, reactor, caplog) -> None:
    """The log never contains a client's control characters, which could forge a line or steer a terminal.

    It never contains a query, a field or a payload either, even at debug level.
    """
    caplog.set_level(logging.DEBUG)
    hostile = HOSTILE.encode("utf-8").decode("latin-1")
    obs_text = "\x85\x9bsecret"

    async def scenario() -> None:
        def on_message(connection: Connection, message: Any) -> None:
            repr(connection)
            raise RuntimeError("asked to fail")

        handler = EventHandler(on_message=on_message, on_error=on_message)
        rates = RateLimits(messages=1, excess="close")
        settings = {"rates": rates, "use_reactor": reactor, "close_timeout_ms": 100}
        async with serving(handler, **settings) as (hub, url):
            fields = [f"{name}: {obs_text}" for name in ("X-Secret", "User-Agent", "Authorization", "X-Forwarded-For")]
            fields += [f"Cookie: session=secret{obs_text}", f"Origin: {obs_text}"]
            good = request_for(f"/path{ENCODED}?token=secret{ENCODED}", *fields)
            bad = [
                good.replace(b"13\r\n", b"13" + obs_text.encode("latin-1") + b"\r\n"),
                good.replace(b"GET ", b"secret "),
                good.replace(b"Host: a", b"Host: secret/" + obs_text.encode("latin-1")),
                *(request_for(f"/path{hostile}", f"X-Secret: {hostile}", host=host) for host in ("a", hostile)),
                request_for("/", f"Sec-WebSocket-Protocol: {obs_text}"),
                *(good[:length] + HOSTILE.encode() for length in (1, 4, 30, 100)),
            ]
            for request in bad:
                async with raw_peer(url, handshake=False) as peer:
                    peer.write(request)
                    peer.writer.write_eof()
                    answer = await peer.reader.read()
                    assert b"secret" not in answer
                    assert not (CONTROLS - {0x0D, 0x0A}) & set(answer)
            ends = [
                masked(Frame.close(4000, f"reason{HOSTILE}"[:60])),
                masked(Frame.close(1002, f"reason{HOSTILE}"[:60])),
                masked(Frame.text(f"secret{HOSTILE}")),
                masked(Frame.ping(f"secret{HOSTILE}".encode())) * 500 + masked(Frame.close()),
                masked(Frame.text("secret")) * 200,
                masked(Frame(Opcode.CLOSE, b"\x0f\xa0secret\xff\r\n")),
                b"\xff\xff" + HOSTILE.encode(),
                b"\x81\xff" + b"\xff" * 8 + MASK,
            ]
            for end in ends:
                assert await code_that_ends(url, good, end) > 0
            async with raw_peer(url) as peer:
                peer.reset()
            while hub.connection_count:
                await asyncio.sleep(0)

    run(scenario())
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("wshub")]
    assert any("cookie" in line for line in lines)
    assert any("rates" in line for line in lines)
    assert any("has failed" in line for line in lines)
    assert [line for line in lines if CONTROLS & set(map(ord, line))] == []
    assert any("/path%0B" in line for line in lines)
    assert any(r"'/path\x0b" in line for line in lines)
    assert any("reason\\x0b" in line for line in lines)
    fields = [value for record in caplog.records for value in vars(record).values() if isinstance(value, str)]
    assert not any("secret" in value for value in fields)
    assert not any(line.startswith("CRITICAL") for line in caplog.text.splitlines())
    assert "\x1b" not in caplog.text


# Use after free: callbacks that end their connection or their hub

ACTS = ["close", "close the others", "close the hub", "stop listening", "abort all", "cancel itself", "raise"]
# test_handlers.py covers the other events.
CASES = [(event, act) for event in ("on_drain", "on_close", "on_error", "on_upgrade") for act in ACTS]
CASES += [(event, act) for event in ("on_open", "on_message", "on_ping", "on_pong") for act in ACTS[3:6]]


@pytest.mark.one_loop
@pytest.mark.parametrize(("event", "act"), CASES)
@pytest.mark.parametrize("suspends", [False, True], ids=["function", "coroutine"])
async def test_a_callback_may_end_anything(reactor, event, act, suspends) -> None:
    """libwebsockets, nchan and uWebSockets used objects that a callback had freed.

    scripts/sanitize detects such use.
    """

    opened: list[Connection] = []
    closed: list[Connection] = []
    background: list[asyncio.Task[None]] = []
    acted = asyncio.Event()

    def work(connection: Connection | None) -> None:
        if act == "close":
            for one in opened[-1:] if connection is None else [connection]:
                one.close(4000)
        elif act == "close the others":
            for one in opened:
                if one is not connection:
                    one.close(4002)
        elif act == "close the hub":
            background.append(asyncio.ensure_future(hub.close()))
        elif act == "stop listening":
            server.stop_listening()
        elif act == "abort all":
            hub._abort_all()
        elif act == "cancel itself" and suspends:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        elif act == "raise":
            raise HandshakeError(403, "No.") if connection is None else LookupError("asked to fail")

    def is_first(subject: Any) -> bool:
        """Return True at the first call for the acting client."""
        return subject.path == "/actor" and not acted.is_set()

    def handle(subject: Any, *_: Any) -> Any:
        if is_first(subject):
            acted.set()
            work(subject if isinstance(subject, Connection) else None)

    async def handle_later(subject: Any, *_: Any) -> Any:
        if is_first(subject):
            acted.set()
            await asyncio.sleep(0)
            work(subject if isinstance(subject, Connection) else None)
            await asyncio.sleep(0)

    def on_open(connection: Connection) -> Any:
        opened.append(connection)
        connection.join("room")
        if event == "on_drain" and connection.path == "/actor":
            # This exceeds the kernel's buffers.
            connection.send(bytes(16_000_000))
        return (handle_later if suspends else handle)(connection) if event == "on_open" else None

    def on_close(connection: Connection, code: int, reason: str) -> Any:
        closed.append(connection)
        return (handle_later if suspends else handle)(connection) if event == "on_close" else None

    handlers: dict[str, Any] = {"on_open": on_open, "on_close": on_close}
    if event not in ("on_open", "on_close", "on_upgrade"):
        handlers[event] = handle_later if suspends else handle
    if event == "on_error":
        handlers["on_message"] = lambda connection, message: 1 / 0
    hook = (handle_later if suspends else handle) if event == "on_upgrade" else None
    hub = Hub(HubConfig(close_timeout_ms=100, use_reactor=reactor), on_upgrade=hook)
    async with hub.serve("127.0.0.1", 0, EventHandler(**handlers)) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url), raw_peer(url), raw_peer(url, handshake=False) as actor:
            actor.write(request_for("/actor"))
            for frame in (Frame.text("a"), Frame.ping(), Frame.pong(), Frame.text("b")):
                actor.send(frame)
            if event == "on_close":
                actor.send(Frame.close(4003))
            reading = asyncio.create_task(actor.reader.read())
            while not acted.is_set():
                await asyncio.sleep(0)
            await asyncio.gather(*background)
            for _ in range(20):
                await asyncio.sleep(0)
            reading.cancel()
        while hub.connection_count or len(closed) < len(opened):
            await asyncio.sleep(0)
        assert sorted(one.id for one in closed) == sorted(one.id for one in opened)
        assert hub.rooms == frozenset()


def test_the_reason_of_a_client_writes_no_line_into_the_log(run, caplog) -> None:
    """One client closes with a reason, and a message that is relayed to it fails with that reason."""

    async def scenario() -> None:
        opened = []
        handler = EventHandler(on_open=opened.append, on_message=lambda connection, message: opened[0].send(message))
        async with serving(handler) as (_, url), raw_peer(url) as first, raw_peer(url) as second:
            first.send(Frame.close(4000, "bye\r\nCRITICAL forged\x1b[2J\x85"))
            await first.close_code()
            first.writer.write_eof()
            await opened[0].wait_closed()
            second.send(Frame.text("x"))
            assert await second.close_code() == 1011

    run(scenario())
    (record,) = [record for record in caplog.records if record.exc_info]
    text = str(record.exc_info[1])
    assert not CONTROLS & set(map(ord, text)), text
