"""Mutual TLS under uvicorn: connections, ``on_upgrade`` and scopes have the client's certificate."""

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


async def scope_of(serve: Serve, context: ssl.SSLContext | None, **options: Any) -> Any:
    """Return the scope of a WebSocket request, for an application that asks its server alone."""
    scopes: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scopes.set_result(scope)
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with serve(application, **options) as port, connected(f"wss://localhost:{port}/", ssl=context):
        return await scopes


async def test_a_scope_has_the_extension_of_asgi(serve, certificate, alice) -> None:
    context = certificate.client_context(alice)
    scope = await scope_of(serve, context, verify_mode=ssl.CERT_REQUIRED)
    extension = scope["extensions"]["tls"]
    chain = extension.pop("client_cert_chain")
    assert [ssl.PEM_cert_to_DER_cert(each) for each in chain] == [alice.der()]
    cipher_suite = extension.pop("cipher_suite")
    assert cipher_suite in (0x1301, 0x1302, 0x1303)
    assert extension == {
        "server_cert": None,
        "client_cert_name": "CN=alice,O=Wonderland\\, Ltd.",
        "client_cert_error": None,
        "tls_version": 0x0304,
    }


async def test_a_scope_of_tls_1_2_says_so(serve, certificate, alice) -> None:
    context = certificate.client_context(alice)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    extension = (await scope_of(serve, context))["extensions"]["tls"]
    assert (extension["tls_version"], extension["cipher_suite"]) == (0x0303, 0xC02F)
    assert extension["client_cert_name"] == "CN=alice,O=Wonderland\\, Ltd."


async def test_a_scope_without_a_certificate_says_that_there_is_none(serve, certificate) -> None:
    extension = (await scope_of(serve, certificate.client_context()))["extensions"]["tls"]
    assert extension["client_cert_chain"] == []
    assert extension["client_cert_name"] is None
    assert extension["client_cert_error"] is None


async def test_a_scope_without_tls_has_no_extension() -> None:
    scopes: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scopes.set_result(scope)
        await receive()
        await send({"type": "websocket.accept"})

    async with listening(application, log_config=None) as address, connected(f"ws://{address}/"):
        assert "tls" not in (await scopes)["extensions"]
