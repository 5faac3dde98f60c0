"""A client has the same address on every path, and cannot choose it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, Hub, HubConfig
from wshub.uvicorn.event_loop import accept_natively

SERVERS = ["serve", "uvicorn", pytest.param("acceptor", marks=needs_reactor), "guarded"]
ALL_ADDRESSES = ("0.0.0.0/0", "::/0")


class Guard:
    """Middleware. Behind it no route is native."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Served:
    """A hub on one kind of server, and the addresses of its clients."""

    def __init__(self, **settings: Any) -> None:
        self.asked: list[Any] = []
        self.opened: list[Any] = []
        self.settings = settings

    def on_upgrade(self, request: Any) -> None:
        self.asked.append(request.remote_address)

    def on_open(self, connection: Connection) -> None:
        self.opened.append(connection.remote_address)
        connection.send("open")

    @contextlib.asynccontextmanager
    async def on(
        self, server: str, *, asks: bool = False, trusted: str = "127.0.0.1", **where: Any
    ) -> AsyncIterator[str]:
        hub = Hub(HubConfig(**self.settings), on_upgrade=self.on_upgrade if asks else None)
        handler = EventHandler(on_open=self.on_open)
        if server == "serve":
            place = {"unix": where["uds"]} if "uds" in where else {"host": where.get("host", "127.0.0.1")}
            async with hub.serve(handler=handler, **place) as native:
                host = where.get("host", "127.0.0.1")
                yield where.get("uds") or f"{f'[{host}]' if ':' in host else host}:{native.port}"
            return
        app: Any = Starlette(
            routes=[Mount("/", hub.asgi(handler))], middleware=[Middleware(Guard)] * (server == "guarded")
        )
        if server == "acceptor":
            accept_natively(asyncio.get_running_loop())
        async with listening(app, log_config=None, forwarded_allow_ips=trusted, **where) as address:
            yield address


def connecting(address: str, **headers: str) -> Any:
    options = {"additional_headers": headers, "compression": None, "proxy": None}
    if address.startswith("/"):
        return websockets.unix_connect(address, **options)
    return connected(f"ws://{address}/", **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("server", SERVERS)
async def test_an_address_is_a_pair_of_host_and_port(server, host) -> None:
    for asks in (False, True):
        served = Served()
        async with served.on(server, asks=asks, host=host) as address, connecting(address) as client:
            assert await client.recv() == "open"
            expected = client.local_address[:2]
            assert expected[0] == host
            assert served.opened == [expected]
            assert served.asked == [expected] * asks


# The field's value, and the expected address. The last entry is the proxy's, the others are the client's.
FORGED = [
    ("192.0.2.7", "192.0.2.7"),
    ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
    ("198.51.100.1,198.51.100.2 , 192.0.2.7:4711", "192.0.2.7"),
    ("127.0.0.1, 198.51.100.1, [2001:db8::1]:80", "2001:db8::1"),
    ("unknown, 192.0.2.7", "192.0.2.7"),
]


@pytest.mark.parametrize("over", ["tcp", "unix"])
@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_cannot_choose_its_address_where_all_addresses_are_trusted(server, over, tmp_path) -> None:
    served = Served(trusted_proxies=ALL_ADDRESSES)
    where = {"uds": str(tmp_path / "hub.sock")} if over == "unix" else {}
    async with served.on(server, asks=server != "acceptor", trusted="*", **where) as address:
        for forwarded, expected in FORGED:
            async with connecting(address, **{"X-Forwarded-For": forwarded}) as client:
                assert await client.recv() == "open"
            assert served.opened.pop() == (expected, 0)
            assert server == "acceptor" or served.asked.pop() == (expected, 0)


@pytest.mark.parametrize("server", SERVERS)
async def test_the_last_address_that_is_no_trusted_proxy_counts(server) -> None:
    cases = [
        ("198.51.100.1, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7, 10.1.2.3:80, 127.0.0.1", "192.0.2.7"),
        # All entries are proxies: the last is the address that the nearest proxy saw.
        ("10.1.2.3, 10.9.9.9", "10.9.9.9"),
        ("10.1.2.3", "10.1.2.3"),
    ]

    served = Served(trusted_proxies=("127.0.0.1", "10.0.0.0/8"))
    async with served.on(server, trusted="127.0.0.1,10.0.0.0/8") as address:
        for forwarded, expected in cases:
            async with connecting(address, **{"X-Forwarded-For": forwarded}) as client:
                assert await client.recv() == "open"
            assert served.opened.pop() == (expected, 0)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_bound_on_connections_holds_for_those_who_forge_their_address(server, tmp_path) -> None:
    served = Served(trusted_proxies=ALL_ADDRESSES, max_connections_per_address=2)
    async with (
        served.on(server, trusted="*", uds=str(tmp_path / "hub.sock")) as address,
        contextlib.AsyncExitStack() as stack,
    ):
        statuses = []
        for number in range(4):
            forwarded = {"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.7"}
            try:
                await stack.enter_async_context(connecting(address, **forwarded))
                statuses.append(101)
            except websockets.InvalidStatus as error:
                statuses.append(error.response.status_code)
        assert statuses == [101, 101, 429, 429]
        # Connections without an address count as one client.
        for number in range(4):
            with contextlib.suppress(websockets.InvalidStatus):
                await stack.enter_async_context(connecting(address, **{"X-Forwarded-For": f"nobody-{number}"}))
        assert len(served.opened) == 4
        assert served.opened[2:] == [None, None]


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "wss"), ("*", "wss"), ("192.0.2.1", "ws")])
async def test_a_trusted_proxy_tells_the_scheme_and_the_client_to_an_application(http, trusted, scheme) -> None:
    told: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        told.append((scope["client"][0], scope["scheme"]))
        await send({"type": "websocket.accept"})

    headers = {"X-Forwarded-For": "198.51.100.1, 192.0.2.7", "X-Forwarded-Proto": "https"}
    async with (
        listening(application, http, log_config=None, forwarded_allow_ips=trusted) as address,
        connecting(address, **headers),
    ):
        client = "127.0.0.1" if trusted == "192.0.2.1" else "192.0.2.7"
        assert told == [(client, scheme)]
    async with (
        listening(application, http, log_config=None, proxy_headers=False) as address,
        connecting(address, **headers),
    ):
        assert told[1:] == [("127.0.0.1", "ws")]
