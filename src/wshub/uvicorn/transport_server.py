"""Listens for a uvicorn server where no reactor accepts: there is none, or no native route and no TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial

from wshub.links.accepting import SocketListener
from wshub.links.tls.contexts import ServerTls
from wshub.serving.listening import UnixAddress
from wshub.uvicorn.first_requests import FirstRequests

__all__ = ["TransportServer"]


class TransportServer:
    """Accepts connections for transports, in place of an ``asyncio.Server``.

    Args:
        first_requests: serves each connection from accept(2) on.
        ssl: for TLS, the context and its settings.
    """

    def __init__(self, first_requests: FirstRequests, ssl: ServerTls | None) -> None:
        self.sockets: tuple[socket.socket, ...] = ()
        self._first_requests = first_requests
        self._accepted = partial(first_requests.serve, ssl=ssl)
        self._listeners: list[SocketListener] = []
        self._unix: UnixAddress | None = None

    def listen(self, sockets: Sequence[socket.socket], backlog: int, *, unix: UnixAddress | None = None) -> None:
        """Accept the connections of bound sockets. ``close`` closes them, and removes the path of a Unix socket."""
        self.sockets = tuple(sockets)
        self._unix = unix
        loop = asyncio.get_running_loop()
        try:
            for listening in self.sockets:
                listener = SocketListener(loop, listening, self._accepted)
                listener.start(backlog)
                self._listeners.append(listener)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Accept no more connections. Drop those that have no transport yet."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for listening in self.sockets:
            listening.close()
        if self._unix is not None:
            self._unix.remove()
            self._unix = None
        self._first_requests.close()

    async def wait_closed(self) -> None:
        """Return at once: uvicorn waits for its connections itself."""
