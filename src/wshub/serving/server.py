"""A standalone server of a hub: it listens, and answers opening handshakes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as ssl_module
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wshub.core.event_handler import handler_table_of
from wshub.errors import ConfigurationError, MisuseError
from wshub.protocol.validation import check_integer, check_port, check_str, check_strings
from wshub.serving.answering import Handshakes
from wshub.serving.listening import UnixAddress, bind_address, log_listening, log_stopped
from wshub.serving.signals import stop_signals

if TYPE_CHECKING:
    from wshub.core.clustered import ClusteredHub
    from wshub.links.reactor_api import Reactor

__all__ = ["Server"]


class Server:
    """What ``Hub.serve`` returns. Use it with ``async with``."""

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
        ssl: ssl_module.SSLContext | None,
        health_path: str | None,
    ) -> None:
        self.hub = hub
        self.sockets: tuple[socket.socket, ...] = ()
        self._first_name: Any = ()
        table = handler_table_of(handler)
        self._address = (check_str("host", host) if host is not None else None, check_port(port))
        path = _check_path("path", path) if path is not None else None
        health_path = _check_path("health_path", health_path) if health_path is not None else None
        subprotocols = check_strings("subprotocols", subprotocols)
        self._unix = UnixAddress(_check_unix(unix)) if unix is not None else None
        self._sock = sock
        self._backlog = check_integer("backlog", backlog, 0, 2**31 - 1)
        self._ssl = ssl
        if sock is not None and not isinstance(sock, socket.socket):
            raise ConfigurationError(f"sock must be a socket, not {sock!r}")
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError(f"ssl must be an SSLContext, not {ssl!r}")
        self._reactor: Reactor | None = None
        self._handshakes = Handshakes(hub, table, path, subprotocols, health_path=health_path, over_tls=ssl is not None)
        self._closed: asyncio.Future[None] | None = None

    @property
    def port(self) -> int:
        """The port that the first socket listens on. It stays after the end."""
        return int(self._first_name[1])

    async def __aenter__(self) -> Server:
        if self.hub.is_closing:
            raise MisuseError("the hub is closing: wait until close() has returned")
        self._reactor = reactor = self.hub.reactor_for(self._ssl)
        self.hub.servers.add(self)
        try:
            self.sockets = tuple(await self._bind())
            self._first_name = self.sockets[0].getsockname()
            self._check_hub()
            for listening in self.sockets:
                await reactor.listen(listening, self._handshakes.accepted, backlog=self._backlog)
            self._check_hub()
            self._closed = asyncio.get_running_loop().create_future()
            log_listening(self.sockets)
        except BaseException:
            self._undo_listening(reactor)
            raise
        return self

    def _check_hub(self) -> None:
        """Raise ``MisuseError`` if the hub was closed while the server was being entered."""
        if self.hub.is_closing or self not in self.hub.servers:
            raise MisuseError("the hub was closed while the server was about to listen")

    def _undo_listening(self, reactor: Reactor) -> None:
        """Leave everything as it was before ``__aenter__``. A socket of the application's stays open."""
        self.hub.servers.discard(self)
        for listening in self.sockets:
            reactor.unlisten(listening.fileno())
            if self._sock is None:
                listening.close()
        if self.sockets and self._unix is not None:
            self._unix.remove()
        for handshake in self._handshakes.pending:
            handshake.drop()
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
        if self not in self.hub.servers:
            # It has ended, and the hub may be in use again without it.
            return
        self.on_hub_end()
        await self.hub.close()

    def on_hub_sweep(self) -> None:
        """End the handshakes whose time is over. Only the hub calls this."""
        self._handshakes.expire()

    def on_hub_end(self) -> None:
        """Listen no more, and refuse the handshakes that wait. Only the hub calls this."""
        self.stop_listening()
        self._handshakes.pending.shut_down()

    def on_hub_closed(self) -> None:
        """Release the reactor, and let ``wait_closed`` return. Only the hub calls this."""
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
                self.hub.hurry_closing()
            await closing

    async def wait_closed(self) -> None:
        """Waits until the server has been closed: for ever, unless ``close()`` is called or its block is left."""
        if self._closed is not None:
            await asyncio.shield(self._closed)

    def stop_listening(self) -> None:
        """Accepts no more connections; those that are there stay."""
        if self._closed is not None:
            log_stopped(self.sockets)
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
