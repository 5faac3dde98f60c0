"""A standalone server of a hub: it listens, and answers opening handshakes."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import os
import socket
import ssl as ssl_module
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wshub.core.admission import UNKNOWN_ADDRESS, Rate, address_key, client_address, parse_address
from wshub.core.config import HubConfig
from wshub.core.hub_core import table_of
from wshub.errors import ConfigurationError, HandshakeError, MisuseError
from wshub.protocol.http.request import MAX_EARLY_SIZE, RequestHead, parse_request_head
from wshub.protocol.validation import check_integer, check_port, check_str, check_strings
from wshub.serving.first_request import OpeningHandshake
from wshub.serving.listening import UnixAddress, bind_address
from wshub.serving.pending import PendingByAddress, PendingHandshakes
from wshub.serving.signals import stop_signals

if TYPE_CHECKING:
    from wshub.hub import Hub
    from wshub.links.link import Link
    from wshub.links.reactor_api import Reactor

__all__ = ["Server"]

TOO_MANY_HANDSHAKES = HandshakeError(429, "There are too many new connections from this address.")


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
        unix: str | os.PathLike[str] | None,
        sock: socket.socket | None,
        backlog: int,
        ssl: ssl_module.SSLContext | None,
    ) -> None:
        self.hub = hub
        self.sockets: tuple[socket.socket, ...] = ()
        self._first_name: Any = ()
        self._table = table_of(handler)
        self._address = (check_str("host", host) if host is not None else None, check_port(port))
        self._path = _check_path(path) if path is not None else None
        self._subprotocols = check_strings("subprotocols", subprotocols)
        self._unix = UnixAddress(_check_unix(unix)) if unix is not None else None
        self._sock = sock
        self._backlog = check_integer("backlog", backlog, 0, 2**31 - 1)
        self._ssl = ssl
        if sock is not None and not isinstance(sock, socket.socket):
            raise ConfigurationError(f"sock must be a socket, not {sock!r}")
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError(f"ssl must be an SSLContext, not {ssl!r}")
        self._reactor: Reactor | None = None
        self._pending: PendingHandshakes[OpeningHandshake] = PendingHandshakes(hub.config.max_pending_handshakes)
        self._handshake_rate: Rate | None = None
        if ssl is not None:
            # A TLS handshake costs more than a request, so the limits of an address hold before there is one.
            self._limit_addresses(hub.config)
        self._trusted = tuple(ipaddress.ip_network(proxy) for proxy in hub.config.trusted_proxies)
        self._closed: asyncio.Future[None] | None = None

    @property
    def port(self) -> int:
        """The port that the first socket listens on. It stays after the end."""
        return int(self._first_name[1])

    async def __aenter__(self) -> Server:
        if self.hub._is_closing:
            raise MisuseError("the hub is closing: wait until close() has returned")
        self._reactor = reactor = self.hub._reactor_for(self._ssl)
        self.hub._servers.add(self)
        try:
            self.sockets = tuple(await self._bind())
            self._first_name = self.sockets[0].getsockname()
            self._check_hub()
            for listening in self.sockets:
                await reactor.listen(listening, self._accepted, backlog=self._backlog)
            self._check_hub()
            self._closed = asyncio.get_running_loop().create_future()
        except BaseException:
            self._undo_listening(reactor)
            raise
        return self

    def _check_hub(self) -> None:
        """Raise ``MisuseError`` if the hub was closed while the server was being entered."""
        if self.hub._is_closing or self not in self.hub._servers:
            raise MisuseError("the hub was closed while the server was about to listen")

    def _undo_listening(self, reactor: Reactor) -> None:
        """Leave everything as it was before ``__aenter__``. A socket of the application's stays open."""
        self.hub._servers.discard(self)
        for listening in self.sockets:
            reactor.unlisten(listening.fileno())
            if self._sock is None:
                listening.close()
        if self.sockets and self._unix is not None:
            self._unix.remove()
        for opening in self._pending:
            opening.drop()
        if self._ssl is not None:
            reactor.release()
        self.sockets = ()
        self._reactor = None
        self._closed = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops listening, closes the hub with 1001, and returns when all connections and their handlers have ended.

        How long that takes at most is said in ``Hub.close``. The hub's other servers end with it. Closing again, or
        after ``Hub.close``, is fine.
        """
        self.stop_listening()
        if self not in self.hub._servers:
            # It has ended, and the hub may be in use again without it.
            return
        self._stop()
        await self.hub.close()

    def _stop(self) -> None:
        """Listen no more, and refuse the handshakes that wait."""
        self.stop_listening()
        for opening in self._pending:
            opening.shut_down()

    def _end(self) -> None:
        """The hub has closed, and every connection has ended."""
        if self._closed is None or self._closed.get_loop().is_closed():
            return
        if self._ssl is not None and self._reactor is not None:
            self._reactor.release()
        self._closed.set_result(None)

    async def serve_forever(self, *, handle_signals: bool = True) -> None:
        """Serves until SIGTERM or SIGINT (Ctrl-C) arrives, or until ``close()`` is called; returns when all is closed.

        The first signal closes the server as ``close()`` does: every client gets 1001, and handlers have their time.
        The second aborts the connections and cancels the handlers that are left. From then on signals do what they did
        before. Every server that serves on the loop gets each signal.

        It takes the signals over from ``loop.add_signal_handler``. Such a handler is not restored at the end, and the
        signal then has Python's default. Pass ``handle_signals=False`` to keep a handler of your own.

        Args:
            handle_signals: False leaves signals alone. Signals are also left alone outside the main thread.

        Raises:
            MisuseError: the server has not been entered with ``async with``.
        """
        if self._closed is None:
            raise MisuseError("a server serves within its `async with` block: call serve_forever() there")
        if not handle_signals:
            await self.wait_closed()
            return
        with stop_signals() as (stopped, hurried):
            await asyncio.wait((stopped, self._closed), return_when=asyncio.FIRST_COMPLETED)
            closing = asyncio.ensure_future(self.close())
            await asyncio.wait((closing, hurried), return_when=asyncio.FIRST_COMPLETED)
            if not closing.done():
                self.hub._hurry()
            await closing

    async def wait_closed(self) -> None:
        """Waits until the server has been closed: for ever, unless ``close()`` is called or its block is left."""
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

    def _limit_addresses(self, config: HubConfig) -> None:
        if config.max_connections_per_address:
            self._pending = PendingByAddress(
                config.max_pending_handshakes, config.max_connections_per_address, self._address_key
            )
        if config.max_connection_rate_per_address:
            self._handshake_rate = Rate(config.max_connection_rate_per_address)

    def _accepted(self, link: Link) -> OpeningHandshake | None:
        deadline = self.hub._now() + self.hub.config.handshake_timeout_ms / 1000
        opening = OpeningHandshake(link, self, deadline)
        if self._handshake_rate is not None:
            key = self._address_key(opening)
            if key is not None and not self._handshake_rate.take(key, self.hub._now()):
                # There is no TLS yet to say so in.
                self.hub._count_refused(TOO_MANY_HANDSHAKES)
                return None
        self._pending.add(opening)
        return opening

    def _address_key(self, opening: OpeningHandshake) -> str | None:
        """The address that a connection counts for before its request; None for one of a trusted proxy's."""
        peer = opening.peer
        if peer is not None and self._trusted:
            address = parse_address(peer[0])
            if address is None or any(address in network for network in self._trusted):
                return None
        return address_key(peer)

    def _request_received(self, opening: OpeningHandshake, link: Any, head: bytes, rest: bytes) -> None:
        """Answer a complete request; ``rest`` came behind it. Raises ``HandshakeError`` for one to be refused."""
        if len(rest) > MAX_EARLY_SIZE and self.hub._on_upgrade is not None:
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
        if self._trusted and request.remote_address not in (opening.peer, UNKNOWN_ADDRESS):
            connection.forwarded_address = request.remote_address
        self._pending.discard(opening)
        self.hub._open(connection, link, response, rest)

    def _refused(self, error: HandshakeError) -> None:
        self.hub._count_refused(error)

    def _expire(self) -> None:
        self._pending.expire(self.hub._now())
        if self._handshake_rate is not None:
            self._handshake_rate.forget(self.hub._now())


def _check_path(path: object) -> str:
    """Return the path of requests. Raise ``ConfigurationError`` for one that no request has."""
    checked = check_str("path", path)
    if not checked.startswith("/"):
        raise ConfigurationError(f'path must begin with "/", as in "/{checked}": it is {path!r}')
    return checked


def _check_unix(path: Any) -> str:
    try:
        return check_str("unix", os.fspath(path))
    except TypeError:
        raise ConfigurationError(f"unix must be the path of a socket, not {path!r}") from None
