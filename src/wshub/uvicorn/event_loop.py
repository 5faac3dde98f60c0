"""Event loops on which wshub accepts the connections of a uvicorn server.

``uvicorn main:app --loop wshub.uvicorn.event_loop:new_event_loop --ws wshub.uvicorn.protocol:WebSocketProtocol``

uvicorn listens with ``loop.create_server`` and ``loop.create_unix_server``. On these loops both do the same as on any
loop, except for a uvicorn server that has wshub's protocol class. There the limits on connections and on time apply
from accept(2) on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from wshub.links.reactors import has_native_reactor
from wshub.links.tls.contexts import ServerTls
from wshub.serving.listening import UnixAddress, bind_address
from wshub.uvicorn.certificates import ConfiguredTls, reload_on_hangup
from wshub.uvicorn.first_requests import FirstRequests
from wshub.uvicorn.parent_process import end_with_parent
from wshub.uvicorn.transport_server import TransportServer

if TYPE_CHECKING:
    from wshub.uvicorn.acceptor import Acceptor

__all__ = ["accept_natively", "new_asyncio_loop", "new_event_loop", "new_uvloop_loop"]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop if it is installed, else the standard library's."""
    try:
        return new_uvloop_loop()
    except ImportError:
        return new_asyncio_loop()


def new_uvloop_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop. Raises ``ImportError`` if it is not installed."""
    import uvloop

    return accept_natively(uvloop.new_event_loop())


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the standard library's loop."""
    return accept_natively(asyncio.new_event_loop())


def accept_natively(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Replace the loop's ``create_server`` and ``create_unix_server`` with the functions below, and return the loop."""
    patched: Any = loop
    patched.create_server = partial(_create_server, loop.create_server)
    if hasattr(socket, "AF_UNIX"):
        patched.create_unix_server = partial(_create_unix_server, loop.create_unix_server)
    return loop


async def _create_server(
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
    if served is None:
        return await original(protocol_factory, host, port, sock=sock, ssl=ssl, backlog=backlog, **options)
    sockets = [sock] if sock is not None else await bind_address(host or None, port)
    return await served.listen(sockets, backlog, ssl)


async def _create_unix_server(
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
    return await served.listen([unix.bind()], backlog, ssl, unix)


class _Served:
    """A uvicorn server that has wshub's protocol class."""

    def __init__(self, config: Config, state: ServerState, protocol_factory: Callable[[], Any]) -> None:
        from wshub.uvicorn.native_routes import native_hubs
        from wshub.uvicorn.proxies import application_of
        from wshub.uvicorn.server_hubs import primary_hub

        self._config = config
        self._state = state
        self._hubs = list(native_hubs(application_of(config)[0]))
        self._first_requests = FirstRequests(
            protocol_factory, self._hubs[0] if self._hubs else None, partial(primary_hub, config, state)
        )

    @classmethod
    def of(cls, protocol_factory: Callable[[], Any]) -> _Served | None:
        """Return the server that the factory belongs to, if it is a uvicorn server with wshub's protocol class."""
        if getattr(protocol_factory, "__module__", None) != "uvicorn.server":
            return None
        from wshub.uvicorn.protocol import WebSocketProtocol

        # Create a protocol to find its server: the factory itself does not name it.
        protocol = protocol_factory()
        config = getattr(protocol, "config", None)
        state = getattr(protocol, "server_state", None)
        if not isinstance(config, Config) or state is None or config.ws_protocol_class is not WebSocketProtocol:
            return None
        return cls(config, state, protocol_factory)

    async def listen(
        self, sockets: Sequence[socket.socket], backlog: int, ssl: Any, unix: UnixAddress | None = None
    ) -> Acceptor | TransportServer:
        """Accept the connections of bound sockets: in a reactor if there are native routes or TLS."""
        loop = asyncio.get_running_loop()
        if self._config.workers > 1:
            end_with_parent(loop)
        try:
            tls = ConfiguredTls(self._config, ssl, self._first_requests.timeout) if ssl is not None else None
            acceptor = self._create_acceptor(tls)
        except BaseException:
            for listening in sockets:
                listening.close()
            if unix is not None:
                unix.remove()
            raise
        if tls is not None:
            reload_on_hangup(loop, tls)
        if acceptor is not None:
            await acceptor.listen(sockets, backlog, unix=unix)
            return acceptor
        server = TransportServer(self._first_requests, tls)
        server.listen(sockets, backlog, unix=unix)
        return server

    def _create_acceptor(self, tls: ServerTls | None) -> Acceptor | None:
        """Return an acceptor if the reactor has something to do that transports do more slowly, else None."""
        if not has_native_reactor() or (tls is None and self._config.root_path):
            return None
        hub = next((hub for hub in self._hubs if hub.can_adopt()), None)
        # The link of a TLS connection can carry any WebSocket. Only `use_reactor=False` in all hubs forbids it.
        if hub is None and (tls is None or self._hubs):
            return None
        from wshub.uvicorn.acceptor import Acceptor

        return Acceptor(self._config, self._state, self._first_requests, hub, tls)
