"""A standalone server of a hub: it listens, and answers opening handshakes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Generator, Sequence
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wshub.core.event_handler import handler_table_of
from wshub.core.shutdown import Shutdown
from wshub.errors import ConfigurationError, MisuseError
from wshub.protocol.close_code import CloseCode, encode_close_payload
from wshub.protocol.validation import check_bool, check_integer, check_port, check_str, check_strings
from wshub.serving.answering import Handshakes
from wshub.serving.listening import UnixAddress, bind_address, log_listening, log_stopped
from wshub.serving.signals import stop_signals

if TYPE_CHECKING:
    from wshub.core.clustered import ClusteredHub
    from wshub.links.reactor_api import Reactor
    from wshub.links.tls.contexts import ServerTls

__all__ = ["Server"]


class Server:
    """A WebSocket server of a hub: what ``Hub.serve`` returns. It has the methods of :class:`asyncio.Server`.

    Use it as a context manager, or call its methods::

        async with hub.serve("127.0.0.1", 8080, handler) as server:
            await server.serve_forever()

    At the end it closes the connections that it has accepted, with 1001. The hub and its other connections go on,
    unless ``close_hub`` was given.
    """

    hub: ClusteredHub
    """The hub that the connections belong to."""

    def __init__(
        self,
        hub: ClusteredHub,
        host: str | None,
        port: int,
        handler: Any,
        *,
        path: str | None,
        subprotocols: Sequence[str],
        unix: str | os.PathLike[str] | None,
        sock: socket.socket | None,
        backlog: int,
        tls: ServerTls | None,
        health_path: str | None,
        close_hub: bool,
    ) -> None:
        self.hub = hub
        self._sockets: tuple[socket.socket, ...] = ()
        self._first_name: Any = ()
        # No other server has the same table, so it tells which connections are this server's.
        self._table = handler_table_of(handler)
        self._address = (check_str("host", host) if host is not None else None, check_port(port))
        path = _check_path("path", path) if path is not None else None
        health_path = _check_path("health_path", health_path) if health_path is not None else None
        subprotocols = check_strings("subprotocols", subprotocols)
        self._unix = UnixAddress(_check_unix(unix)) if unix is not None else None
        self._sock = sock
        self._backlog = check_integer("backlog", backlog, 0, 2**31 - 1)
        self._tls = tls
        if sock is not None and not isinstance(sock, socket.socket):
            raise ConfigurationError(f"sock must be a socket, not {sock!r}")
        if tls is not None:
            tls.handshake_timeout = hub.config.handshake_timeout_ms / 1000
        check_bool("close_hub", close_hub)
        self._close_hub = close_hub
        self._reactor: Reactor | None = None
        self._handshakes = Handshakes(
            hub, self._table, path, subprotocols, health_path=health_path, over_tls=tls is not None
        )
        self._starting = asyncio.Lock()
        # Done when the server has closed. None until it listens.
        self._closed: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets that the server listens on; empty before ``start_serving`` and after ``close``."""
        return self._sockets if self.is_serving() else ()

    @property
    def port(self) -> int:
        """The port of the first socket. It stays after the end.

        Raises:
            MisuseError: the server has not listened yet, or its address has no port.
        """
        if not isinstance(self._first_name, tuple) or len(self._first_name) < 2:
            raise MisuseError("port: the server has not listened yet, or listens on a Unix socket")
        return int(self._first_name[1])

    def is_serving(self) -> bool:
        """Return whether the server accepts connections."""
        return self._closed is not None and any(listening.fileno() >= 0 for listening in self._sockets)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of the server. Raise ``MisuseError`` before it listens."""
        if self._closed is None:
            raise MisuseError("get_loop(): the server has no event loop before start_serving()")
        return self._closed.get_loop()

    def __repr__(self) -> str:
        if self._closed is None:
            return "<Server not started>"
        state = "serving" if self.is_serving() else "closed" if self._closed.done() else "closing"
        name = self._first_name
        if isinstance(name, tuple):
            host, port = name[:2]
            name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"<Server {name} {state}>"

    def reload_certificate(self) -> None:
        """Read ``ssl_certfile`` and ``ssl_keyfile`` again. New connections get the new certificate.

        Connections that are open keep the old one. If this raises, the server goes on with what it has. Call it after
        a renewal, such as Let's Encrypt's. Session tickets of before are not accepted any more, so clients make full
        handshakes.

        With an SSLContext of your own, call its ``load_cert_chain()`` instead.

        Raises:
            MisuseError: the server has no ``ssl_certfile``.
            OSError: a file cannot be read, or does not hold a certificate and its key.
        """
        if self._tls is None:
            raise MisuseError("reload_certificate(): the server has no certificate: give serve() an ssl_certfile")
        self._tls.reload()

    async def start_serving(self) -> None:
        """Begin to accept connections. Does nothing if the server accepts them already.

        ``async with`` and ``serve_forever`` call it. If the broker joins the hub to other worker processes, it first
        waits until they can hand over to this one, for two seconds at most.

        Raises:
            MisuseError: the server has closed, or the hub is closing or in use on another event loop.
            OSError: it cannot listen on its address.
        """
        async with self._starting:
            if self._closed is None:
                await self._start()
            elif not self.is_serving():
                raise MisuseError("start_serving(): the server has closed: make another one with hub.serve()")

    async def __aenter__(self) -> Server:
        await self.start_serving()
        return self

    async def _start(self) -> None:
        if self.hub.is_closing:
            raise MisuseError("start_serving(): the hub is closing: wait until its close() has returned")
        self._reactor = reactor = self.hub.bind()
        self.hub.servers.add(self)
        try:
            self._sockets = tuple(await self._bind())
            self._first_name = self._sockets[0].getsockname()
            await self.hub.join_nodes()
            self._check_hub()
            for listening in self._sockets:
                await reactor.listen(listening, self._handshakes.accepted, backlog=self._backlog, ssl=self._tls)
            self._check_hub()
            self._closed = asyncio.get_running_loop().create_future()
            log_listening(self._sockets)
        except BaseException:
            self._undo_listening(reactor)
            raise

    def _check_hub(self) -> None:
        """Raise ``MisuseError`` if the hub was closed while the server was being started."""
        if self.hub.is_closing or self not in self.hub.servers:
            raise MisuseError("start_serving(): the hub or the server was closed while it was about to listen")

    def _undo_listening(self, reactor: Reactor) -> None:
        """Leave everything as it was before ``start_serving``. A socket of the application's stays open."""
        self.hub.servers.discard(self)
        for listening in self._sockets:
            reactor.unlisten(listening.fileno())
            if self._sock is None:
                listening.close()
        if self._sockets and self._unix is not None:
            self._unix.remove()
        for handshake in self._handshakes.pending:
            handshake.drop()
        self._sockets = ()
        self._reactor = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def close(self) -> Awaitable[None]:
        """Stop listening, and begin to close the connections that came through this server, with 1001.

        It returns at once, as ``asyncio.Server.close`` does. To wait until the connections are gone and their handlers
        have ended, await the result or ``wait_closed()``. That takes at most ``shutdown_spread_ms`` and four times
        ``close_timeout_ms``, as described for ``Hub.close``.

        The hub stays in use, unless ``close_hub`` was given. A second call does nothing, and gives the same result.
        """
        if self._closed is None:
            # If start_serving() is under way, it notices that and raises.
            self.hub.servers.discard(self)
            return Closing(self)
        self.stop_listening()
        if self._closing is None and self in self.hub.servers:
            # Otherwise it has ended with its hub, which may be in use again without it.
            self._handshakes.pending.shut_down()
            # In a context of its own: the task is no call of the handler that may have called close().
            self._closing = Context().run(self._closed.get_loop().create_task, self._close())
        return Closing(self)

    async def _close(self) -> None:
        try:
            if self._close_hub:
                await self.hub.close()
            else:
                payload = encode_close_payload(CloseCode.GOING_AWAY, "")
                await Shutdown(self.hub, self.hub.waiting_handlers, self._table).run(payload)
        finally:
            # If a handler has raised SystemExit, the hub is closing too, and ends its servers before it raises that.
            if not self.hub.is_exiting and self in self.hub.servers:
                self.hub.servers.discard(self)
                self.on_hub_closed()

    def on_hub_sweep(self) -> None:
        """End the handshakes whose time is over. Only the hub calls this."""
        self._handshakes.expire()

    def on_hub_end(self) -> None:
        """Stop listening, and refuse the handshakes that wait. Only the hub calls this."""
        self.stop_listening()
        self._handshakes.pending.shut_down()

    def on_hub_closed(self) -> None:
        """Let ``wait_closed`` return. Only the hub calls this, and the end of the server."""
        if self._closed is None or self._closed.done() or self._closed.get_loop().is_closed():
            return
        self._closed.set_result(None)

    async def serve_forever(self, *, handle_signals: bool = True) -> None:
        """Serve until SIGTERM or SIGINT (Ctrl-C) arrives, or until ``close()`` is called. Return when all is closed.

        It calls ``start_serving`` if needed. If the task is cancelled, it closes the server first.

        The first signal ends the program: it closes the hub, with all its servers. Every client gets 1001, and handlers
        have their time. The second signal aborts the connections and cancels the handlers that are left. From then on
        signals do what they did before. Every server that serves on the loop gets each signal.

        It takes the signals over from ``loop.add_signal_handler``. Such a handler is not restored at the end, and the
        signal then has Python's default. Pass ``handle_signals=False`` to keep a handler of your own.

        Args:
            handle_signals: False leaves signals alone. Signals are also left alone outside the main thread.

        Raises:
            MisuseError, OSError: as ``start_serving``.
        """
        await self.start_serving()
        try:
            if handle_signals:
                await self._serve_until_signal()
            else:
                await self.wait_closed()
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _serve_until_signal(self) -> None:
        assert self._closed is not None
        with stop_signals() as (stopped, hurried):
            await asyncio.wait((stopped, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                closing = asyncio.ensure_future(self._close_with_hub())
                await asyncio.wait((closing, hurried), return_when=asyncio.FIRST_COMPLETED)
                if not closing.done():
                    self.hub.hurry_closing()
                await closing
            await self.wait_closed()

    async def _close_with_hub(self) -> None:
        if self in self.hub.servers:
            self.on_hub_end()
        await self.hub.close()

    async def wait_closed(self) -> None:
        """Wait until the server has closed. Returns at once if it has never listened.

        It does not return before ``close()`` is called, the ``async with`` block is left, or the hub closes.
        """
        if self._closed is not None:
            with self.hub.waiting_handlers.joined_by(self.hub._handled_connection):
                await asyncio.shield(self._closed)

    def stop_listening(self) -> None:
        """Accept no more connections. Those that are there stay."""
        if self._closed is not None:
            log_stopped(self._sockets)
        for listening in self._sockets:
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


class Closing:
    """The result of ``Server.close``. Await it to wait until the server has closed, or ignore it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __await__(self) -> Generator[Any, Any, None]:
        return self._server.wait_closed().__await__()


def _check_path(name: str, path: object) -> str:
    """Return the path of requests. Raise ``ConfigurationError`` for one that no request has."""
    checked = check_str(name, path)
    if not checked.startswith("/"):
        raise ConfigurationError(f'{name} must begin with "/", as in "/{checked}": it is {path!r}')
    return checked


def _check_unix(path: Any) -> str:
    try:
        return check_str("unix", os.fspath(path))
    except TypeError:
        raise ConfigurationError(f"unix must be the path of a socket, not {path!r}") from None
