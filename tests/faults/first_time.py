"""First uses while system calls fail: ``python -m tests.faults.first_time NAME LOOP``.

A failed first use leaves no descriptor and no path behind, and the hub works afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.faults.scenarios import Client, fail, failed, run
from tests.support.certificate import Certificate
from tests.support.raw_peers import REQUEST
from tests.support.uvicorn_server import listening
from wshub import EventHandler, HandshakeError, Hub, HubConfig
from wshub.core.binding import bind_for_request
from wshub.links import accepting
from wshub.uvicorn.event_loop import accept_natively
from wshub.uvicorn.protocol import WebSocketProtocol

SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def echo() -> EventHandler:
    return EventHandler(on_message=lambda connection, message: connection.send(message))


@contextlib.contextmanager
def no_descriptor_left_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Yield the list of lines that are logged as errors."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keeper(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


async def is_served(hub: Hub, **options: Any) -> None:
    async with hub.serve(None if options else "127.0.0.1", 0, echo(), close_hub=True, **options) as server:
        listener = server.sockets[0]
        if listener.family == socket.AF_UNIX:
            client = websockets.unix_connect(listener.getsockname(), proxy=None)
        else:
            client = websockets.connect(f"ws://127.0.0.1:{server.port}", proxy=None)
        async with client as peer:
            await peer.send("served")
            assert await peer.recv() == "served"


async def binding() -> None:
    """A hub whose reactor cannot be created stays unbound; the next request binds it."""
    for error in SHORTAGES:
        for call in ("epoll_create1", "epoll_ctl"):
            hub = Hub()
            with no_descriptor_left_open():
                fail(call, error)
                with pytest.raises(OSError, match=os.strerror(error)):
                    await hub.serve("127.0.0.1", 0, echo()).__aenter__()
                assert failed(call) == 1
                fail(call, error)
                with pytest.raises(OSError, match=os.strerror(error)):
                    await hub.__aenter__()
                assert failed(call) == 1
                with logged() as lines:
                    fail(call, error, times=3)
                    for _ in range(3):
                        with pytest.raises(HandshakeError) as refused:
                            bind_for_request(hub)
                        assert refused.value.status == 503
                    assert len(lines) == 1, lines
                assert hub.broadcast("to nobody") == 0
            bind_for_request(hub)
            await is_served(hub)
            # The hub has closed with its server. Its next use works like the first.
            fail(call, error)
            with pytest.raises(HandshakeError):
                bind_for_request(hub)
            bind_for_request(hub)
            await is_served(hub)


async def listening_on_the_reactor() -> None:
    """A server that can listen on only some of its sockets listens on none, and can be entered again."""
    for skip in (0, 1):
        async with Hub() as hub:
            with no_descriptor_left_open():
                server = hub.serve(None, 0, echo())
                fail("epoll_ctl", errno.ENOSPC, skip=skip)
                with pytest.raises(OSError, match="No space"):
                    await server.__aenter__()
                assert failed("epoll_ctl") == 1
                assert server.sockets == ()
            await is_served(hub)


async def listening_on_a_path() -> None:
    """If the server cannot listen, it removes its path."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "hub.sock")
        async with Hub() as hub:
            with no_descriptor_left_open():
                fail("epoll_ctl", errno.ENOSPC)
                with pytest.raises(OSError, match="No space"):
                    await hub.serve(unix=path, handler=echo()).__aenter__()
                assert not os.path.exists(path)
            await is_served(hub, unix=path)


async def listening_on_a_given_socket() -> None:
    """If the server cannot listen on a socket of the application, the socket stays open."""
    given = socket.socket()
    given.bind(("127.0.0.1", 0))
    async with Hub() as hub:
        fail("epoll_ctl", errno.ENOSPC)
        with pytest.raises(OSError, match="No space"):
            await hub.serve(sock=given, handler=echo()).__aenter__()
        await is_served(hub, sock=given)


async def listening_with_tls() -> None:
    """The same holds for sockets whose connections have transports."""
    with tempfile.TemporaryDirectory() as directory:
        certificate = Certificate(Path(directory))
        async with Hub() as hub:
            server = hub.serve(None, 0, echo(), ssl=certificate.server_context())
            with no_descriptor_left_open():
                for skip in (0, 1):
                    fail("epoll_ctl", errno.ENOMEM, skip=skip)
                    with pytest.raises(OSError, match="Cannot allocate"):
                        await server.__aenter__()
                    assert failed("epoll_ctl") == 1
            async with server:
                url = f"wss://localhost:{server.port}"
                async with websockets.connect(url, proxy=None, ssl=certificate.client_context()) as peer:
                    await peer.send("served")
                    assert await peer.recv() == "served"


