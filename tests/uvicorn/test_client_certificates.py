"""Mutual TLS under uvicorn: connections and ``on_upgrade`` have the client's certificate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.certificate import Certificate
from tests.support.middleware import RebuildsAccept
from tests.support.reactor import needs_reactor
from tests.support.serving_hub import connected
from tests.support.uvicorn_server import listening
from wshub import Connection, EventHandler, Hub, HubConfig, RequestHead
from wshub.app import App, Context
from wshub.uvicorn.event_loop import accept_natively

Serve = Callable[..., contextlib.AbstractAsyncContextManager[int]]

# How the hub gets the connection: as a native route, from the protocol class of uvicorn, over a transport, and so on.
PATHS = ["native", "other", "behind", "transport", "guest", "asked", "asked/later", "accept", "handle", "registered"]

ALICE = [[["organizationName", "Wonderland, Ltd."]], [["commonName", "alice"]]]


@pytest.fixture(params=[pytest.param("reactor", marks=needs_reactor), "transports", "uvicorn alone"])
def serve(
    request: pytest.FixtureRequest, certificate: Certificate, alice: Certificate, monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Serve an application that asks clients for certificates: accept in the reactor or not, or let uvicorn accept."""

    @contextlib.asynccontextmanager
    async def served(app: Any, verify_mode: ssl.VerifyMode = ssl.CERT_OPTIONAL) -> AsyncIterator[int]:
        if request.param != "uvicorn alone":
            accept_natively(asyncio.get_running_loop())
        options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}
        options |= {"ssl_cert_reqs": verify_mode, "ssl_ca_certs": alice.chain}
        async with listening(app, log_config=None, **options) as address:
            yield int(address.rpartition(":")[2])

    if request.param == "transports":
        monkeypatch.setenv("WSHUB_USE_REACTOR", "0")
    return served


def tell(connection: Connection) -> None:
    """Send what the connection knows, and what ``on_upgrade`` knew of the same client."""
    certificate, der = connection.getpeercert(), connection.getpeercert(True)
    assert connection.metadata.get("asked", certificate) == certificate
    subject = certificate["subject"] if certificate is not None else None
    connection.send(json.dumps([subject, der.hex() if der is not None else None]))


def ask(request: RequestHead) -> dict[str, Any]:
    return {"asked": request.getpeercert()}


async def ask_later(request: RequestHead) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return ask(request)


class Application:
    """An application with a hub for each way of serving."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        handler = EventHandler(on_open=self.opened)
        hub = Hub()

        async def accept(websocket: WebSocket) -> None:
            connection = await hub.accept(websocket)
            self.opened(connection)
            await connection.wait_closed()

        async def handle(websocket: WebSocket) -> None:
            await hub.accept(websocket, handler)

        self.app = Starlette(
            routes=[
                WebSocketRoute("/accept", accept),
                WebSocketRoute("/handle", handle),
                Mount("/native", hub.asgi(handler)),
                Mount("/other", Hub().asgi(handler)),
                Mount("/behind", hub.asgi(handler), middleware=[Middleware(RebuildsNothing)]),
                Mount("/transport", Hub(HubConfig(use_reactor=False)).asgi(handler)),
                Mount("/guest", hub.asgi(handler), middleware=[Middleware(RebuildsAccept)]),
                Mount("/asked/later", Hub(on_upgrade=ask_later).asgi(handler)),
                Mount("/asked", Hub(on_upgrade=ask).asgi(handler)),
                Mount("/registered", self._registering(handler)),
            ]
        )

    def _registering(self, handler: EventHandler) -> App:
        app = App()
        hub = app.enable_websocket()

        @app.get("/")
        def register(context: Context) -> None:
            hub.register(handler)

        return app

    def opened(self, connection: Connection) -> None:
        self.connections.append(connection)
        tell(connection)


class RebuildsNothing:
    """Middleware that passes every request on. Behind it no route is native."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("path", PATHS)
async def test_a_connection_knows_the_client_however_it_is_served(serve, certificate, alice, path) -> None:
    application = Application()
    async with serve(application.app) as port:
        url = f"wss://localhost:{port}/{path}{'' if path in ('accept', 'handle') else '/'}"
        async with connected(url, ssl=certificate.client_context(alice)) as client:
            subject, der = json.loads(await client.recv())
            assert subject == ALICE
            assert bytes.fromhex(der) == alice.der()
        (connection,) = application.connections
        await connection.wait_closed()
        assert connection.getpeercert() is None
        assert connection.getpeercert(True) is None
        assert connection.request is not None
        while connection.request.getpeercert() is not None:
            # Behind middleware, the server's connection ends after the hub's.
            await asyncio.sleep(0)
        async with connected(url, ssl=certificate.client_context()) as client:
            assert json.loads(await client.recv()) == [None, None]


@pytest.mark.parametrize("path", ["native", "behind", "transport", "guest"])
async def test_a_connection_that_the_hub_has_closed_has_none(serve, certificate, alice, path) -> None:
    application = Application()
    async with (
        serve(application.app) as port,
        connected(f"wss://localhost:{port}/{path}/", ssl=certificate.client_context(alice)) as client,
    ):
        assert json.loads(await client.recv()) == [ALICE, alice.der().hex()]
        (connection,) = application.connections
        connection.close()
        await connection.wait_closed()
        assert connection.getpeercert() is None
        assert connection.getpeercert(True) is None
