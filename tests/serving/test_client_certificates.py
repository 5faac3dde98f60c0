"""Mutual TLS with ``Hub.serve``: ``on_upgrade`` and the connection know the client's certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.certificate import Certificate
from tests.support.raw_peers import REQUEST
from tests.support.reactor import needs_reactor
from tests.support.tls_peers import TlsPeer
from wshub import Connection, EventHandler, HandshakeError, Hub, HubConfig, RequestHead
from wshub.serving.server import Server

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

ALICE = ((("organizationName", "Wonderland, Ltd."),), (("commonName", "alice"),))


@pytest.fixture(params=[pytest.param(True, marks=needs_reactor), False], ids=["reactor", "transports"])
def native(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def context(certificate: Certificate, alice: Certificate) -> ssl.SSLContext:
    """The context of a server that asks clients for certificates."""
    context = certificate.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(alice.chain)
    return context


@contextlib.asynccontextmanager
async def serving(
    native: bool, handler: Any = None, *, on_upgrade: Any = None, **options: Any
) -> AsyncIterator[Server]:
    handler = handler or EventHandler(on_message=lambda connection, message: connection.send(message))
    hub = Hub(HubConfig(use_reactor=native), on_upgrade=on_upgrade)
    async with hub.serve("127.0.0.1", 0, handler, **options) as server:
        yield server


@contextlib.asynccontextmanager
async def opened(
    server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> AsyncIterator[tuple[TlsPeer, Connection]]:
    """Open a WebSocket. Yields the client, and the connection of the hub."""
    async with TlsPeer(server.port, context, session) as peer:
        await peer.open()
        await peer.echo()
        (connection,) = server.hub.connections
        yield peer, connection


async def until_closed(connection: Connection, peer: TlsPeer) -> None:
    connection.close()
    await peer.message()
    peer.socket.close()
    await connection.wait_closed()


@pytest.mark.parametrize("version", VERSIONS)
async def test_on_upgrade_and_the_connection_know_the_client(native, certificate, context, alice, version) -> None:
    asked: list[Any] = []

    def on_upgrade(request: RequestHead) -> dict[str, str]:
        found = request.getpeercert()
        assert found is not None
        asked.append((found, request.getpeercert(True), request.getpeercert(binary_form=True)))
        return {"user": dict(part[0] for part in found["subject"])["commonName"]}

    client = certificate.client_context(alice)
    client.maximum_version = version
    async with serving(native, ssl=context, on_upgrade=on_upgrade) as server, opened(server, client) as (peer, found):
        assert peer.tls.version() == version.name.replace("_", ".")
        assert found.user == "alice"
        names = found.getpeercert()
        assert names is not None
        assert names["subject"] == ALICE
        assert names["subjectAltName"][0] == ("DNS", "localhost")
        assert asked == [(names, alice.der(), alice.der())]
        assert found.getpeercert(binary_form=True) == alice.der()
        assert found.request is not None
        assert found.request.getpeercert() == names


async def test_a_coroutine_may_ask_after_it_has_waited(native, certificate, context, alice) -> None:
    async def on_upgrade(request: RequestHead) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"certificate": request.getpeercert(True)}

    async with (
        serving(native, ssl=context, on_upgrade=on_upgrade) as server,
        opened(server, certificate.client_context(alice)) as (_, connection),
    ):
        assert connection.metadata == {"certificate": alice.der()}


async def test_on_upgrade_refuses_a_client_by_its_certificate(native, certificate, context, alice, tmp_path) -> None:
    mallory = Certificate(tmp_path, "ECDSA", subject="/CN=mallory")
    context.load_verify_locations(mallory.chain)

    def on_upgrade(request: RequestHead) -> None:
        found = request.getpeercert()
        if found is None or found["subject"] != ALICE:
            raise HandshakeError(403, "You are not Alice.")

    async with serving(native, ssl=context, on_upgrade=on_upgrade) as server:
        async with opened(server, certificate.client_context(alice)):
            pass
        async with TlsPeer(server.port, certificate.client_context(mallory)) as peer:
            with pytest.raises(AssertionError):
                await peer.open()
            assert b"403" in peer._rest


async def test_a_certificate_that_is_optional_may_be_missing(native, certificate, context, alice) -> None:
    context.verify_mode = ssl.CERT_OPTIONAL
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    asked: list[Any] = []

    def on_upgrade(request: RequestHead) -> None:
        asked.append(request.getpeercert(True))

    async with serving(native, ssl=context, on_upgrade=on_upgrade) as server:
        async with opened(server, certificate.client_context()) as (peer, connection):
            assert connection.getpeercert() is None
            assert connection.getpeercert(True) is None
            await until_closed(connection, peer)
        async with opened(server, certificate.client_context(alice)) as (_, connection):
            found = connection.getpeercert()
            assert found is not None
            assert found["subject"] == ALICE
    assert asked == [None, alice.der()]


async def test_a_client_that_is_not_asked_has_shown_none(native, certificate, alice) -> None:
    async with (
        serving(native, ssl=certificate.server_context()) as server,
        opened(server, certificate.client_context(alice)) as (_, connection),
    ):
        assert connection.getpeercert() is None
        assert connection.getpeercert(True) is None


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_resumed_session_has_the_certificate(native, certificate, context, alice, version) -> None:
    client = certificate.client_context(alice)
    client.maximum_version = version
    async with serving(native, ssl=context) as server:
        async with opened(server, client) as (first, connection):
            await until_closed(connection, first)
        async with opened(server, client, first.tls.session) as (second, connection):
            assert second.tls.session_reused
            assert connection.getpeercert(True) == alice.der()
            found = connection.getpeercert()
            assert found is not None
            assert found["subject"] == ALICE


@pytest.mark.parametrize("end", ["hub", "client", "failure"])
async def test_a_closed_connection_has_none(native, certificate, context, alice, end) -> None:
    seen: list[Any] = []

    def on_close(connection: Connection, code: int, reason: str) -> None:
        seen.append(connection.getpeercert())

    handler = EventHandler(on_message=lambda connection, message: connection.send(message), on_close=on_close)
    async with (
        serving(native, handler, ssl=context) as server,
        opened(server, certificate.client_context(alice)) as (peer, connection),
    ):
        request = connection.request
        assert request is not None
        assert connection.getpeercert() is not None
        if end == "hub":
            await until_closed(connection, peer)
        elif end == "client":
            peer.socket.close()
        else:
            await peer.send(b"\xff" * 100)
            await peer.is_ended()
            peer.socket.close()
        await connection.wait_closed()
        while not seen:
            await asyncio.sleep(0)
        assert seen == [None]
        assert connection.getpeercert() is None
        assert connection.getpeercert(True) is None
        assert request.getpeercert() is None


async def test_a_closing_connection_has_it_until_the_client_answers(native, certificate, context, alice) -> None:
    async with (
        serving(native, ssl=context) as server,
        opened(server, certificate.client_context(alice)) as (peer, connection),
    ):
        connection.close()
        assert connection.getpeercert(True) == alice.der()
        await until_closed(connection, peer)
        assert connection.getpeercert(True) is None


async def test_a_connection_without_tls_has_none(native) -> None:
    def on_upgrade(request: RequestHead) -> dict[str, Any]:
        return {"certificates": [request.getpeercert(), request.getpeercert(True)]}

    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    handler = EventHandler(on_open=opened.set_result)
    async with serving(native, handler, on_upgrade=on_upgrade) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        connection = await opened
        assert connection.metadata == {"certificates": [None, None]}
        assert connection.getpeercert() is None
        assert connection.getpeercert(True) is None
        writer.transport.abort()


class OwnObject(ssl.SSLObject):
    """An application's own class, whose methods the reactor calls."""

    def read(self, *arguments: Any) -> Any:
        return super().read(*arguments)


