"""Accepts connections in front of uvicorn: a hub's own routes are served at once, everything else is uvicorn's.

The reactor accepts and reads the first request. If that is for a native route, the hub has the connection without a
transport, a task or a scope ever made for it; else the socket goes to uvicorn's HTTP protocol, with what has been read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from uvicorn.config import Config
from uvicorn.protocols.utils import get_client_addr
from uvicorn.server import ServerState

from wshub.asgi.native import NativeRoute
from wshub.core.admission import UNKNOWN_ADDRESS
from wshub.core.binding import bind_for_request
from wshub.errors import HandshakeError
from wshub.hub import Hub
from wshub.links.link import Ledger, Link
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.request import RequestHead, parse_request_head
from wshub.serving.first_request import FirstRequest
from wshub.serving.listening import UnixAddress
from wshub.serving.pending import PendingHandshakes
from wshub.uvicorn.first_requests import FirstRequests
from wshub.uvicorn.native_routes import find_native_route
from wshub.uvicorn.proxies import application_of, client_of, trusted_hosts_of
from wshub.uvicorn.server_hubs import Hubs

__all__ = ["Acceptor"]

logger = logging.getLogger("uvicorn.error")


class Acceptor:
    """Listens for a uvicorn server, in place of an ``asyncio.Server``.

    Args:
        config: of the server, loaded.
        state: of the server.
        first_requests: makes uvicorn's HTTP protocol for a connection.
        nearest: the hub that most connections are for, which has a native reactor. Its settings say how long a request
            may take, and how many may be incomplete.
    """

    def __init__(self, config: Config, state: ServerState, first_requests: FirstRequests, nearest: Hub) -> None:
        self.sockets: tuple[socket.socket, ...] = ()
        self._state = state
        # None until there is a connection for one of them: for uvicorn it is a connection itself.
        self._hubs: Hubs | None = None
        self._unix: UnixAddress | None = None
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._encoded_headers = b""
        self._first_requests = first_requests
        self._app = application_of(config)
        self._trusted = trusted_hosts_of(config)
        self._loop = asyncio.get_running_loop()
        self._ledger = Ledger()
        # A connection need not move to be the hub's; where there are several hubs, it does for all but one.
        self._nearest = nearest
        self._reactor = nearest._bind()
        self._reactor.retain()
        self._pending: PendingHandshakes[FirstRequest] = PendingHandshakes(nearest.config.max_pending_handshakes)
        self._timeout = nearest.config.handshake_timeout_ms / 1000
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sockets: Sequence[socket.socket], backlog: int, *, unix: UnixAddress | None = None) -> None:
        """Accept the connections of bound sockets, which are closed with this, and the path of one removed."""
        self.sockets = tuple(sockets)
        self._unix = unix
        try:
            for listening in self.sockets:
                await self._reactor.listen(listening, self._accepted, backlog=backlog)
        except BaseException:
            self.close()
            raise
        self._sweep()

    def close(self) -> None:
        """Accept no more; what has not been asked for yet is not answered."""
        if self._closed:
            return
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listening in self.sockets:
            self._reactor.unlisten(listening.fileno())
            listening.close()
        if self._unix is not None:
            self._unix.remove()
        for first in self._pending:
            first.drop()
        self._first_requests.close()
        # Not from within a turn of the reactor, which may have called whoever calls this.
        self._loop.call_soon(self._reactor.release)

    @property
    def hub(self) -> Hub:
        """The hub that is closed first where KeyboardInterrupt or SystemExit comes out of a first request."""
        return self._nearest

    async def wait_closed(self) -> None:
        """What ``asyncio.Server`` has: connections are the server's own to wait for."""

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(1, self._sweep)
        self._pending.expire(time.monotonic())
        self._reactor.resume_accepting()

    def _accepted(self, link: Link) -> FirstRequest:
        first = FirstRequest(link, self, time.monotonic() + self._timeout)
        first.count_in(self._ledger)
        self._pending.add(first)
        return first

    def _request_received(self, first: FirstRequest, data: bytes, end: int) -> None:
        """Answer a first request, whose head ends there, or let uvicorn do it. Raises ``HandshakeError`` to refuse."""
        head = data[:end]
        # Nearly every other request is told apart by this alone.
        found = self._find_route(head) if b"websocket" in head.lower() else None
        if found is None:
            self._hand_over(first.detach(), data, first.deadline)
            return
        route, request = found
        hub = route.hub
        client = self._client_of(first, request)
        if hub._wants_address:
            request.remote_address = client or first.peer
        if client is UNKNOWN_ADDRESS:
            client = None
        try:
            key = hub._check_request(request)
            connection, response = hub._accept_request(
                request, key, route.table, route.subprotocols, route.path_params, self._encode_default_headers()
            )
        except HandshakeError as error:
            if not Handshake.is_upgrade(request.headers):
                # A page whose path or referrer has the word.
                self._hand_over(first.detach(), data, first.deadline)
                return
            hub._count_refused(error)
            self._log(first, client, request, str(error.status))
            raise
        if client is not None:
            connection.forwarded_address = client
        self._log(first, client, request, "[accepted]")
        if self._hubs is None:
            self._hubs = Hubs.of(self._state)
        self._hubs.add(hub)
        if hub is self._nearest:
            hub._open(connection, first.take(), response, data[end:])
        else:
            hub._adopt(connection, first.detach(), response, data[end:])

    def _refused(self, error: HandshakeError) -> None:
        """A refusal is counted where the hub is known."""

    def _find_route(self, head: bytes) -> tuple[NativeRoute, RequestHead] | None:
        try:
            request = parse_request_head(head)
        except HandshakeError:
            # No handshake that a hub would take: uvicorn has an answer to it.
            return None
        # Routes look at no field but this one.
        hosts = [(b"host", host) for host in request.headers.get_all_raw(b"host")]
        scope: dict[str, Any] = {"type": "websocket", "path": request.path, "root_path": "", "headers": hosts}
        try:
            route = find_native_route(self._app, scope)
        except Exception:
            # A number of more digits than Python converts, for one: what the application makes of it is its own.
            return None
        if route is None or route.hub._on_upgrade is not None or not self._can_adopt(route.hub, request):
            # What has to be asked of the application first may take its time, as an ASGI application can.
            return None
        return route, request

    def _can_adopt(self, hub: Hub, request: RequestHead) -> bool:
        """Whether the hub takes sockets. Raises ``HandshakeError`` (503) if it has no descriptors to find out."""
        try:
            if hub is not self._nearest:
                bind_for_request(hub)
        except HandshakeError:
            if Handshake.is_upgrade(request.headers):
                raise
            # A page whose path or referrer has the word.
            return False
        return hub._can_adopt()

    def _client_of(self, first: FirstRequest, request: RequestHead) -> tuple[str, int] | None:
        """The client that a proxy tells of, if uvicorn trusts the proxy; else None."""
        # Without the field the peer's address need not be made.
        if not request.headers.get_all_raw(b"x-forwarded-for"):
            return None
        return client_of(self._trusted, first.peer, request.headers)

    def _encode_default_headers(self) -> bytes:
        """The fields that uvicorn adds to every response: a new list once a second."""
        headers = self._state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._encoded_headers = Handshake.encode_headers(headers)
        return self._encoded_headers

    def _hand_over(self, descriptor: int, data: bytes, deadline: float) -> None:
        """Let uvicorn serve the connection, of which ``data`` has been read."""
        if descriptor >= 0:
            self._first_requests.serve(socket.socket(fileno=descriptor), data=data, deadline=deadline)

    def _log(self, first: FirstRequest, client: tuple[str, int] | None, request: RequestHead, outcome: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            # Without the query, which may have a token.
            peer = client or first.peer
            scope: Any = {"client": peer}
            address = get_client_addr(scope)
            logger.info('%s - "WebSocket %s" %s', address, quote(request.path), outcome)
