"""Accepts connections in front of uvicorn: a hub's own routes are served at once, everything else is uvicorn's.

The reactor accepts and reads the first request. If the request is for a native route, the hub takes the connection, and
no transport, task or scope is made for it. Otherwise uvicorn's HTTP protocol gets the connection, and the bytes that
have been read. It gets the socket; with TLS, it gets a transport over the link, which has the keys.
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
from wshub.core.admission import UNKNOWN_ADDRESS, address_bucket
from wshub.core.binding import bind_for_request
from wshub.core.config import HubConfig
from wshub.core.lifecycle import HubLifecycle
from wshub.core.opening import Opening
from wshub.errors import HandshakeError
from wshub.links.link import Link, LinkCounters
from wshub.links.reactors import create_reactor
from wshub.links.tls.contexts import ServerTls
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.request import RequestHead, parse_request_head
from wshub.serving.first_request import FirstRequest
from wshub.serving.listening import UnixAddress
from wshub.serving.pending import PendingByAddress, PendingHandshakes
from wshub.serving.tls_rates import TlsRates
from wshub.uvicorn.first_requests import FirstRequests
from wshub.uvicorn.native_routes import find_native_route
from wshub.uvicorn.proxies import application_of, client_of, is_trusted
from wshub.uvicorn.server_hubs import Hubs

__all__ = ["Acceptor"]

logger = logging.getLogger("uvicorn.error")


class Acceptor:
    """Listens for a uvicorn server, in place of an ``asyncio.Server``. There is a native reactor.

    Args:
        config: of the server, loaded.
        state: of the server.
        first_requests: makes uvicorn's HTTP protocol for a connection.
        hub: the hub that most connections are for, which has a native reactor. Its settings say how long a request may
            take, and how many may be incomplete. None if no route is native: then the default settings apply.
        tls: the settings of TLS; None to serve without it.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        first_requests: FirstRequests,
        hub: HubLifecycle | None,
        tls: ServerTls | None = None,
    ) -> None:
        self.sockets: tuple[socket.socket, ...] = ()
        self.hub = hub
        self._tls = tls
        self._state = state
        # None until a hub has a connection or the server ends: uvicorn then counts the Hubs object as a connection.
        self._hubs: Hubs | None = None
        self._unix: UnixAddress | None = None
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._encoded_headers = b""
        self._first_requests = first_requests
        self._app, self._trusted = application_of(config)
        # Routes are compared with paths that have no prefix.
        self._finds_routes = hub is not None and not config.root_path
        self._loop = asyncio.get_running_loop()
        self._counters = LinkCounters()
        settings = hub.config if hub is not None else HubConfig()
        self.pending = self._create_pending(settings)
        self._tls_rates: TlsRates | None = None
        if tls is not None and hub is not None and settings.max_connection_rate_per_address:
            self._tls_rates = TlsRates(hub)
        self._timeout = settings.handshake_timeout_ms / 1000
        self._now = hub.now if hub is not None else first_requests.now
        # A connection for self.hub stays in this reactor. A connection for another hub moves to that hub's reactor, if
        # it has no TLS.
        if hub is not None:
            self._reactor = hub.bind()
            self._reactor.retain()
        else:
            self._reactor = create_reactor(self._loop, self._counters, native=True, clock=time.monotonic)
        self._closed = False

    def _create_pending(self, settings: HubConfig) -> PendingHandshakes[FirstRequest]:
        at_most_each = settings.max_connections_per_address
        if self._tls is None or not at_most_each:
            return PendingHandshakes(settings.max_pending_handshakes, self._note_limit)
        # A TLS handshake costs more than a request, so the limit of an address holds before there is one.
        return PendingByAddress(settings.max_pending_handshakes, self._note_limit, at_most_each, self._address_bucket)

    def _address_bucket(self, first: FirstRequest) -> str | None:
        """The address that a connection counts for before its request; None for that of a trusted proxy."""
        peer = first.peer
        return None if peer is None or is_trusted(self._trusted, peer) else address_bucket(peer)

    async def listen(self, sockets: Sequence[socket.socket], backlog: int, *, unix: UnixAddress | None = None) -> None:
        """Accept the connections of bound sockets. ``close`` closes them, and removes the path of a Unix socket."""
        self.sockets = tuple(sockets)
        self._unix = unix
        try:
            for listening in self.sockets:
                await self._reactor.listen(listening, self._accepted, backlog=backlog, ssl=self._tls)
        except BaseException:
            self.close()
            raise
        self._sweep()

    def close(self) -> None:
        """Accept no more, and refuse the requests that are not complete."""
        if self._closed:
            return
        self._closed = True
        if self.hub is not None:
            # uvicorn ends its connections next. A hub has joined others by a broker even if it had no connection.
            self._hubs_of_server().add(self.hub)
        for listening in self.sockets:
            self._reactor.unlisten(listening.fileno())
            listening.close()
        if self._unix is not None:
            self._unix.remove()
        self.pending.shut_down()
        self._first_requests.close()
        # Release the reactor later: one of its runs may have called this method.
        self._loop.call_soon(self._reactor.release)

    async def wait_closed(self) -> None:
        """Return at once: uvicorn waits for its connections itself."""

    def _sweep(self) -> None:
        # The server has its own timer because it outlives the hub: the hub's sweep ends when the application closes it.
        self.pending.expire(self._now())
        if self._tls_rates is not None:
            self._tls_rates.forget()
        if not self._closed:
            self._reactor.resume_accepting()
        if not self._closed or self.pending:
            self._loop.call_later(1, self._sweep)

    def _accepted(self, link: Link) -> FirstRequest | None:
        first = FirstRequest(link, self, self._now() + self._timeout)
        if self._tls_rates is not None and not self._tls_rates.admits(first, self._address_bucket(first)):
            return None
        first.count_in(self._counters)
        self.pending.add(first)
        return first

    def request_received(self, first: FirstRequest, data: bytes, end: int) -> None:
        """Answer a first request, whose head is ``data[:end]``, or let uvicorn answer it.

        Raises ``HandshakeError`` to refuse the request.
        """
        head = data[:end]
        # Nearly all other requests do not contain this word.
        found = self._find_route(first, head) if self._finds_routes and b"websocket" in head.lower() else None
        if found is None:
            self._hand_over(first, data)
            return
        route, request = found
        hub = route.hub
        client = self._client_of(first, request)
        opening = Opening(hub, route.table, request, first, client)
        try:
            opening.check()
            response = opening.accept(
                route.subprotocols, path_params=route.path_params, headers=self._encode_default_headers()
            )
        except HandshakeError as error:
            if not Handshake.is_upgrade(request.headers):
                # This is no handshake: another part of the request, such as its path, contains "websocket".
                opening.abandoned()
                self._hand_over(first, data)
                return
            first.hub = hub
            first.opening = opening
            self._log(first, client, request, str(error.status))
            raise
        self._log(first, client, request, "[accepted]")
        self._hubs_of_server().add(hub)
        if hub is self.hub:
            opening.open_on(first.take(), response, data[end:])
        elif self._tls is not None:
            hub._keep_reactor(self._reactor)
            opening.open_on(first.take(), response, data[end:])
        else:
            opening.open_on_descriptor(first.detach(), response, data[end:])

    def _hubs_of_server(self) -> Hubs:
        if self._hubs is None:
            self._hubs = Hubs.of(self._state)
        return self._hubs

    def _find_route(self, first: FirstRequest, head: bytes) -> tuple[NativeRoute, RequestHead] | None:
        try:
            request = parse_request_head(head, first.link if self._tls is not None else None)
        except HandshakeError:
            # A hub would refuse this request too. uvicorn answers it.
            return None
        # Routes look at the Host field only.
        hosts = [(b"host", host) for host in request.headers.get_all_raw(b"host")]
        scope: dict[str, Any] = {"type": "websocket", "path": request.path, "root_path": "", "headers": hosts}
        try:
            route = find_native_route(self._app, scope)
        except Exception:
            # For example, a number in the path has more digits than Python converts. The application answers.
            return None
        if route is None or route.hub.on_upgrade is not None or not self._can_adopt(first, route.hub, request):
            # ``on_upgrade`` may be a coroutine function: an ASGI application can wait for it.
            return None
        return route, request

    def _can_adopt(self, first: FirstRequest, hub: HubLifecycle, request: RequestHead) -> bool:
        """Return whether the hub takes sockets. Raises ``HandshakeError`` (503) if no descriptors are left."""
        try:
            if hub is not self.hub:
                bind_for_request(hub)
        except HandshakeError:
            if Handshake.is_upgrade(request.headers):
                first.hub = hub
                raise
            # This is no handshake: another part of the request, such as its path, contains "websocket".
            return False
        return hub.can_adopt()

    def _client_of(self, first: FirstRequest, request: RequestHead) -> tuple[str, int] | None:
        """Return the client's address that a proxy reports, if uvicorn trusts the proxy; else None."""
        # Without the field, the peer's address is not needed.
        if not request.headers.get_all_raw(b"x-forwarded-for"):
            return None
        return client_of(self._trusted, first.peer, request.headers)

    def _note_limit(self) -> None:
        if self.hub is not None:
            self.hub._limit_log.reached("max_pending_handshakes")

    def _encode_default_headers(self) -> bytes:
        """Return the fields that uvicorn adds to every response: a new list once a second."""
        headers = self._state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._encoded_headers = Handshake.encode_headers(headers)
        return self._encoded_headers

    def _hand_over(self, first: FirstRequest, data: bytes) -> None:
        """Let uvicorn serve the connection. ``data`` is the bytes that have been read from it."""
        if self._tls is not None:
            self._first_requests.serve_link(first, self._reactor, data)
            return
        descriptor = first.detach()
        if descriptor >= 0:
            self._first_requests.serve(socket.socket(fileno=descriptor), data=data, deadline=first.deadline)

    def _log(self, first: FirstRequest, client: tuple[str, int] | None, request: RequestHead, outcome: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            # Log the path without the query, which may contain a token.
            peer = client if client is not None and client is not UNKNOWN_ADDRESS else first.peer
            scope: Any = {"client": peer}
            address = get_client_addr(scope)
            logger.info('%s - "WebSocket %s" %s', address, quote(request.path), outcome)
