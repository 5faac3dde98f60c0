"""The native part of a hub: its life, its connections, and the sweep over all of them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Self, Unpack

from typing_extensions import Buffer

from wshub.core.admission import Admission
from wshub.core.cluster_types import ClusterStats
from wshub.core.config import DeliveryOptions, HubConfig, RoomConfig
from wshub.core.connection import Connection
from wshub.core.handler_table import HandlerTable
from wshub.core.limit_log import LimitLog
from wshub.core.observed_handshake import Tracer
from wshub.core.queued import Queued
from wshub.core.stats_types import HubStats, RoomStats
from wshub.links.reactor_api import Reactor
from wshub.protocol.http.request import RequestHead
from wshub.protocol.message import Message

class HubCore:
    """Connections, rooms and broadcasts. See :class:`wshub.Hub`.

    Methods that the reference does not list are for wshub's own packages.
    """

    # A HubConfig, and a clock by keyword. A subclass may have other arguments in its __init__.
    def __new__(cls, config: Any = ..., *arguments: Any, **keywords: Any) -> Self: ...
    @property
    def config(self) -> HubConfig:
        """The settings of the hub."""
    @property
    def refused(self) -> dict[int, int]:
        """The number of refused handshakes by HTTP status."""
    @property
    def rooms(self) -> frozenset[str]:
        """The names of all rooms that have a member."""
    @property
    def connections(self) -> list[Connection]:
        """The open connections of this hub, as a new list: it stays as it is when connections come and go.

        A connection in it may have closed by the time that you send to it.
        """
    @property
    def connection_count(self) -> int:
        """The number of connections, including those that are closing."""
    def broadcast(
        self,
        message: str | Buffer | Message,
        *,
        room: str | None = None,
        exclude: Connection | int | None = None,
        publisher: Connection | str | None = None,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """Queue a message for every open connection, or for every member of a room.

        The message is framed once, and compressed once for all clients with the same window. A call from another thread
        than the hub's is handed over to the loop. If the hub has a broker, the other nodes get the message too. Use
        ``publish`` to know whether the broker has taken it.

        Args:
            message: a str, bytes or another buffer, or a Message.
            room: the name of a room; None means all connections.
            exclude: a Connection, or its id, that does not get the message.
            compress: as in ``Connection.send``.
            slow_consumer: as in ``Connection.send``; None uses the policy of the room, or else of the hub.
            key: as in ``Connection.send``. All messages to a room that have no key share one.
            publisher: the Connection that the message comes from, or the name of its user. A room with history keeps
                the name; other rooms ignore it.

        A message to a room with history is stored first. The members get it when it comes back with its offset: with a
        broker, a little later.

        Returns:
            The number of connections of this hub that it was queued for. If called from another thread: the number of
            connections of the hub, or of members of the room, at that moment.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``Connection.send``.
            TypeError: ``room`` is not a str.
            MisuseError: ``exclude`` is a bool, or neither a Connection nor an int.
        """
    def send_to_user(
        self,
        user: str,
        message: str | Buffer | Message,
        *,
        exclude: Connection | int | None = None,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """Queue a message for every open connection of a user, on every node.

        It does what ``broadcast`` does for a room. Nothing happens for an empty name: anonymous clients are no user.

        Returns:
            The number of connections of this hub that it was queued for.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``broadcast``.
        """
    def _send_to_own(
        self,
        message: str | Buffer | Message,
        *,
        room: str | None = None,
        user: str | None = None,
        exclude: Connection | int | None = None,
        **options: Unpack[DeliveryOptions],
    ) -> tuple[str | None, bytes | None]: ...
    def broadcast_except(
        self,
        message: str | Buffer | Message,
        exclude: Connection | int,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to all connections but one."""
    def broadcast_to_room(
        self,
        room: str,
        message: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to all members of a room."""
    def broadcast_to_room_except(
        self,
        room: str,
        message: str | Buffer | Message,
        exclude: Connection | int,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to all members of a room but one."""
    def _configure_room(self, name: str, config: RoomConfig) -> None: ...
    def join_room(self, connection: Connection, room: str) -> Queued:
        """Call ``connection.join(room)``."""
    def leave_room(self, connection: Connection, room: str) -> Queued:
        """Call ``connection.leave(room)``."""
    def user_connections(self, user: str) -> list[Connection]:
        """Return the connections of a user at this hub as a list; an empty list for an empty name."""
    def room_size(self, room: str) -> int:
        """Return the number of members of a room; 0 if there is no such room."""
    def room_members(self, room: str) -> list[Connection]:
        """Return the members of a room as a list of Connections."""
    def get_connection(self, id: int) -> Connection | None:
        """Return the connection with that id, or None. Raise MisuseError if ``id`` is a bool or not an int."""
    def unregister(self, connection: Connection, code: int = 1000, reason: str | Buffer = "") -> Queued:
        """Call ``connection.close(code, reason)``. The connection leaves its rooms at once."""
    @property
    def _admission(self) -> Admission: ...
    def _join_cluster(self, cluster: Any) -> None: ...
    @property
    def _watches(self) -> Any: ...
    @_watches.setter
    def _watches(self, watches: Any) -> None: ...
    @property
    def _keeps_histories(self) -> bool: ...
    @property
    def _keeps_presences(self) -> bool: ...
    def _keep_presences(self, presences: Any) -> None: ...
    def _keep_histories(self, histories: Any) -> None: ...
    def _room_config(self, room: str) -> RoomConfig | None: ...
    def _bind_to_send(self) -> bool: ...
    def _hand_over(self, call: Callable[[], object]) -> bool: ...
    def _subscribed_rooms(self) -> list[Any]: ...
    @property
    def _has_closed(self) -> bool: ...
    @property
    def is_in_use(self) -> bool:
        """Whether the hub has an event loop, and neither of the two has closed."""
    def now(self) -> float:
        """Return the time by the hub's clock, in seconds."""
    def bind(self) -> Reactor:
        """Bind the hub to the running loop, and return the hub's reactor.

        If the hub or its loop has closed, the hub begins anew.
        """
    def register_connection(
        self,
        handlers: HandlerTable,
        request: RequestHead | None,
        subprotocol: str | None = None,
        path_params: dict[str, Any] | None = None,
        *,
        extensions: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> Connection:
        """Return a new connection whose handshake is not answered yet: it can join rooms and keep metadata.

        The compression that was negotiated is in ``connection.compression``, for the answer. Without `extensions` it is
        None, since another server gives the answer.
        """
    def drop_compression(self, connection: Connection) -> None:
        """Drop the negotiated compression of a registered connection: another server answers its handshake."""
    def fail_connection(self, connection: Connection, code: int, reason: str) -> None:
        """Fail an open connection (RFC 6455 section 7.1.7): the peer need not answer the close frame."""
    def cancel_opening(self, connection: Connection) -> None:
        """End a registered connection that is not open: no handler is called."""
    def can_adopt(self) -> bool:
        """Return whether the hub's reactor takes connected sockets."""
    def open_on_descriptor(self, connection: Connection, descriptor: int, response: bytes, rest: bytes) -> None:
        """Answer the handshake on a connected socket, which the hub's reactor owns from now on, and open it."""
    def open_on_link(self, connection: Connection, link: Any, response: bytes, rest: bytes) -> None:
        """Answer the handshake on a link, and open the connection. ``rest`` is the bytes that came after the request.

        An empty response means that another server has answered. Raises HandshakeError if the hub has closed.
        """
    def _sweep(self) -> None: ...
    def _connections_of(self, handlers: HandlerTable | None) -> list[Connection]: ...
    def _close_all(self, payload: bytes, handlers: HandlerTable | None = None) -> None: ...
    def _begin_anew(self) -> None: ...
    def _end(self) -> None: ...
    def _close_share(self, steps: int, payload: bytes, handlers: HandlerTable | None = None) -> None: ...
    def _abort_all(self, handlers: HandlerTable | None = None) -> None: ...
    def _when_empty(self) -> asyncio.Future[None]: ...
    def _tasks_of(self, handlers: HandlerTable | None) -> list[tuple[asyncio.Task[Any], int]]: ...
    @property
    def _handled_connection(self) -> int | None: ...
    def _counts(self, cluster: ClusterStats | None) -> HubStats: ...
    def measure_times(self) -> None:
        """Measure from now on how long handshakes, ``on_message`` and pings take: ``stats()`` has the histograms.

        A ``HubCollector`` calls this. Until then no time is measured, and nothing is spent on it.
        """
    @property
    def _observes_handshakes(self) -> bool:
        """Whether handshakes are measured, or have spans."""
    def _trace(self, tracer: Tracer, messages: bool) -> None: ...
    @property
    def _tracer(self) -> Tracer | None: ...
    @property
    def _limit_log(self) -> LimitLog: ...
    def _count_handshake_time(self, seconds: float) -> None: ...
    def _room_counts(self, name: str) -> RoomStats: ...
