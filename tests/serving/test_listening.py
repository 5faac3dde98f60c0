"""Listening on addresses, Unix sockets and given sockets, each also with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys

import pytest
import websockets

from tests.support.raw_peers import REQUEST
from tests.support.serving_hub import connected
from wshub import EventHandler, Hub, HubConfig, MisuseError


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


async def echoes(client: websockets.ClientConnection) -> None:
    for message in ("text", b"bytes", "y" * 300_000):
        await client.send(message)
        assert await client.recv() == message


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_a_hub_listens_on_every_address_of_a_host(host, certificate, secure) -> None:
    hub = Hub(HubConfig(max_message_size=1 << 20))
    context = certificate.server_context() if secure else None
    options = {"ssl": certificate.client_context(), "server_hostname": "localhost"} if secure else {}
    async with hub.serve(host, 0, echo(), ssl=context) as server:
        assert {listening.getsockname()[1] for listening in server.sockets} == {server.port}
        for listening in server.sockets:
            address = listening.getsockname()[0]
            name = f"[{address}]" if ":" in address else address
            url = f"{'wss' if secure else 'ws'}://{name}:{server.port}/"
            async with connected(url, max_size=None, **options) as client:
                await echoes(client)
                connection = hub.get_connection(server.sockets.index(listening) + 1)
                assert connection.remote_address == client.local_address[:2]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_unix_socket_is_served_and_its_path_removed(tmp_path, certificate, secure) -> None:
    path = str(tmp_path / "hub.sock")
    # A process that was killed leaves such a path.
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)

    context = certificate.server_context() if secure else None
    hub = Hub(HubConfig(max_message_size=1 << 20))
    async with hub.serve(unix=path, handler=echo(), ssl=context):
        options = {"ssl": certificate.client_context(), "server_hostname": "localhost"} if secure else {}
        async with websockets.unix_connect(path, proxy=None, max_size=None, **options) as client:
            await echoes(client)
            connection = hub.get_connection(1)
            assert connection is not None
            assert connection.remote_address is None
    assert not os.path.exists(path)


async def test_a_path_that_another_server_has_taken_is_left_to_it(tmp_path) -> None:
    path = str(tmp_path / "hub.sock")

    first = Hub().serve(unix=path, handler=echo())
    await first.__aenter__()
    async with Hub(HubConfig(max_message_size=1 << 20)).serve(unix=path, handler=echo()):
        await first.__aexit__(None, None, None)
        async with websockets.unix_connect(path, proxy=None, max_size=None) as client:
            await echoes(client)
    assert not os.path.exists(path)


async def test_a_socket_of_the_application_is_listened_on() -> None:
    given = socket.socket()
    given.bind(("127.0.0.1", 0))
    async with (
        Hub(HubConfig(max_message_size=1 << 20)).serve(sock=given, handler=echo()) as server,
        connected(f"ws://127.0.0.1:{server.port}/", max_size=None) as client,
    ):
        await echoes(client)


@pytest.mark.parametrize("given", ["context", "files"])
def test_tls_carries_messages_of_every_size_and_its_close(run, certificate, given) -> None:
    async def scenario() -> None:
        closes = asyncio.get_running_loop().create_future()
        handler = EventHandler(
            on_message=lambda connection, message: connection.send(message),
            on_close=lambda connection, code, reason: closes.set_result((code, reason)),
        )
        if given == "context":
            options = {"ssl": certificate.server_context()}
        else:
            options = {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key}
        hub = Hub(HubConfig(max_message_size=1 << 22))
        async with hub.serve("localhost", 0, handler, **options) as server:
            url = f"wss://localhost:{server.port}/"
            async with connected(url, ssl=certificate.client_context(), max_size=None) as client:
                await echoes(client)
                await client.send("z" * (1 << 22))
                assert len(await client.recv()) == 1 << 22
                await client.close(4000, "done")
            assert await closes == (4000, "done")
            stats = hub.stats()
            assert stats.messages_accepted == stats.messages_delivered == 4

    run(scenario())


async def test_a_tls_server_closes_all_connections_with_1001(certificate) -> None:
    hub = Hub()
    async with contextlib.AsyncExitStack() as stack:
        async with hub.serve("localhost", 0, echo(), ssl=certificate.server_context()) as server:
            url = f"wss://localhost:{server.port}/"
            clients = [
                await stack.enter_async_context(connected(url, ssl=certificate.client_context())) for _ in range(5)
            ]
            watching = [asyncio.create_task(client.wait_closed()) for client in clients]
        await asyncio.gather(*watching)
        assert {client.close_code for client in clients} == {1001}
        assert hub.connection_count == 0


async def test_what_is_no_tls_disturbs_nobody(certificate, clock) -> None:
    hub = Hub(clock=clock)
    async with hub.serve("localhost", 0, echo(), ssl=certificate.server_context()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        # The server sends a TLS alert or nothing, and closes the connection.
        await reader.read()
        writer.close()
        # The handshake timeout closes a connection that sends nothing.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            clock.pass_for(1, hub)
            await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionResetError):
            await reading
        writer.close()
        async with connected(f"wss://localhost:{server.port}/", ssl=certificate.client_context()) as client:
            await client.send("still there")
            assert await client.recv() == "still there"


@pytest.mark.parametrize(
    "options",
    [
        {"host": "127.0.0.1", "unix": "/tmp/never"},
        {"ssl_keyfile": "key.pem"},
        {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "ssl_certfile": "certificate.pem"},
    ],
)
def test_what_contradicts_itself_is_refused(options) -> None:
    with pytest.raises(MisuseError):
        Hub().serve(handler=echo(), **options)


async def test_an_address_in_use_raises_and_leaves_nothing_open() -> None:
    async with Hub().serve("127.0.0.1", 0, echo()) as server:
        # The hubs of earlier tests are closed when they are freed.
        gc.collect()
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
        hub = Hub(HubConfig(use_reactor=False))
        with pytest.raises(OSError, match="in use"):
            async with hub.serve("127.0.0.1", server.port, echo()):
                pass
        await hub.close()
        assert before is None or len(os.listdir("/proc/self/fd")) == before


async def test_the_reactor_can_be_switched_off_for_one_hub() -> None:
    hub = Hub(HubConfig(use_reactor=False, max_message_size=1 << 20))
    async with hub.serve("127.0.0.1", 0, echo()) as server:
        assert not hub.can_adopt()
        async with connected(f"ws://127.0.0.1:{server.port}/", max_size=None) as client:
            await echoes(client)
