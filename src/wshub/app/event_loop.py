"""Event loops on which uvicorn's sockets are listened on by an acceptor, and TLS has the fastest transports there are.

``uvicorn main:app --loop wshub.app.event_loop:new_event_loop --ws wshub.app.uvicorn_protocol:WebSocketProtocol``

uvicorn listens with ``loop.create_server`` and ``loop.create_unix_server``. On these loops both are as ever, except for
a server of uvicorn's that has wshub's protocol class. There the first request of each connection has bounds, too.
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
from uvicorn.server import ServerState

from wshub.app.first_requests import FirstRequests
from wshub.hub.config import HubConfig
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
    served = _Served.of(protocol_factory)
    if ssl is not None:
        if served is not None:
            protocol_factory = served.first_requests.create_protocol
            options.setdefault("ssl_handshake_timeout", served.timeout)
        return await create_transport_server(
            loop, protocol_factory, host, port, sock=sock, ssl=ssl, backlog=backlog, original=original, **options
        )
    if served is None:
        return await original(protocol_factory, host, port, sock=sock, backlog=backlog, **options)
    acceptor = served.create_acceptor()
    if acceptor is None:
        return await original(served.first_requests.create_protocol, host, port, sock=sock, backlog=backlog, **options)
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
    served = _Served.of(protocol_factory)
    if path is None or served is None:
        return await original(protocol_factory, path, ssl=ssl, backlog=backlog, **options)
    unix = UnixAddress(str(Path(path)))
    acceptor = served.create_acceptor() if ssl is None else None
    if acceptor is None:
        if ssl is not None:
            options.setdefault("ssl_handshake_timeout", served.timeout)
        create_protocol = served.first_requests.create_protocol
        server = await original(create_protocol, sock=unix.bind(), ssl=ssl, backlog=backlog, **options)
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


class _Served:
    """A server of uvicorn's that has wshub's protocol class."""

    def __init__(self, config: Config, state: ServerState, protocol_factory: Callable[[], Any]) -> None:
        from wshub.app.native_routes import native_hubs
        from wshub.app.proxies import application_of

        self._config = config
        self._state = state
        self._hubs = list(native_hubs(application_of(config)))
        settings = self._hubs[0].config if self._hubs else HubConfig()
        self.timeout = settings.handshake_timeout_ms / 1000
        self.first_requests = FirstRequests(protocol_factory, settings.max_pending_handshakes, self.timeout)

    @classmethod
    def of(cls, protocol_factory: Callable[[], Any]) -> _Served | None:
        """The server whose protocols come from there, if it is such a one."""
        if getattr(protocol_factory, "__module__", None) != "uvicorn.server":
            return None
        from wshub.app.uvicorn_protocol import WebSocketProtocol

        # Only a protocol tells whose it is: the factory is a function without arguments.
        protocol = protocol_factory()
        config = getattr(protocol, "config", None)
        state = getattr(protocol, "server_state", None)
        if not isinstance(config, Config) or state is None or config.ws_protocol_class is not WebSocketProtocol:
            return None
        return cls(config, state, protocol_factory)

    def create_acceptor(self) -> Acceptor | None:
        """An acceptor, if the application has routes for it; else None."""
        if not has_native_reactor() or self._config.root_path:
            return None
        from wshub.app.acceptor import Acceptor

        nearest = next((hub for hub in self._hubs if hub._can_adopt()), None)
        return Acceptor(self._config, self._state, self.first_requests, nearest) if nearest is not None else None
