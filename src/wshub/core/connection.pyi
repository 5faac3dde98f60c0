"""One WebSocket connection, as applications see it."""

import enum
from collections.abc import AsyncIterator
from typing import Any, Unpack

from typing_extensions import Buffer

from wshub.core.config import DeliveryOptions
from wshub.core.event_handler import EventHandler
from wshub.core.queued import Queued
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead
from wshub.protocol.message import Message

class ConnectionState(enum.Enum):
    """Where a connection is in its life (RFC 6455 sections 4.1 and 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3

class Connection(AsyncIterator[Message]):
    """One WebSocket connection of a hub.

    Every method may be called from any thread; another thread than the hub's hands the call over to the loop. The
    coroutines are excepted: ``drain``, ``receive`` and ``wait_closed`` are for tasks of that loop. Messages leave in
    the order of the calls. Nothing that sends ever waits: it queues.

    ``send`` and its like, ``close``, ``join`` and ``leave`` are no coroutines: call them without ``await``. An
    ``await`` on what they return is allowed and does nothing. To wait, await ``drain`` or ``wait_closed``.
    """

    @property
    def id(self) -> int:
        """The number of the connection, from 1 on. A hub does not use a number twice."""
    @property
    def hub(self) -> Any:  # a Hub: its module imports this one
        """The hub of the connection."""
    @property
    def state(self) -> ConnectionState:
        """The ConnectionState."""
    @property
    def handler(self) -> EventHandler:
        """The EventHandler of this connection."""
    @property
    def request(self) -> RequestHead | None:
        """The request of the opening handshake, or None for a connection without one."""
    @property
    def compression(self) -> PermessageDeflate | None:
        """The negotiated compression, or None."""
    subprotocol: str | None
    """The chosen subprotocol, or None. Change it only before the handshake is answered."""
    forwarded_address: tuple[str, int] | None
    """The client's address according to a trusted proxy, or None."""
    path_params: dict[str, Any] | None
    """The parameters that the route found in the path, or None."""
    @property
    def remote_address(self) -> tuple[Any, ...] | None:
        """The client's address as a pair of host and port, or None where it has none (a Unix socket).

        It is a pair for IPv6 too; a link-local address has no zone. Behind a trusted proxy it is the address that the
        proxy saw, with 0 for the port. It stays after the end. It is None before the opening.
        """
    @property
    def path(self) -> str:
        """The percent-decoded path that the client asked for."""
    @property
    def headers(self) -> Headers | None:
        """The header fields of the client's request, or None for a connection without one."""
    @property
    def close_code(self) -> int | None:
        """The code that ``on_close`` is given, or None while it is not known."""
    @property
    def close_reason(self) -> str | None:
        """The reason that ``on_close`` is given, or None while it is not known."""
    @property
    def buffered(self) -> int:
        """Octets that are queued and not yet taken by the kernel, as ``max_send_buffer`` counts them.

        With TLS, and wherever the reactor has not the connection, a transport takes them in the kernel's place: up to
        64 KB more may wait there, and then a message or 16 KB of short ones. Under another ASGI server it is the server
        that takes them.
        """
    @property
    def rooms(self) -> frozenset[str]:
        """The names of the rooms that the connection is in; once it is closing, of those it was in until then."""
    @property
    def metadata(self) -> dict[Any, Any]:
        """A dict for whatever the application wants to keep with the connection."""
    @property
    def last_ping_time(self) -> float:
        """The time of the last ping to the client, in seconds of the hub's clock. 0 before the first."""
    @property
    def last_pong_time(self) -> float:
        """The time of the last pong from the client, in seconds of the hub's clock. 0 before the first."""
    def set_metadata(self, key: Any, value: Any) -> None:
        """Keeps ``value`` under ``key`` in ``metadata``."""
    def get_metadata(self, key: Any, default: Any = None) -> Any:
        """What ``metadata`` has under ``key``, or ``default``."""
    def in_room(self, name: str) -> bool:
        """Whether the connection is in that room."""
    def join(self, name: str) -> Queued:
        """Enters a room. Being in it already is fine.

        Raises:
            ConnectionClosed: the connection is closing.
            TypeError: ``name`` is no str.
        """
    def leave(self, name: str) -> Queued:
        """Leaves a room. Not being in it is fine. Raises TypeError if ``name`` is no str."""
    def send(
        self,
        message: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queues a message: a str as text, bytes or another buffer as binary, a Message as it is, without a copy.

        It is no coroutine, and an ``await`` on its result does nothing. ``await connection.drain()`` waits.

        Args:
            message: a str, bytes or another buffer, or a Message.
            compress: False sends it plain; True compresses it also under the threshold of the CompressionConfig,
                which decides otherwise. It is plain in any event where compression was not negotiated, or gains
                nothing.
            slow_consumer: what to do if ``max_send_buffer`` octets wait already; None is as the hub is configured:
                ``"close"`` the connection with 1013; ``"drop_newest"``, which is this message; ``"drop_oldest"`` of
                those that wait; or ``"latest"``, which is the same, but while some wait a message first of all takes
                the place of the one that has its key. No message that was sent with ``"close"`` is ever dropped for
                another, nor replaced: where too many of these wait it is the new one that is dropped.
            key: with ``"latest"``, a str that says what the message is the latest of, such as a price or a position.
                It is another key in a message to this connection alone than in one to a room, or to everybody. While
                messages under some thousand other keys wait behind it, a message may stay where it is instead of being
                replaced. Send all messages of a key with ``"latest"``: a newer one may overtake one sent otherwise.

        Raises:
            ConnectionClosed: the connection is closing or closed; its ``code`` and ``reason`` say how.
            TypeError: ``message`` is none of these.
            InvalidMessageError: it is a str with a lone surrogate, or a buffer that is not contiguous.
            MisuseError: another ``slow_consumer``, or a key that is no str.
        """
    def send_text(
        self,
        text: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queues a text message; ``text`` is a str, or UTF-8 octets. Raises as ``send`` does."""
    def send_binary(
        self,
        data: Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queues a binary message; ``data`` is any object with a contiguous buffer. Raises as ``send`` does."""
    def send_json(
        self,
        value: Any,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queues ``value`` as JSON in a text message. Raises as ``send`` and ``json.dumps`` do."""
    def send_ping(self, payload: str | Buffer = b"") -> Queued:
        """Queues a ping of at most 125 octets; ``on_pong`` sees the answer. Raises as ``send`` does."""
    def send_pong(self, payload: str | Buffer = b"") -> Queued:
        """Queues a pong that answers nothing (RFC 6455 section 5.5.3); pings are answered by the hub."""
    def close(self, code: int = 1000, reason: str | Buffer = "") -> Queued:
        """Begins the closing handshake. What is queued leaves before it. Closing again does nothing.

        Args:
            code: 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: at most 123 octets of UTF-8, for the peer's eyes.

        Raises:
            InvalidMessageError: another code, or a longer reason.
            TypeError: ``reason`` is neither str nor bytes.

        Before the opening, the handshake still succeeds, so that the client gets the code and the reason. The close
        frame comes right behind the answer. Neither ``on_open`` nor ``on_close`` is called.
        """
    async def drain(self) -> None:
        """Waits until everything that is queued now has been taken by the kernel, or dropped as ``slow_consumer`` says.

        It does not wait for what is queued meanwhile. Where it is a transport that takes in the kernel's place, as for
        ``buffered``, it waits until that asks for no pause any more.

        Raises:
            ConnectionClosed: the connection is closing already; or it has ended before all had left, or was closed
                because too much waited.
        """
    async def wait_closed(self) -> None:
        """Waits until the connection is closed and gone, or its handshake has failed."""
    async def receive(self, timeout: float | None = None) -> Message:
        """Waits for the next message and returns it.

        It may be cancelled at any time: no message is lost.

        Args:
            timeout: seconds to wait at the most; None waits as long as it takes, 0 only looks.

        Raises:
            TimeoutError: nothing came in time.
            ConnectionClosed: the connection has ended, ConnectionLost if not in the ordinary way or before it opened.
            MisuseError: messages go to ``on_message``, another task is in ``receive`` already, or ``timeout`` is
                no number of seconds.
        """
    def __aiter__(self) -> Connection: ...
    async def __anext__(self) -> Message: ...