@pytest.mark.parametrize("kind", ["message callback", "own class"])
async def test_contexts_of_every_kind_tell_the_certificate(native, certificate, context, alice, kind) -> None:
    if kind == "own class":
        context.sslobject_class = OwnObject
    else:
        context._msg_callback = lambda *_: None  # type: ignore[attr-defined]
    async with (
        serving(native, ssl=context) as server,
        opened(server, certificate.client_context(alice)) as (peer, connection),
    ):
        request = connection.request
        assert request is not None
        assert connection.getpeercert(True) == alice.der()
        peer.socket.close()
        await connection.wait_closed()
        assert connection.getpeercert(True) is None
        assert request.getpeercert(True) is None


async def test_another_thread_may_ask(native, certificate, context, alice) -> None:
    async with (
        serving(native, ssl=context) as server,
        opened(server, certificate.client_context(alice)) as (_, connection),
    ):
        assert await asyncio.to_thread(connection.getpeercert, True) == alice.der()


async def test_the_certificate_is_not_kept(native, certificate, context, alice) -> None:
    async with (
        serving(native, ssl=context) as server,
        opened(server, certificate.client_context(alice)) as (_, connection),
    ):
        first, second = connection.getpeercert(), connection.getpeercert()
        assert first == second
        assert first is not second
