"""Event loops on which uvicorn's sockets are listened on by an acceptor, and TLS has the fastest transports there are.

``uvicorn main:app --loop wshub.app.event_loop:new_event_loop --ws wshub.app.uvicorn_protocol:WebSocketProtocol``

uvicorn listens with ``loop.create_server`` and ``loop.create_unix_server``. On these loops both are as ever, except for
a server of uvicorn's that has wshub's protocol class.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config

from wshub.hub.listening import UnixAddress, bind_address
from wshub.links.reactors import has_native_reactor
from wshub.links.transports import create_server as create_transport_server

if TYPE_CHECKING:
    from wshub.app.acceptor import Acceptor

__all__ = ["accept_natively", "new_asyncio_loop", "new_event_loop", "new_uvloop_loop"]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed; else the standard library's."""
    try:
        return new_uvloop_loop()
    except ImportError:
        return new_asyncio_loop()


def new_uvloop_loop() -> asyncio.AbstractEventLoop:
    """uvloop's. Raises ``ImportError`` where it is not installed."""
    import uvloop

    return accept_natively(uvloop.new_event_loop())


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """The standard library's."""
    return accept_natively(asyncio.new_event_loop())


def accept_natively(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Give a loop the methods that listen for uvicorn here, and return it."""
    patched: Any = loop
    patched.create_server = partial(_create_server, loop, loop.create_server)
    if hasattr(socket, "AF_UNIX"):
        patched.create_unix_server = partial(_create_unix_server, loop, loop.create_unix_server)
    return loop


async def _create_server(
    loop: asyncio.AbstractEventLoop,
    original: Callable[..., Any],
    protocol_factory: Callable[[], Any],
    host: Any = None,
    port: Any = None,
    *,
    sock: socket.socket | None = None,
    ssl: Any = None,
    backlog: int = 100,
    **options: Any,
) -> Any:
    if ssl is not None:
        return await create_transport_server(
            loop, protocol_factory, host, port, sock=sock, ssl=ssl, backlog=backlog, original=original, **options
        )
    acceptor = _acceptor_for(protocol_factory)
    if acceptor is None:
        return await original(protocol_factory, host, port, sock=sock, backlog=backlog, **options)
    sockets = [sock] if sock is not None else await bind_address(host or None, port)
    await acceptor.listen(sockets, backlog)
    return acceptor


async def _create_unix_server(
    loop: asyncio.AbstractEventLoop,
    original: Callable[..., Any],
    protocol_factory: Callable[[], Any],
    path: str | os.PathLike[str] | None = None,
    *,
    ssl: Any = None,
    backlog: int = 100,
    **options: Any,
) -> Any:
    if path is None or getattr(protocol_factory, "__module__", None) != "uvicorn.server":
        return await original(protocol_factory, path, ssl=ssl, backlog=backlog, **options)
    unix = UnixAddress(str(Path(path)))
    acceptor = _acceptor_for(protocol_factory) if ssl is None else None
    if acceptor is None:
        server = await original(protocol_factory, sock=unix.bind(), ssl=ssl, backlog=backlog, **options)
        return _UnixServer(server, unix)
    await acceptor.listen([unix.bind()], backlog, unix=unix)
    return acceptor


class _UnixServer:
    """A server of the loop's, with whose end its path is removed: asyncio does so from Python 3.13 on."""

    def __init__(self, server: asyncio.AbstractServer, unix: UnixAddress) -> None:
        self._server: Any = server
        self._unix = unix
        self.wait_closed = self._server.wait_closed

    @property
    def sockets(self) -> Any:
        return self._server.sockets

    def close(self) -> None:
        self._unix.remove()
        self._server.close()


def _acceptor_for(protocol_factory: Callable[[], Any]) -> Acceptor | None:
    """An acceptor for a server of uvicorn's whose application has routes for it; else None."""
    if getattr(protocol_factory, "__module__", None) != "uvicorn.server" or not has_native_reactor():
        return None
    from wshub.app.acceptor import Acceptor, application_of
    from wshub.app.native_routes import native_hubs
    from wshub.app.uvicorn_protocol import WebSocketProtocol

    # Only a protocol tells whose it is: the factory is a function without arguments.
    protocol = protocol_factory()
    config = getattr(protocol, "config", None)
    state = getattr(protocol, "server_state", None)
    if not isinstance(config, Config) or state is None or config.root_path:
        return None
    if config.ws_protocol_class is not WebSocketProtocol:
        return None
    hubs = (hub for hub in native_hubs(application_of(config)) if hub._can_adopt())
    nearest = next(hubs, None)
    return Acceptor(config, state, protocol_factory, nearest) if nearest is not None else None
