"""A standalone server of a hub: it listens, and answers opening handshakes."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import socket
import ssl as ssl_module
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wshub.errors import HandshakeError, MisuseError
from wshub.hub.admission import client_address
from wshub.hub.core import table_of
from wshub.hub.listening import UnixAddress, bind_address
from wshub.hub.opening import OpeningHandshake
from wshub.hub.pending import PendingHandshakes
from wshub.protocol.request import RequestHead, parse_request_head

if TYPE_CHECKING:
    from wshub.hub.hub import Hub
    from wshub.links.asyncio_reactor import AsyncioReactor
    from wshub.links.reactor import Reactor

__all__ = ["Server"]

MOST_EARLY = 64 * 1024
"""Bytes that may come behind a request before it is answered, where RFC 6455 allows none. They wait with it for
``on_upgrade``."""


class Server:
    """What ``Hub.serve`` returns. Use it with ``async with``."""

    def __init__(
        self,
        hub: Hub,
        host: str | None,
        port: int,
        handler: Any,
        *,
        path: str | None,
        subprotocols: Sequence[str],
        unix: str | None,
        sock: socket.socket | None,
        backlog: int,
        ssl: ssl_module.SSLContext | None,
    ) -> None:
        self.hub = hub
        self.sockets: tuple[socket.socket, ...] = ()
        self._table = table_of(handler)
        self._address = (host, port)
        self._path = path
        self._subprotocols = tuple(subprotocols)
        self._unix = UnixAddress(unix) if unix is not None else None
        self._sock = sock
        self._backlog = backlog
        self._ssl = ssl
        self._reactor: Reactor | AsyncioReactor | None = None
        self._pending: PendingHandshakes[OpeningHandshake] = PendingHandshakes(hub.config.max_pending_handshakes)
        self._trusted = tuple(ipaddress.ip_network(proxy) for proxy in hub.config.trusted_proxies)
        self._closed: asyncio.Future[None] | None = None

    @property
    def port(self) -> int:
        """The port that the first socket listens on."""
        return int(self.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Server:
        if self.hub._closing is not None:
            raise MisuseError("the hub is closed: make another")
        self._reactor = reactor = self.hub._reactor_for(self._ssl)
        self._closed = asyncio.get_running_loop().create_future()
        self.sockets = tuple(await self._bind())
        try:
            for listening in self.sockets:
                await reactor.listen(listening, self._accepted, backlog=self._backlog)
        except BaseException:
            self.stop_listening()
            raise
        self.hub._expire_handshakes.append(self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_listening()
        for opening in self._pending:
            opening.expire()
        await self.hub.close()
        if self._ssl is not None and self._reactor is not None:
            self._reactor.release()
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        """Waits until the server has been closed: for ever, unless somebody leaves its ``async with``."""
        if self._closed is not None:
            await asyncio.shield(self._closed)

    def stop_listening(self) -> None:
        """Accepts no more connections; those that are there stay."""
        for listening in self.sockets:
            if self._reactor is not None and listening.fileno() >= 0:
                self._reactor.unlisten(listening.fileno())
                listening.close()
                if self._unix is not None:
                    self._unix.remove()

    async def _bind(self) -> list[socket.socket]:
        if self._sock is not None:
            return [self._sock]
        if self._unix is not None:
            return [self._unix.bind()]
        return await bind_address(*self._address)

    def _accepted(self, link: Any) -> OpeningHandshake:
        deadline = self.hub._now() + self.hub.config.handshake_timeout_ms / 1000
        opening = OpeningHandshake(link, self, deadline)
        self._pending.add(opening)
        return opening

    def _request_received(self, opening: OpeningHandshake, link: Any, head: bytes, rest: bytes) -> None:
        """Answer a complete request; ``rest`` came behind it. Raises ``HandshakeError`` for one to be refused."""
        if len(rest) > MOST_EARLY:
            raise HandshakeError(400, "Too much was sent before the handshake was answered.")
        request = parse_request_head(head)
        if self._path is not None and request.path != self._path:
            raise HandshakeError(404, "There is nothing at this path.")
        if self._trusted or self.hub._wants_address:
            peer = opening.peer
            request.remote_address = client_address(peer, request.headers, self._trusted) or peer
        key = self.hub._check_request(request)
        metadata = self.hub._ask(request)
        if inspect.isawaitable(metadata):
            accept = partial(self._accept_if_there_is_room, opening, link, request, key, rest)
            opening.wait_for(asyncio.ensure_future(metadata), accept)
        else:
            self._accept(opening, link, request, key, rest, metadata)

    def _accept_if_there_is_room(
        self, opening: OpeningHandshake, link: Any, request: RequestHead, key: str, rest: bytes, metadata: Any
    ) -> None:
        self.hub._check_room(request)
        self._accept(opening, link, request, key, rest, metadata)

    def _accept(
        self, opening: OpeningHandshake, link: Any, request: RequestHead, key: str, rest: bytes, metadata: Any
    ) -> None:
        connection, response = self.hub._accept_request(
            request, key, self._table, self._subprotocols, metadata=metadata
        )
        if self._trusted and request.remote_address != opening.peer:
            connection.forwarded_address = request.remote_address
        self._pending.discard(opening)
        self.hub._open(connection, link, response, rest)

    def _refused(self, error: HandshakeError) -> None:
        self.hub._count_refused(error)

    def _expire(self) -> None:
        self._pending.expire(self.hub._now())
