"""The hub: all connections of an event loop, and the rooms they are in."""

from __future__ import annotations

import asyncio
import os
import socket as socket_module
import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from wshub.asgi.application import AsgiWebSocket, HubApplication, accept_websocket
from wshub.core.binding import bind_for_request
from wshub.core.config import HubConfig, RoomConfig, SlowConsumer
from wshub.core.connection import Connection
from wshub.core.event_handler import EventHandler
from wshub.core.handler_checks import check_function
from wshub.core.hub_core import HubCore
from wshub.core.upgrade import current_upgrade
from wshub.errors import HandshakeError, MisuseError
from wshub.links.tls import create_own_context
from wshub.protocol.close_code import CloseCode, encode_close_payload
from wshub.protocol.handshake.server import Handshake, HeaderField
from wshub.protocol.http.request import RequestHead
from wshub.serving.server import Server

if TYPE_CHECKING:
    from wshub.core.hub_state import HandlerTable
    from wshub.links.reactor_api import Reactor

__all__ = ["Hub", "UpgradeHook"]

UpgradeHook: TypeAlias = Callable[[RequestHead], Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]

CLOSE_STEP = 0.02
"""Seconds between two steps of closes that are spread over a time."""


class Hub(HubCore):
    """Holds connections, groups them in rooms and fans messages out to them.

    A hub belongs to one event loop at a time, from its first use there until ``close()`` has returned or the loop has
    closed. Its next use begins anew, on any loop: the configuration, ``on_upgrade`` and the settings of rooms stay;
    connections, rooms, counts and the state of limits do not. A loop that closes before the hub leaves no loop to call
    handlers in, so none is called for the connections that it leaves. ``async with Hub(...) as hub`` closes the hub at
    the end.

    Args:
        config: a HubConfig; None is all defaults.
        clock: a function that returns seconds and never goes back; ``time.monotonic`` if not given.
        on_upgrade: a function or a coroutine function, called with the RequestHead of each request that is to become a
            connection, when everything else speaks for it. It raises ``HandshakeError`` to refuse the request, with a
            status and a reason that is the body. A mapping that it returns is the connection's first ``metadata``.
    """

    _sweeper: asyncio.TimerHandle | None
    _closing: asyncio.Task[None] | None
    _exiting: asyncio.Task[None] | None
    # The ids of connections whose handlers wait in close(), and a future that is done when there is one more.
    _closers: list[int]
    _closer_joined: asyncio.Future[None] | None
    # The servers that have been entered and have not ended.
    _servers: set[Server]

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_upgrade: UpgradeHook | None = None,
    ) -> None:
        if on_upgrade is not None:
            check_function("on_upgrade", on_upgrade, ("request",))
        self._on_upgrade = on_upgrade
        # To find it out for every connection, and to keep it, costs what most hubs have no use for.
        self._wants_address = on_upgrade is not None or self._admission.needs_address
        self._begin_anew()

    def register(self, handler: EventHandler | Callable[[Connection], Any]) -> Connection:
        """Take the WebSocket request that is being handled, and return its connection.

        It is called within a handler of a request, as in :class:`wshub.App`. The connection can join rooms and keep
        metadata at once; it opens, and ``on_open`` is called, when the handler has returned.

        Args:
            handler: an EventHandler, or a coroutine function that takes the connection and whose end closes it.

        Raises:
            MisuseError: there is no such request, it is taken already, or ``handler`` is something else.
            HandshakeError: the request does not ask for a WebSocket, or the hub does not take it.
        """
        upgrade = current_upgrade.get()
        if upgrade is None:
            raise MisuseError("register() takes the request that is being handled: call it in a handler of an App")
        return upgrade.register(self, handler)

    def asgi(
        self, handler: EventHandler | Callable[[Connection], Any], *, subprotocols: Sequence[str] = ()
    ) -> HubApplication:
        """An ASGI application that takes every WebSocket it is given into this hub, on any ASGI server::

            app.mount("/ws", hub.asgi(handler))

        On uvicorn with ``--ws wshub.uvicorn.protocol:WebSocketProtocol`` the hub takes the connections from the
        server; elsewhere the server keeps them: then it is the server that negotiates compression and that pings.

        Args:
            handler: an EventHandler, or a coroutine function that takes the connection and whose end closes it.
            subprotocols: those that may be chosen, in the client's order of preference.

        Raises:
            MisuseError: ``handler`` is something else.
            ConfigurationError: ``subprotocols`` are no strings, or one string.
        """
        return HubApplication(self, handler, subprotocols)

    async def accept(
        self,
        websocket: AsgiWebSocket,
        handler: EventHandler | None = None,
        *,
        subprotocols: Sequence[str] = (),
        headers: Iterable[HeaderField] = (),
    ) -> Connection:
        """Take a WebSocket that a framework has not accepted yet into this hub, within its endpoint::

            @app.websocket("/chat/{room}")
            async def chat(websocket: WebSocket, room: str):
                connection = await hub.accept(websocket)
                connection.join(room)
                async for message in connection:
                    hub.broadcast(message, room=room)

        Without a handler it returns as soon as the connection is open, and the connection is closed when the endpoint
        ends: with 1000, with the code of a framework's ``WebSocketException``, or with 1011. On other servers than
        wshub's, that holds in FastAPI; elsewhere, close the connection before the endpoint returns. With a handler
        it returns when the connection has ended.

        Args:
            websocket: Starlette's, FastAPI's or Litestar's; or whatever has a scope, and ASGI's receive and send. It
                is the connection's from here on.
            handler: an EventHandler, or None.
            subprotocols: those that may be chosen, in the client's order of preference.
            headers: further header fields of the answer.

        Raises:
            HandshakeError: the hub or middleware has refused the request, which has been answered.
            MisuseError: the WebSocket has been accepted already, or ``handler`` is something else.
            ConfigurationError: ``subprotocols`` are no strings, or ``headers`` are no pairs.
            InvalidMessageError: a header that is not latin-1 text.
        """
        return await accept_websocket(self, websocket, handler, subprotocols, headers)

    def serve(
        self,
        host: str | None = None,
        port: int = 0,
        handler: EventHandler | Callable[[Connection], Any] | None = None,
        *,
        path: str | None = None,
        subprotocols: Sequence[str] = (),
        unix: str | os.PathLike[str] | None = None,
        sock: socket_module.socket | None = None,
        backlog: int = 4096,
        ssl: ssl_module.SSLContext | None = None,
        ssl_certfile: str | os.PathLike[str] | None = None,
        ssl_keyfile: str | os.PathLike[str] | None = None,
    ) -> Server:
        """A complete WebSocket server, as an asynchronous context manager::

            async with hub.serve("127.0.0.1", 8080, handler) as server:
                await server.serve_forever()

        Args:
            host: the address to listen on; None is all interfaces. A name listens on all its addresses.
            port: 0 lets the system choose; ``server.port`` tells.
            handler: an EventHandler, or a coroutine function that takes the connection and whose end closes it.
            path: the only path served, any other gets 404; None serves all.
            subprotocols: those that may be chosen, in the client's order of preference.
            unix: the path of a Unix socket to listen on, instead of an address. It is removed at the end.
            sock: a bound socket, instead of an address.
            backlog: connections that the kernel holds until they are accepted.
            ssl: for TLS, an SSLContext of the server's side; or
            ssl_certfile, ssl_keyfile: PEM files of the certificate chain and its key, which may be in one file.

        Raises:
            MisuseError: another kind of handler, or more than one kind of address or of TLS.
            ConfigurationError: an argument that cannot be, such as a port over 65535.
            OSError: a file of the certificate cannot be read; on entering, it cannot listen.
        """
        if sum(given is not None for given in (unix, sock, host)) > 1:
            raise MisuseError("give serve() a host, the path of a Unix socket, or a socket: one of them")
        if ssl_certfile is not None:
            if ssl is not None:
                raise MisuseError("give serve() an SSLContext or the files of a certificate, not both")
            ssl = create_own_context(ssl_certfile, ssl_keyfile)
        elif ssl_keyfile is not None:
            raise MisuseError("give serve() the ssl_certfile that belongs to the ssl_keyfile")
        return Server(
            self,
            host,
            port,
            handler,
            path=path,
            subprotocols=subprotocols,
            unix=unix,
            sock=sock,
            backlog=backlog,
            ssl=ssl,
        )

    def configure_room(
        self,
        name: str,
        *,
        compression: Literal["message", "shared"] = "message",
        restart_interval: int = 128,
        slow_consumer: SlowConsumer | None = None,
    ) -> None:
        """Sets how a room behaves, for as long as the hub lives, whether anybody is in it or not.

        Args:
            name: of the room.
            compression, restart_interval, slow_consumer: as in ``RoomConfig``.

        Raises:
            ConfigurationError: a value that cannot be.
            MisuseError: the room is to compress, and the hub does not.
            TypeError: ``name`` is no str.
        """
        config = RoomConfig(compression=compression, restart_interval=restart_interval, slow_consumer=slow_consumer)
        if config.compression == "shared" and self.config.compression is None:
            raise MisuseError("a room can share a window only in a hub that compresses: set enable_compression")
        self._configure_room(name, config)

    def stats(self, *, room: str | None = None) -> dict[str, Any]:
        """Counts since the hub was made, and how things stand; or, of a room, since somebody entered it.

        ``messages_accepted`` = ``messages_delivered`` + the sum of ``dropped`` + ``messages_pending``, at any moment,
        of the hub and of each room. A message counts once for each connection that it was for. It is delivered when the
        kernel has taken all of it, or what takes it in the kernel's place, as for ``Connection.buffered``. The reasons
        in ``dropped``: ``closed``, its connection has ended; ``slow``, its connection was closed by ``slow_consumer``;
        ``newest``, ``oldest``, ``replaced``, what the other policies did.
        """
        return self._counts() if room is None else self._room_counts(room)

    async def close(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Closes every connection, and returns when all are gone and their handlers have ended.

        Everything queued is sent first. Connections that are still there after ``close_timeout_ms`` are aborted. Then
        handlers, ``on_close`` included, have ``close_timeout_ms`` to end before they are cancelled. So it returns at
        the latest ``shutdown_spread_ms`` and four times ``close_timeout_ms`` after the call.

        Every server of the hub ends with it: requests get 503 meanwhile, at the end it listens no more,
        and ``Server.serve_forever`` and ``Server.wait_closed`` return. Enter a new server to serve again.

        A handler may call it, itself or in a task that it has started. The handlers of its connection are not waited
        for then. A second call waits for the same end. Cancelling a call ends the waiting, and not the closing. The
        next use of the hub begins anew.
        """
        payload = encode_close_payload(code, reason)
        if not self._is_in_use:
            return
        if self._closing is None:
            self._bind()
            self._closing = asyncio.get_running_loop().create_task(self._close(payload))
        caller = self._handled_connection
        if caller is not None:
            self._closers.append(caller)
            if self._closer_joined is not None and not self._closer_joined.done():
                self._closer_joined.set_result(None)
        try:
            await asyncio.shield(self._closing)
        finally:
            if caller in self._closers:
                self._closers.remove(caller)

    async def _close(self, payload: bytes) -> None:
        timeout = self.config.close_timeout_ms / 1000
        try:
            await self._spread_closes(payload)
            self._close_all(payload)
            await asyncio.wait([self._when_empty()], timeout=timeout)
            self._abort_all()
            await asyncio.wait([self._when_empty()], timeout=timeout)
            if not await self._handlers_end(timeout):
                self._cancel_handlers()
                await self._handlers_end(timeout)
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
            if self._is_in_use:
                for server in self._servers:
                    server._stop()
            self._end()
            if self._exiting is None:
                self._end_servers()

    def _end_servers(self) -> None:
        servers, self._servers = self._servers, set()
        for server in servers:
            server._end()

    def _hurry(self) -> None:
        """Shorten the closing that is under way: abort what is left of the connections, cancel the handlers."""
        self._abort_all()
        self._cancel_handlers()

    def _cancel_handlers(self) -> None:
        """Cancel the handlers that are suspended, except those that wait for the hub to close."""
        for task in self._handlers_to_end():
            task.cancel()

    def _handlers_to_end(self) -> list[asyncio.Task[Any]]:
        """The tasks of suspended handlers, without those of connections whose handlers wait for the hub to close."""
        return [task for task, connection in self._handler_tasks.items() if connection not in self._closers]

    async def _handlers_end(self, timeout: float) -> bool:
        """Wait until no handler is suspended, except those that wait for the hub to close; False if time runs out."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                while tasks := self._handlers_to_end():
                    ended = loop.create_task(_all_end(tasks))
                    joined = self._closer_joined = loop.create_future()
                    try:
                        await asyncio.wait((ended, joined), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        ended.cancel()
        except TimeoutError:
            return False
        finally:
            self._closer_joined = None
        return True

    def _exit(self, error: BaseException) -> None:
        """Close, and then let the loop raise the SystemExit or KeyboardInterrupt that a handler has raised.

        Only the first one is raised, so that nothing interrupts the program while it ends.
        """
        if self._exiting is not None:
            return

        def raise_it(closing: asyncio.Task[None]) -> None:
            # Not earlier: the program must not be past its wait for a server when the exit is raised.
            self._end_servers()
            raise error

        # In a context of its own: this is no call of the handler's, whose on_close is waited for.
        self._exiting = Context().run(asyncio.get_running_loop().create_task, self.close())
        self._exiting.add_done_callback(raise_it)

    async def _spread_closes(self, payload: bytes) -> None:
        """Close one connection after the other, evenly over the configured time."""
        spread = self.config.shutdown_spread_ms / 1000
        steps = min(round(spread / CLOSE_STEP), self.connection_count)
        for left in range(steps, 0, -1):
            if not self.connection_count:
                return
            self._close_share(left, payload)
            await asyncio.sleep(spread / steps)

    async def __aenter__(self) -> Hub:
        self._bind()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _bind(self) -> Reactor:
        reactor = super()._bind()
        if self._sweeper is None and self._closing is None:
            self._start_sweeping()
        return reactor

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._sweeper = None
        self._closing = None
        self._exiting = None
        self._closers = []
        self._closer_joined = None
        self._servers = set()

    @property
    def _is_closing(self) -> bool:
        return self._closing is not None and not self._closing.done()

    def _start_sweeping(self) -> None:
        """Sweep from now on, often enough for the shortest of the timeouts to be kept to a tenth."""
        config = self.config
        timeouts = (
            config.ping_interval_ms,
            config.pong_timeout_ms,
            config.close_timeout_ms,
            config.handshake_timeout_ms,
            config.send_timeout_ms,
            config.idle_timeout_ms,
            config.max_lifetime_ms,
        )
        shortest = min(timeout for timeout in timeouts if timeout)
        period = min(max(shortest / 10_000, 0.01), config.rates.sweep_period)
        loop = asyncio.get_running_loop()

        def sweep() -> None:
            self._sweeper = loop.call_later(period, sweep)
            self._sweep()
            self._admission.sweep()
            for server in tuple(self._servers):
                server._expire()

        self._sweeper = loop.call_later(period, sweep)

    def _accept_request(
        self,
        request: RequestHead,
        key: str,
        table: HandlerTable,
        subprotocols: Sequence[str],
        path_params: dict[str, Any] | None = None,
        headers: Iterable[HeaderField] | bytes = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple[Connection, bytes]:
        """Register a request that has come without a framework, and write its 101. Raises ``HandshakeError``.

        ``key`` is what ``_check_request`` has returned; whoever else is to be asked has been asked.
        """
        subprotocol = Handshake.choose_subprotocol(request.headers, subprotocols)
        connection = self._register(table, request, subprotocol, path_params, metadata=metadata)
        response = self._create_response(connection, key, headers)
        request.headers.compact()
        return connection, response

    def _check_request(self, request: RequestHead) -> str:
        """The key of a request that has come without a framework. Raises ``HandshakeError`` to refuse it."""
        key = Handshake.check_request(request.method, request.http_version, request.headers)
        self._admit(request)
        return key

    def _create_response(self, connection: Connection, key: str, headers: Iterable[HeaderField] | bytes = ()) -> bytes:
        """The 101 that tells what was agreed for a connection, which is given up if there cannot be one."""
        compression = connection.compression
        try:
            return Handshake.create_response(
                key,
                subprotocol=connection.subprotocol,
                extensions=compression.response if compression is not None else None,
                headers=headers,
            )
        except BaseException:
            self._abandon(connection)
            raise

    def _count_refused(self, error: HandshakeError) -> None:
        """Count a handshake that was answered with this error's status."""
        self.refused[error.status] = self.refused.get(error.status, 0) + 1

    def _admit(self, request: RequestHead) -> None:
        """Raise ``HandshakeError`` if the hub takes no connection from this request, or none at all now."""
        self._check_not_closing()
        self._admission.check(request.headers, request.remote_address, self.connection_count)

    def _ask(self, request: RequestHead) -> Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None:
        """What the application says of a request: the metadata of its connection, or an awaitable of that."""
        return self._on_upgrade(request) if self._on_upgrade is not None else None

    def _check_room(self, request: RequestHead) -> None:
        """Raise ``HandshakeError`` if there is no place left, after the application has taken its time to answer."""
        self._check_not_closing()
        self._admission.check_room(request.remote_address, self.connection_count)

    def _check_not_closing(self) -> None:
        if self._is_closing:
            raise HandshakeError(503, "The server is shutting down.")
        if not self._is_in_use:
            bind_for_request(self)


async def _all_end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
