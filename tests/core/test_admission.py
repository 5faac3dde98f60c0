"""Admission by a hub: limits, rates, addresses, origins, and the application's ``on_upgrade``."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import Any

import pytest
import websockets

from tests.support.raw_peers import REQUEST, port_of, raw_peer
from tests.support.reactor import HAS_REACTOR, needs_reactor
from tests.support.serving_hub import Clock, connected, serving
from wshub import ConfigurationError, EventHandler, HandshakeError, Hub, HubConfig, MisuseError
from wshub.core.admission import AddressRates, address_bucket, client_address
from wshub.protocol.http.headers import Headers


async def status_of(url: str, **headers: str) -> int:
    """Return the status of the response to a handshake, and close the connection if there is one."""
    try:
        async with connected(url, additional_headers=headers):
            return 101
    except websockets.InvalidStatus as error:
        return error.response.status_code


async def test_connections_of_one_address_are_bounded_and_counted_until_they_end() -> None:
    settings = {"max_connections_per_address": 2, "trusted_proxies": ("127.0.0.1",)}
    async with serving(EventHandler(), **settings) as (hub, url):
        async with connected(url), connected(url):
            assert await status_of(url) == 429
            assert await status_of(url, **{"X-Forwarded-For": "192.0.2.1"}) == 101
        while hub.connection_count:
            await asyncio.sleep(0)
        assert await status_of(url) == 101
        assert hub.refused == {429: 1}
        while hub.connection_count:
            await asyncio.sleep(0)
        assert hub._admission._connections == {}


async def test_new_connections_in_a_second_are_bounded_for_each_address_and_in_total(clock: Clock) -> None:
    settings = {
        "max_connection_rate": 5,
        "max_connection_rate_per_address": 3,
        "trusted_proxies": ("127.0.0.0/8",),
        "clock": clock,
    }
    async with serving(EventHandler(), **settings) as (hub, url):
        assert [await status_of(url) for _ in range(4)] == [101, 101, 101, 429]
        other = {"X-Forwarded-For": "192.0.2.1"}
        assert [await status_of(url, **other) for _ in range(3)] == [101, 101, 503]
        clock.now += 0.4
        assert [await status_of(url) for _ in range(2)] == [101, 429]
        clock.now += 10
        hub._admission.sweep()
        assert hub._admission._each._full_at == {}
        assert [await status_of(url) for _ in range(4)] == [101, 101, 101, 429]


def test_a_bucket_gives_as_many_in_a_second_as_it_says() -> None:
    rate = AddressRates(10)
    assert sum(rate.take("a", 1000 + step / 1000) for step in range(10_000)) in range(109, 112)
    assert sum(rate.take("b", 1000) for _ in range(100)) == 10


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "20010db800010002"),
        (("2001:db8:1:2::1", 5, 0, 0), "20010db800010002"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 5, 0, 2), "fe80000000000000"),
        (("nonsense:", 5), "nonsense:"),
        (None, None),
        ((), None),
        (("", 0), None),
    ],
)
def test_an_address_is_counted_by_what_a_customer_of_a_network_has(address: object, key: str | None) -> None:
    assert address_bucket(address) == key


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        (("10.0.0.1", 1), ["192.0.2.7"], ("192.0.2.7", 0)),
        (("10.0.0.1", 1), ["203.0.113.9, 192.0.2.7, 10.0.0.2"], ("192.0.2.7", 0)),
        (("10.0.0.1", 1), ["203.0.113.9", "192.0.2.7"], ("192.0.2.7", 0)),
        (("::ffff:10.0.0.1", 1, 0, 0), ["2001:db8::1"], ("2001:db8::1", 0)),
        (("10.0.0.1", 1), ["192.0.2.7:4711, 10.0.0.2:80"], ("192.0.2.7", 0)),
        (("10.0.0.1", 1), ["[2001:db8::1]:4711"], ("2001:db8::1", 0)),
        (("10.0.0.1", 1), ["[2001:db8::1]"], ("2001:db8::1", 0)),
        (("10.0.0.1", 1), ["["], None),
        (("10.0.0.1", 1), [":80"], None),
        (None, ["192.0.2.7"], ("192.0.2.7", 0)),
        (("10.0.0.1", 1), ["10.0.0.9"], ("10.0.0.9", 0)),
        (("10.0.0.1", 1), ["10.0.0.8, 10.0.0.9"], ("10.0.0.9", 0)),
        (("10.0.0.1", 1), ["192.0.2.7, unknown, 10.0.0.9"], ("10.0.0.9", 0)),
        (None, ["192.0.2.7, unknown"], ("unknown", 0)),
        (None, [], None),
        (("10.0.0.1", 1), ["192.0.2.7, unknown"], None),
        (("10.0.0.1", 1), ["192.0.2.7, <script>"], None),
        (("10.0.0.1", 1), [""], None),
        (("10.0.0.1", 1), [], None),
        (("192.0.2.66", 1), ["192.0.2.7"], None),
    ],
)
def test_a_proxy_is_believed_if_it_is_trusted_and_only_as_far(peer: Any, forwarded: list[str], client: Any) -> None:
    headers = Headers((b"x-forwarded-for", value.encode()) for value in forwarded)
    assert client_address(peer, headers, [ipaddress.ip_network("10.0.0.0/8")]) == client
    assert client_address(peer, headers, []) is None


async def test_the_address_that_a_trusted_proxy_tells_is_that_of_the_connection() -> None:
    opened: list[Any] = []
    handler = EventHandler(on_open=lambda connection: opened.append(connection.remote_address))
    for trusted, expected in ((("127.0.0.1",), "192.0.2.7"), ((), "127.0.0.1")):
        async with serving(handler, trusted_proxies=trusted) as (_, url):
            assert await status_of(url, **{"X-Forwarded-For": "203.0.113.1, 192.0.2.7"}) == 101
        assert opened.pop()[0] == expected


async def test_half_open_handshakes_keep_nobody_out() -> None:
    """5,000 clients begin a request and never finish it. The hub keeps a limited number and serves other clients."""

    most = 0

    async def watch(reactor: Any) -> None:
        nonlocal most
        while True:
            most = max(most, reactor.connection_count)
            await asyncio.sleep(0)

    with contextlib.ExitStack() as half_open:
        async with serving(EventHandler(), max_pending_handshakes=256) as (hub, url):
            reactor = hub.bind()
            watching = asyncio.create_task(watch(reactor))
            for block in range(50):
                for _ in range(100):
                    client = half_open.enter_context(socket.create_connection(("127.0.0.1", port_of(url))))
                    client.sendall(REQUEST[: 10 + block])
                assert await status_of(url) == 101
                while reactor.connection_count > 256:
                    await asyncio.sleep(0)
            watching.cancel()
            assert most >= 256
            # The client that was served is not pending. A transport ends one loop iteration after its abort.
            assert most <= (257 if HAS_REACTOR else 512)


async def test_the_oldest_half_open_handshake_makes_room() -> None:
    async with serving(EventHandler(), max_pending_handshakes=2) as (_, url):
        streams = [await asyncio.open_connection("127.0.0.1", port_of(url)) for _ in range(2)]
        for _, writer in streams:
            writer.write(b"GET ")
        await asyncio.sleep(0.05)
        assert await status_of(url) == 101
        assert await streams[0][0].read() == b""
        streams[1][1].write(REQUEST[4:])
        assert (await streams[1][0].readline()).startswith(b"HTTP/1.1 101 ")
        for _, writer in streams:
            writer.transport.abort()


async def test_who_waits_for_the_application_makes_no_room_for_half_open_handshakes() -> None:
    asked: list[asyncio.Future[None]] = []

    def decide(request: Any) -> asyncio.Future[None]:
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    async def ask(stack: contextlib.AsyncExitStack, url: str) -> Any:
        peer = await stack.enter_async_context(raw_peer(url, handshake=False))
        number = len(asked)
        peer.write(REQUEST)
        while len(asked) == number:
            await asyncio.sleep(0)
        return peer

    hub = Hub(HubConfig(max_pending_handshakes=2), on_upgrade=decide)
    async with (
        hub.serve("127.0.0.1", 0, EventHandler()) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        url = f"ws://127.0.0.1:{server.port}/"
        first = await ask(stack, url)
        half_open = [await stack.enter_async_context(raw_peer(url, handshake=False)) for _ in range(4)]
        for peer in half_open:
            peer.write(b"GET ")
        # The hub has dropped the oldest two.
        for peer in half_open[:2]:
            assert await peer.reader.read() == b""
        second = await ask(stack, url)
        await ask(stack, url)
        assert (await first.reader.readline()).startswith(b"HTTP/1.1 503 ")
        asked[1].set_result(None)
        assert (await second.reader.readline()).startswith(b"HTTP/1.1 101 ")
        assert hub.refused == {503: 1}


async def in_a_moment(answer: Any) -> Any:
    await asyncio.sleep(0.01)
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.mark.parametrize("waits", [False, True])
async def test_on_upgrade_accepts_refuses_and_attaches_metadata(waits: bool, caplog) -> None:
    def decide(request) -> Mapping[str, Any] | None:
        token = request.query_params.get("token")
        assert request.remote_address[0] == "127.0.0.1"
        if token == "raises":
            raise ValueError("secret")
        if token is None:
            raise HandshakeError(401, "Who are you?", (("WWW-Authenticate", "Bearer"),))
        return {"user": token}

    async def decide_later(request) -> Mapping[str, Any] | None:
        try:
            answer: Any = decide(request)
        except Exception as error:
            answer = error
        return await in_a_moment(answer)

    users = []
    handler = EventHandler(on_open=lambda connection: users.append(connection.metadata["user"]))
    hub = Hub(on_upgrade=decide_later if waits else decide)
    async with hub.serve("127.0.0.1", 0, handler) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with raw_peer(url, handshake=False) as peer:
            # The hub keeps bytes that the client sends before the response.
            peer.write(REQUEST.replace(b"GET /", b"GET /?token=ada", 1))
            assert b" 101 " in await peer.reader.readuntil(b"\r\n\r\n")
        assert await status_of(f"{url}?token=bob") == 101
        assert users == ["ada", "bob"]
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, proxy=None)
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
        assert refused.value.response.body == b"Who are you?"
        assert await status_of(f"{url}?token=raises") == 500
        assert hub.refused[401] == 1
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_on_upgrade_ends_when_the_client_leaves_or_its_time_is_over(clock: Clock) -> None:
    asked: list[asyncio.Task[Any]] = []

    async def decide(request) -> None:
        asked.append(asyncio.current_task())
        await asyncio.Event().wait()

    hub = Hub(clock=clock, on_upgrade=decide)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        # While a transport of the event loop is paused, it does not notice that its peer has left.
        for leaves in (True, False) if HAS_REACTOR else (False,):
            async with raw_peer(url, handshake=False) as peer:
                peer.write(REQUEST)
                while not asked:
                    await asyncio.sleep(0)
                if leaves:
                    peer.reset()
                else:
                    clock.now += 11
                    server._handshakes.expire()
                    assert (await peer.reader.readline()).startswith(b"HTTP/1.1 503 ")
                with pytest.raises(asyncio.CancelledError):
                    await asked.pop()
        assert hub.connection_count == 0


def test_what_cannot_be_called_is_no_hook() -> None:
    with pytest.raises(MisuseError, match="on_upgrade"):
        Hub(on_upgrade=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "warned"),
    [
        ({"Cookie": "session=1", "Origin": "https://evil.example"}, True),
        ({"Cookie": "session=1", "Origin": "null"}, True),
        ({"Cookie": "session=1"}, False),
        ({"Origin": "https://evil.example"}, False),
    ],
)
@pytest.mark.parametrize("allowed", [(), ("*",)])
async def test_a_page_of_anybody_with_a_cookie_is_warned_of_once_unless_it_is_allowed(
    caplog, headers: dict[str, str], warned: bool, allowed: tuple[str, ...]
) -> None:
    async with serving(EventHandler(), allowed_origins=allowed) as (_, url):
        same = {"Cookie": "session=1", "Origin": f"http://127.0.0.1:{port_of(url)}"}
        assert await status_of(url, **same) == 101
        assert caplog.records == []
        for _ in range(3):
            assert await status_of(url, **headers) == 101
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * (warned and not allowed)
        assert "session=1" not in caplog.text
        assert "evil" not in caplog.text


@pytest.mark.parametrize("allow_missing", [False, True])
async def test_a_missing_origin_has_a_setting_and_a_refusal_says_which_it_was(caplog, allow_missing: bool) -> None:
    caplog.set_level(logging.DEBUG, "wshub.client")

    async def refusal(url: str, **headers: str) -> tuple[int, str]:
        try:
            async with connected(url, additional_headers=headers):
                return 101, ""
        except websockets.InvalidStatus as error:
            return error.response.status_code, error.response.body.decode()

    settings = {"allowed_origins": ("https://a.example",), "allow_missing_origin": allow_missing}
    async with serving(EventHandler(), **settings) as (hub, url):
        assert await refusal(url, Origin="https://a.example") == (101, "")
        missing = await refusal(url)
        null = await refusal(url, Origin="null")
        other = await refusal(url, Origin="https://evil.example")
    assert missing[0] == (101 if allow_missing else 403)
    assert ("missing" in missing[1]) is not allow_missing
    assert null[0] == other[0] == 403
    assert "null" in null[1]
    assert "this origin" in other[1]
    assert hub.refused == {403: 2 if allow_missing else 3}
    refusals: list[Any] = [record for record in caplog.records if getattr(record, "event", None) == "refused"]
    assert [record.reason for record in refusals] == [body for _, body in (missing, null, other) if body]
    assert {record.levelno for record in refusals} == {logging.DEBUG}
    assert "evil" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"allow_missing_origin": 1}, "allow_missing_origin"),
        ({"allowed_origins": ("https://*",)}, "allowed_origins"),
        ({"allowed_origins": ("https://a.*.example",)}, "allowed_origins"),
        ({"allowed_origins": ("*://example.com",)}, "allowed_origins"),
        ({"allowed_origins": ("https://*example.com",)}, "allowed_origins"),
        ({"trusted_proxies": "10.0.0.1"}, "trusted_proxies"),
        ({"trusted_proxies": ("proxy",)}, "trusted_proxies"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),
        ({"max_connections_per_address": -1}, "max_connections_per_address"),
        ({"max_connection_rate": -1}, "max_connection_rate"),
        ({"max_pending_handshakes": 0}, "max_pending_handshakes"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        HubConfig(**settings)


async def test_half_open_handshakes_that_come_all_at_once_are_bounded_too() -> None:
    with contextlib.ExitStack() as half_open:
        async with serving(EventHandler(), max_pending_handshakes=10) as (hub, url):
            # The loop does not run in between, so the hub accepts all of them at once.
            for _ in range(500):
                half_open.enter_context(socket.create_connection(("127.0.0.1", port_of(url))))
            reactor = hub.bind()
            most = 0
            for _ in range(200):
                await asyncio.sleep(0)
                most = max(most, reactor.connection_count)
            assert most >= 10
            while reactor.connection_count != 10:
                await asyncio.sleep(0)
            assert await status_of(url) == 101


async def test_the_bound_for_an_address_holds_for_those_who_wait_for_on_upgrade() -> None:
    async def on_upgrade(request: Any) -> None:
        await asyncio.sleep(0.05)

    hub = Hub(HubConfig(max_connections_per_address=2), on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with contextlib.AsyncExitStack() as stack:

            async def attempt() -> int:
                try:
                    await stack.enter_async_context(connected(url))
                except websockets.InvalidStatus as error:
                    return error.response.status_code
                return 101

            answers = await asyncio.gather(*(attempt() for _ in range(10)))
            assert sorted(answers) == [101] * 2 + [429] * 8
            assert hub.connection_count == 2


@pytest.mark.parametrize(
    "error",
    [
        HandshakeError(401, "no", (("X", "a\r\nb"),)),
        HandshakeError(101, "no"),
        HandshakeError(204, "no"),
        HandshakeError(403, None),  # type: ignore[arg-type]
        HandshakeError(401, "no", (("Content-Length", "1"),)),
        asyncio.CancelledError(),
    ],
    ids=["CR LF", "101", "204", "no reason", "own field", "cancelled"],
)
@pytest.mark.parametrize("waits", [False, True])
async def test_a_refusal_that_cannot_be_sent_is_a_500(error, waits) -> None:
    def hook(request):
        raise error

    async def later(request):
        await asyncio.sleep(0)
        raise error

    hub = Hub(HubConfig(close_timeout_ms=100), on_upgrade=later if waits else hook)
    async with hub.serve("127.0.0.1", 0, EventHandler()) as server, asyncio.timeout(2):
        assert await status_of(f"ws://127.0.0.1:{server.port}/") in (500, 503)


class OwnError(BaseException):
    """An exception of an application that derives directly from ``BaseException``."""


@pytest.mark.parametrize(
    "error",
    [GeneratorExit(), BaseExceptionGroup("two", [OwnError(), ValueError()]), OwnError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("suspends", [None, False, True], ids=["function", "at once", "after an await"])
@pytest.mark.parametrize("reactor", [pytest.param(True, marks=needs_reactor), False], ids=["reactor", "transports"])
def test_whatever_on_upgrade_raises_is_a_500_and_one_error_with_its_traceback(
    run, error, suspends, reactor, caplog
) -> None:
    def hook(request):
        raise error

    async def later(request):
        if suspends:
            await asyncio.sleep(0)
        raise error

    async def scenario() -> None:
        hub = Hub(HubConfig(use_reactor=reactor), on_upgrade=hook if suspends is None else later)
        async with hub.serve("127.0.0.1", 0, EventHandler()) as server, asyncio.timeout(5):
            assert await status_of(f"ws://127.0.0.1:{server.port}/") == 500
        assert hub.refused == {500: 1}

    run(scenario())
    records = [record for record in caplog.records if record.levelno > logging.INFO]
    assert [record.getMessage() for record in records] == ["a handshake has failed"]
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is error


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",), ("127.0.0.0/8", "10.0.0.0/8"), ("10.0.0.0/8",)])
async def test_proxies_are_trusted_as_in_uvicorn(trusted: tuple[str, ...]) -> None:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    forwarded = "203.0.113.9, 192.0.2.7, 10.1.2.3"

    addresses = []

    async def application(scope: Any, *_: Any) -> None:
        addresses.append(scope["client"][0])

    headers = [(b"x-forwarded-for", forwarded.encode())]
    scope: Any = {"type": "websocket", "client": ("127.0.0.1", 1), "headers": headers}
    await ProxyHeadersMiddleware(application, list(trusted))(scope, None, None)  # type: ignore[arg-type]
    handler = EventHandler(on_open=lambda connection: addresses.append(connection.remote_address[0]))
    async with (
        serving(handler, trusted_proxies=trusted) as (_, url),
        connected(url, additional_headers={"X-Forwarded-For": forwarded}),
    ):
        pass
    assert addresses[0] == addresses[1]


async def test_authentication_and_origins_are_refused_with_a_status_and_a_body() -> None:
    allowed = ("https://example.com", "http://localhost:3000")
    async with serving(EventHandler(), allowed_origins=allowed) as (_, url):
        for origin in ("null", "https://example.com.evil.org", "https://sub.example.com", "http://example.com", ""):
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(url, proxy=None, additional_headers={"Origin": origin, "Cookie": "a=b"})
            assert caught.value.response.status_code == 403
            assert b"origin" in caught.value.response.body
        async with connected(url, origin="http://localhost:3000"):
            pass