async def accepting_for_transports() -> None:
    """Running out of descriptors is logged once; the server accepts connections again when some are free."""
    accepting.RETRY_DELAY = 0.01
    for error in (*SHORTAGES, errno.ENOBUFS):
        with logged() as lines:
            async with Hub(HubConfig(use_reactor=False)).serve("127.0.0.1", 0, echo()) as server:
                for _ in range(2):
                    fail("accept4", error, times=3)
                    client = await Client(server.port).handshake()
                    assert failed("accept4") == 3
                    await client.echo("served")
                    client.socket.close()
        assert len(lines) == 2, lines


async def connecting_transports() -> None:
    """If no transport can be created for a connection, it is closed. This is logged once."""
    for error in (errno.ENOMEM, errno.ENOSPC):
        with logged() as lines:
            async with Hub(HubConfig(use_reactor=False)).serve("127.0.0.1", 0, echo()) as server:
                client = await Client(server.port).handshake()
                setups = fail_transports(error, 3)
                with setups:
                    for _ in range(3):
                        await Client(server.port).end()
                await client.echo("still served")
                await (await Client(server.port).handshake()).echo("served")
        assert len(lines) == 1, lines


@contextlib.contextmanager
def fail_transports(error: int, times: int) -> Iterator[None]:
    """Make the loop fail to create a transport."""
    connect = accepting.connect_accepted_socket
    failures = iter(range(times))

    async def fail_first(*arguments: Any, **options: Any) -> Any:
        if next(failures, None) is None:
            return await connect(*arguments, **options)
        raise OSError(error, os.strerror(error))

    accepting.connect_accepted_socket = fail_first  # type: ignore[assignment]
    try:
        yield
    finally:
        accepting.connect_accepted_socket = connect


@contextlib.asynccontextmanager
async def application(app: Any) -> AsyncIterator[int]:
    async with listening(app, log_config=None) as address:
        yield int(address.rpartition(":")[2])


async def status_of(port: int, path: str = "/") -> bytes:
    client = Client(port)
    client.write(REQUEST.replace(b"GET / ", b"GET %s " % path.encode()))
    while b"\r\n" not in client.received:
        await client.read_more()
    client.socket.close()
    return client.received[9:12]


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """An application without a hub."""
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


async def binding_under_uvicorn() -> None:
    """Requests get a 503 while the hub cannot be bound, with one line in the log. Later requests are served."""
    guarded = Starlette(routes=[Mount("/", Hub().asgi(echo()))])
    for app in (plain, guarded):
        async with application(app) as port:
            with logged() as lines:
                for _ in range(3):
                    fail("epoll_create1", errno.EMFILE)
                    assert await status_of(port) == b"503"
                    assert failed("epoll_create1") == 1
                assert len(lines) == 1, lines
            for _ in range(2):
                assert await status_of(port) == b"101"


async def binding_a_second_hub() -> None:
    """The same holds for a hub whose requests arrive through the reactor of another hub."""
    accept_natively(asyncio.get_running_loop())
    first, second = Hub(), Hub()
    app = Starlette(routes=[Mount("/a", first.asgi(echo())), Mount("/b", second.asgi(echo()))])
    async with application(app) as port:
        assert await status_of(port, "/a/") == b"101"
        with logged() as lines:
            for _ in range(3):
                fail("epoll_create1", errno.EMFILE)
                assert await status_of(port, "/b/") == b"503"
                assert failed("epoll_create1") == 1
            assert len(lines) == 1, lines
        assert await status_of(port, "/b/") == b"101"


async def adopting() -> None:
    """If the hub's reactor cannot watch a socket, its request gets a 503."""
    duplicate = WebSocketProtocol._duplicate

    def fail_next(protocol: WebSocketProtocol) -> int:
        descriptor = duplicate(protocol)
        fail("epoll_ctl", errno.ENOSPC)
        return descriptor

    async with application(Starlette(routes=[Mount("/", Hub().asgi(echo()))])) as port:
        assert await status_of(port) == b"101"
        with logged() as lines:
            WebSocketProtocol._duplicate = fail_next  # type: ignore[method-assign]
            for _ in range(3):
                assert await status_of(port) == b"503"
            WebSocketProtocol._duplicate = duplicate  # type: ignore[method-assign]
            assert len(lines) == 1, lines
        assert await status_of(port) == b"101"


FIRST_TIME = {
    "binding": binding,
    "listening_on_the_reactor": listening_on_the_reactor,
    "listening_on_a_path": listening_on_a_path,
    "listening_on_a_given_socket": listening_on_a_given_socket,
    "listening_with_tls": listening_with_tls,
    "accepting_for_transports": accepting_for_transports,
    "connecting_transports": connecting_transports,
    "binding_under_uvicorn": binding_under_uvicorn,
    "binding_a_second_hub": binding_a_second_hub,
    "adopting": adopting,
}


if __name__ == "__main__":
    run(FIRST_TIME)
