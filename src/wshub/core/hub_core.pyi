"""The native part of a hub: fan-out, membership, and the sweep over all connections."""

import asyncio
import ssl as ssl_module
from collections.abc import Mapping
from typing import Any, Self, Unpack

from typing_extensions import Buffer

from wshub.core.admission import Admission
from wshub.core.config import DeliveryOptions, HubConfig, RoomConfig
from wshub.core.connection import Connection
from wshub.core.handler_table import HandlerTable
from wshub.core.queued import Queued
from wshub.core.stats import HubStats, RoomStats
from wshub.links.reactor_api import Reactor
from wshub.protocol.http.request import RequestHead
from wshub.protocol.message import Message

class HubCore:
    """Connections, rooms and what is sent to them. See :class:`wshub.Hub`."""

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
        """The names of all rooms that somebody is in."""
    @property
    def connection_count(self) -> int:
        """How many connections there are, those that are closing included."""
    def broadcast(
        self,
        message: str | Buffer | Message,
        *,
        room: str | None = None,
        exclude: Connection | int | None = None,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """Queues a message for every open connection, or every one in a room.

        The message is framed once, whatever the number of receivers, and compressed once for all who keep as much of
        a window. From another thread than the hub's this is handed over to the loop.

        Args:
            message: a str, bytes or another buffer, or a Message.
            room: the name of a room; None is everybody.
            exclude: a Connection, or the id of one, that does not get it.
            compress: as in ``Connection.send``.
            slow_consumer: as in ``Connection.send``; None is as the room is configured, or else the hub.
            key: as in ``Connection.send``; if none is given, all messages to a room have the same.

        Returns:
            For how many connections it was queued; from another thread, how many were there.

        Raises:
            TypeError, InvalidMessageError, MisuseError: as ``Connection.send``.
            TypeError: ``room`` is no str.
            MisuseError: ``exclude`` is neither a Connection nor an int, or it is a bool.
        """
    def broadcast_except(
        self,
        message: str | Buffer | Message,
        exclude: Connection | int,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to everybody but one."""
    def broadcast_to_room(
        self,
        room: str,
        message: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to everybody in a room."""
    def broadcast_to_room_except(
        self,
        room: str,
        message: str | Buffer | Message,
        exclude: Connection | int,
        **options: Unpack[DeliveryOptions],
    ) -> int:
        """``broadcast`` to everybody in a room but one."""
    def _configure_room(self, name: str, config: RoomConfig) -> None: ...
    def join_room(self, connection: Connection, room: str) -> Queued:
        """The connection enters a room: ``connection.join``."""
    def leave_room(self, connection: Connection, room: str) -> Queued:
        """The connection leaves a room: ``connection.leave``."""
    def room_size(self, room: str) -> int:
        """How many connections are in a room; 0 for one that nobody is in."""
    def room_members(self, room: str) -> list[Connection]:
        """The connections in a room, as a list."""
    def get_connection(self, id: int) -> Connection | None:
        """The connection with that id, or None. Raises MisuseError if ``id`` is no int, or a bool."""
    def unregister(self, connection: Connection, code: int = 1000, reason: str | Buffer = "") -> Queued:
        """Closes the connection, which leaves its rooms at once: ``connection.close``."""
    @property
    def _admission(self) -> Admission: ...
    @property
    def is_in_use(self) -> bool: ...
    def now(self) -> float: ...
    def bind(self) -> Reactor: ...
    def reactor_for(self, ssl: ssl_module.SSLContext | None) -> Reactor: ...
    def register_connection(
        self,
        handlers: HandlerTable,
        request: RequestHead | None,
        subprotocol: str | None = None,
        path_params: dict[str, Any] | None = None,
        *,
        extensions: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> Connection: ...
    def drop_compression(self, connection: Connection) -> None: ...
    def fail_connection(self, connection: Connection, code: int, reason: str) -> None: ...
    def cancel_opening(self, connection: Connection) -> None: ...
    def can_adopt(self) -> bool: ...
    def open_on_descriptor(self, connection: Connection, descriptor: int, response: bytes, rest: bytes) -> None: ...
    def open_on_link(self, connection: Connection, link: Any, response: bytes, rest: bytes) -> None: ...
    def _sweep(self) -> None: ...
    def _close_all(self, payload: bytes) -> None: ...
    def _begin_anew(self) -> None: ...
    def _end(self) -> None: ...
    def _close_share(self, steps: int, payload: bytes) -> None: ...
    def _abort_all(self) -> None: ...
    def _when_empty(self) -> asyncio.Future[None]: ...
    @property
    def _handler_tasks(self) -> dict[asyncio.Task[Any], int]: ...
    @property
    def _handled_connection(self) -> int | None: ...
    def _counts(self) -> HubStats: ...
    def _room_counts(self, name: str) -> RoomStats: ...
