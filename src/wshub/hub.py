"""The hub: all connections of an event loop, and the rooms they are in."""

from __future__ import annotations

import os
import socket as socket_module
import ssl as ssl_module
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, overload

from wshub.asgi.accept import AsgiWebSocket, accept_websocket
from wshub.asgi.application import HubApplication
from wshub.brokers.choosing import broker_from_url, broker_url_of_environment
from wshub.brokers.interface import Broker, HistoryConfig
from wshub.brokers.presence_interface import PresenceConfig
from wshub.core.clustered import ClusteredHub
from wshub.core.config import HubConfig, RoomConfig, SlowConsumer
from wshub.core.connection import Connection
from wshub.core.event_handler import EventHandler
from wshub.core.lifecycle import UpgradeHook
from wshub.core.stats_types import HubStats, RoomStats
from wshub.core.upgrade import current_upgrade
from wshub.errors import MisuseError
from wshub.links.tls.contexts import ServerTls
from wshub.protocol.http.fields import HeaderField
from wshub.serving.server import Server

__all__ = ["Hub", "UpgradeHook"]


class Hub(ClusteredHub):
    """Holds connections, groups them in rooms and fans messages out to them.

    A hub belongs to one event loop at a time, from its first use there until ``close()`` has returned or the loop has
    closed. Its next use begins anew, on any loop: the configuration, ``on_upgrade`` and the settings of rooms stay;
    connections, rooms, counts and the state of limits do not. If the loop closes before the hub does, no handler is
    called for the connections that are left. ``async with Hub(...) as hub`` closes the hub at the end. If the broker
    joins it to other worker processes, the block begins when they can hand over to it, or after two seconds.

    Args:
        config: a HubConfig; None is all defaults.
        clock: a function that returns seconds and never goes back; ``time.monotonic`` if not given.
        on_upgrade: a function or a coroutine function, called with the RequestHead of each handshake request that has
            passed every other check. It raises ``HandshakeError`` to refuse the request, with a status and a reason
            that is the body. A mapping that it returns is the connection's first ``metadata``. A str in it under the
            key ``"user"`` is the connection's ``user``.
        broker: what joins the hub to those of other processes: a Broker, a URL such as ``"redis://localhost"``, or
            ``"none"``. If not given, the environment names it: ``WSHUB_BROKER``, or ``wshub serve --workers``.
        name: the name of the hub. A broker joins hubs of one name. Two hubs of a process need two names.

    Raises:
        ConfigurationError: a URL that names no broker.
        MisuseError: another argument that cannot be.
    """

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_upgrade: UpgradeHook | None = None,
        broker: Broker | str | None = None,
        name: str = "hub",
    ) -> None:
        place = None
        if broker is None or isinstance(broker, str):
            place = broker if broker is not None else broker_url_of_environment()
            broker = broker_from_url(place) if place is not None else None
        super().__init__(config, clock=clock, on_upgrade=on_upgrade, broker=broker, broker_place=place, name=name)

    def register(self, handler: EventHandler | Callable[[Connection], Any]) -> Connection:
        """Take the WebSocket request that is being handled, and return its connection.

        Call it within a handler of a request, as in :class:`wshub.app.App`. The connection can join rooms and keep
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
        """Return an ASGI application that takes every WebSocket into this hub, on any ASGI server::

            app.mount("/ws", hub.asgi(handler))

        On uvicorn with ``--ws wshub.uvicorn.protocol:WebSocketProtocol`` the hub takes the connections from the
        server. Elsewhere the server keeps them, negotiates compression and sends pings.

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
        user: str | None = None,
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

        Without a handler it returns as soon as the connection is open. When the endpoint ends, the hub closes the
        connection: with 1000, with the code of a framework's ``WebSocketException``, or with 1011. On other servers
        than wshub's, that holds in FastAPI; elsewhere, close the connection before the endpoint returns. With a handler
        it returns when the connection has ended.

        Args:
            websocket: Starlette's, FastAPI's or Litestar's; or whatever has a scope, and ASGI's receive and send. It
                is the connection's from here on.
            handler: an EventHandler, or None.
            user: the name of the connection's user, or None.
            subprotocols: those that may be chosen, in the client's order of preference.
            headers: further header fields of the answer.

        Raises:
            HandshakeError: the hub or middleware has refused the request, which has been answered.
            MisuseError: the WebSocket has been accepted already, or ``handler`` is something else.
            ConfigurationError: ``subprotocols`` are no strings, or ``headers`` are no pairs.
            InvalidMessageError: a header that is not latin-1 text.
        """
        return await accept_websocket(self, websocket, handler, user, subprotocols, headers)

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
        health_path: str | None = None,
        close_hub: bool = False,
    ) -> Server:
        """Return a complete WebSocket server, an asynchronous context manager::

            async with hub.serve("127.0.0.1", 8080, handler) as server:
                await server.serve_forever()

        At the end of the block, the connections that came through the server are closed with 1001. The hub stays in
        use: other servers and frameworks may still bring connections.

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
            ssl_certfile, ssl_keyfile: PEM files of the certificate chain and its key, which may be in one file. The key
                is not encrypted.
            health_path: a path such as ``"/health"``: GET requests for ``/health/live`` and ``/health/ready`` are
                answered as ``wshub.health.health_endpoint`` does. None answers none.
            close_hub: True closes the hub too when the server closes, with all its connections and its broker.

        Raises:
            MisuseError: another kind of handler, or more than one kind of address or of TLS.
            ConfigurationError: an argument that cannot be, such as a port over 65535.
            OSError: a file of the certificate cannot be read; on entering, it cannot listen.
        """
        if sum(given is not None for given in (unix, sock, host)) > 1:
            raise MisuseError("give serve() a host, the path of a Unix socket, or a socket: one of them")
        tls = ServerTls(ssl) if ssl is not None else None
        if ssl_certfile is not None:
            if ssl is not None:
                raise MisuseError("give serve() an SSLContext or the files of a certificate, not both")
            tls = ServerTls.from_files(ssl_certfile, ssl_keyfile)
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
            tls=tls,
            health_path=health_path,
            close_hub=close_hub,
        )

    def configure_room(
        self,
        name: str,
        *,
        compression: Literal["message", "shared"] = "message",
        restart_interval: int = 128,
        slow_consumer: SlowConsumer | None = None,
        history: HistoryConfig | None = None,
        presence: bool | PresenceConfig | None = None,
    ) -> None:
        """Set how a room behaves, or all rooms of a pattern, for as long as the hub lives, also while they are empty.

        Args:
            name: of the room, or a pattern: one ``*`` in it stands for any characters. ``"chat:*"`` is all rooms whose
                names begin with ``chat:``. If a room has settings by its own name, these count. Otherwise those of the
                most specific pattern do: the one with the most other characters.
            compression, restart_interval, slow_consumer, history, presence: as in ``RoomConfig``.

        Raises:
            ConfigurationError: a value that cannot be, or a name with more than one ``*``.
            MisuseError: the room is to compress, and the hub does not.
            TypeError: ``name`` is no str.
        """
        config = RoomConfig(
            compression=compression,
            restart_interval=restart_interval,
            slow_consumer=slow_consumer,
            history=history,
            presence=presence,
        )
        if config.compression == "shared" and self.config.compression is None:
            raise MisuseError("a room can share a window only in a hub that compresses: set enable_compression")
        if history is not None:
            self._history_broker()
        if presence:
            self._presence_broker()
        self._configure_room(name, config)
        if presence and self.is_in_use and self._presences is None:
            self._start_presences()
        if history is not None and self.is_in_use and self._histories is None:
            self._start_histories()

    @overload
    def stats(self, *, room: None = None) -> HubStats: ...

    @overload
    def stats(self, *, room: str) -> RoomStats: ...

    def stats(self, *, room: str | None = None) -> HubStats | RoomStats:
        """Return the counts of the hub since its first use, or of a room since its first member joined.

        At any moment, ``messages_accepted`` = ``messages_delivered`` + ``messages_pending`` + ``dropped.total``. A
        message counts once for each of its receivers. It is delivered when the kernel has taken all of it, or a
        transport in the kernel's place, as for ``Connection.buffered``. ``HubStats`` and ``RoomStats`` describe every
        field. ``stats().asdict()`` is a dict for JSON.

        Args:
            room: the name of a room; None means the whole hub.
        """
        if room is not None:
            return self._room_counts(room)
        return self._counts(self._cluster.stats() if self._cluster is not None else None)
