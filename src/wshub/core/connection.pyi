"""One WebSocket connection, as applications see it."""

import enum
from collections.abc import AsyncIterator
from typing import Any, Literal, Unpack, overload

from typing_extensions import Buffer

from wshub.brokers.interface import Position
from wshub.core.config import DeliveryOptions
from wshub.core.history_types import Recovery
from wshub.core.queued import Queued
from wshub.protocol.compression.negotiation import PermessageDeflate
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead
from wshub.protocol.message import Message

class ConnectionState(enum.Enum):
    """The state of a connection (RFC 6455 sections 4.1 and 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3

class Connection(AsyncIterator[Message]):
    """One WebSocket connection of a hub.

    You may call its methods from any thread. A call from another thread than the hub's is handed over to the loop. Only
    the coroutines, such as ``drain`` and ``receive``, need a task of that loop.

    The methods that send, ``close``, ``join`` and ``leave`` are ordinary functions that queue and return at once. Call
    them without ``await``; an ``await`` on their result does nothing. Messages leave in the order of the calls. To
    wait, await ``wait_writable``, ``drain`` or ``wait_closed``.

    A call that needs an open connection raises ``ConnectionClosed`` once the client has left. A handler need not catch
    it: the handler ends quietly, without a traceback in the log.
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
    def handler(self) -> Any:  # an EventHandler: its module imports this one
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
        """The client's address as a pair of host and port, or None for a Unix socket.

        It is a pair for IPv6 too, without the zone of a link-local address. Behind a trusted proxy it is the address
        that the proxy reports, with port 0. It is None before the opening, and stays after the end.
        """
    @property
    def path(self) -> str:
        """The percent-decoded path of the client's request."""
    @property
    def headers(self) -> Headers | None:
        """The header fields of the client's request, or None for a connection without one."""
    @overload
    def getpeercert(self, binary_form: Literal[False] = False) -> dict[str, Any] | None:
        """Return the client's certificate, as ``ssl.SSLObject.getpeercert()`` does.

        It has been verified. The result is None without TLS, if the client has sent no certificate, and once the
        connection has ended: ``on_close`` comes too late. The server asks clients for one if ``verify_mode`` of its
        SSLContext is ``CERT_OPTIONAL`` or ``CERT_REQUIRED``.

        The connection does not keep the certificate. Each call asks OpenSSL, and makes a new dict.

        Args:
            binary_form: True returns the certificate in DER, as bytes. False returns a dict with its ``subject``,
                ``subjectAltName``, ``serialNumber`` and more.

        Raises:
            ValueError: another thread has called while the client renews its keys. Call again.
        """
    @overload
    def getpeercert(self, binary_form: Literal[True]) -> bytes | None:
        """Return the client's certificate, as ``ssl.SSLObject.getpeercert()`` does.

        It has been verified. The result is None without TLS, if the client has sent no certificate, and once the
        connection has ended: ``on_close`` comes too late. The server asks clients for one if ``verify_mode`` of its
        SSLContext is ``CERT_OPTIONAL`` or ``CERT_REQUIRED``.

        The connection does not keep the certificate. Each call asks OpenSSL, and makes a new dict.

        Args:
            binary_form: True returns the certificate in DER, as bytes. False returns a dict with its ``subject``,
                ``subjectAltName``, ``serialNumber`` and more.

        Raises:
            ValueError: another thread has called while the client renews its keys. Call again.
        """
    @overload
    def getpeercert(self, binary_form: bool) -> dict[str, Any] | bytes | None:
        """Return the client's certificate, as ``ssl.SSLObject.getpeercert()`` does.

        It has been verified. The result is None without TLS, if the client has sent no certificate, and once the
        connection has ended: ``on_close`` comes too late. The server asks clients for one if ``verify_mode`` of its
        SSLContext is ``CERT_OPTIONAL`` or ``CERT_REQUIRED``.

        The connection does not keep the certificate. Each call asks OpenSSL, and makes a new dict.

        Args:
            binary_form: True returns the certificate in DER, as bytes. False returns a dict with its ``subject``,
                ``subjectAltName``, ``serialNumber`` and more.

        Raises:
            ValueError: another thread has called while the client renews its keys. Call again.
        """
    @property
    def close_code(self) -> int | None:
        """The code that is passed to ``on_close``, or None until it is known."""
    @property
    def close_reason(self) -> str | None:
        """The reason that is passed to ``on_close``, or None until it is known."""
    @property
    def buffered(self) -> int:
        """The bytes in the send queue that the kernel has not taken yet, as ``max_send_buffer`` counts them.

        Wherever the reactor does not carry the connection, a transport takes the bytes instead of the kernel. It may
        hold up to 64 KB more, and behind them one message or 16 KB of short ones. Under another ASGI server, the server
        takes the bytes.
        """
    @property
    def rooms(self) -> frozenset[str]:
        """The names of the connection's rooms. Once it is closing, these are the rooms that it has left."""
    @property
    def user(self) -> str | None:
        """The name of the connection's user: a str, or None if it is not known.

        ``Hub.send_to_user`` and the other methods about users reach all connections of a user, on every node. An empty
        name counts as None. ``on_upgrade`` sets it by the key ``"user"`` of its mapping, if the value is a str.

        A closing connection keeps its user.

        Raises:
            TypeError: the user is set to something else than a str or None.
        """
    @user.setter
    def user(self, user: str | None) -> None:
        """The name of the connection's user: a str, or None if it is not known.

        ``Hub.send_to_user`` and the other methods about users reach all connections of a user, on every node. An empty
        name counts as None. ``on_upgrade`` sets it by the key ``"user"`` of its mapping, if the value is a str.

        A closing connection keeps its user.

        Raises:
            TypeError: the user is set to something else than a str or None.
        """
    @property
    def metadata(self) -> dict[Any, Any]:
        """A dict for your own data about the connection."""
    @property
    def last_ping_time(self) -> float:
        """The time of the last ping to the client, in seconds of the hub's clock. 0 before the first."""
    @property
    def last_pong_time(self) -> float:
        """The time of the last pong from the client, in seconds of the hub's clock. 0 before the first."""
    @property
    def latency_ms(self) -> float | None:
        """The round-trip time of the last answered ping, in milliseconds, or None before the first answer.

        The hub sends a ping every ``ping_interval_ms``, and ``send_ping`` sends one at once. It stays None under
        another ASGI server, which sends its own pings.
        """
    def set_metadata(self, key: Any, value: Any) -> None:
        """Set ``metadata[key]`` to ``value``."""
    def get_metadata(self, key: Any, default: Any = None) -> Any:
        """Return ``metadata[key]``, or ``default`` if there is no such key."""
    def in_room(self, name: str) -> bool:
        """Return whether the connection is in that room."""
    def join(self, name: str, *, info: Any = None) -> Queued:
        """Join a room. Does nothing if the connection is in the room already.

        Args:
            name: of the room.
            info: what others see of the member in a room with presence: anything that JSON can hold, in at most 1 KiB.
                A later call replaces it.

        Raises:
            ConnectionClosed: the connection is closing.
            TypeError: ``name`` is not a str, or the info is no JSON.
            InvalidMessageError: the info is too large.
            MisuseError: there is an info, and the room has no presence.
        """
    def leave(self, name: str) -> Queued:
        """Leave a room. Does nothing if the connection is not in it. Raises TypeError if ``name`` is not a str."""
    async def recover(self, name: str, position: Position | None = None, *, limit: int = 10_000) -> Recovery:
        """Join a room with history, and send the client what it has missed, in order.

        The client gets every message behind the position once, and then each new one. If that cannot be, it gets none
        of the missed messages, or only the first of them, and the result has a gap. It is a member then all the same.

        The messages are sent in pieces, at the pace of the client. If the connection is to leave the room meanwhile, by
        ``leave`` or ``leave_user``, no more is sent. The result has the position of the last message that was.

        Args:
            name: of the room.
            position: of the last message that the client has, as the client says. None for a client that has none: it
                only joins, and the result tells the position to begin with.
            limit: maximum number of messages to send. If the client has missed more, the gap is ``too_much``.

        Returns:
            A ``Recovery``: the position, the number of messages sent, and the gap.

        Raises:
            ConnectionClosed: the connection is closing.
            MisuseError: the room has no history, or loses it meanwhile; or the connection recovers in the room already.
            BrokerUnavailable: the history could not be read. The connection is no member.
            TypeError: ``name`` is not a str, or ``position`` is no Position of an int and a str.
        """
    def send(
        self,
        message: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queue a message: a str as text, bytes or another buffer as binary, a Message as it is, without a copy.

        It returns at once. To wait until the message has left, use ``await connection.drain()``.

        Args:
            message: a str, bytes or another buffer, or a Message.
            compress: False sends the message plain. True compresses it even if it is shorter than the threshold of the
                CompressionConfig. None applies the threshold. A message is always plain if compression was not
                negotiated or does not make it shorter.
            slow_consumer: what to do if the queue has reached ``max_send_buffer``. None does what the hub is configured
                to do.
                ``"close"`` closes the connection with 1013.
                ``"drop_newest"`` drops this message.
                ``"drop_oldest"`` drops queued messages, the oldest first.
                ``"latest"`` does so too. Even if the queue is not full, the message replaces a queued one with its key.
                A message that was sent with ``"close"`` is never dropped or replaced for another one. If such messages
                fill the queue, the new message is dropped.
            key: with ``"latest"``, a str that names a value of which only the latest matters, such as a price. The keys
                of ``send``, of each room and of broadcasts to all connections are separate. Send all messages of a
                key with ``"latest"``; otherwise a newer message may overtake an older one. A message may stay in the
                queue unreplaced if messages with some thousand other keys wait behind it.

        Raises:
            ConnectionClosed: the connection is closing or closed; its ``code`` and ``reason`` say how.
            TypeError: ``message`` has another type.
            InvalidMessageError: ``message`` is a str with a lone surrogate, or a buffer that is not contiguous.
            MisuseError: ``slow_consumer`` is another value, or ``key`` is not a str.
        """
    def send_text(
        self,
        text: str | Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queue a text message. ``text`` is a str, or bytes of UTF-8. Raises as ``send`` does."""
    def send_binary(
        self,
        data: Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queue a binary message. ``data`` is any object with a contiguous buffer. Raises as ``send`` does."""
    def send_bytes(
        self,
        data: Buffer | Message,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Do what ``send_binary`` does, under the name that Starlette has for it."""
    def send_json(
        self,
        value: Any,
        **options: Unpack[DeliveryOptions],
    ) -> Queued:
        """Queue ``value`` as JSON in a text message.

        ``orjson`` or ``msgspec`` encodes it if one of them is installed, which is faster. The client receives the same
        value in each case.

        Raises:
            TypeError: ``json.dumps`` cannot encode the value.
            InvalidMessageError: the value contains NaN, infinity or itself.
            ConnectionClosed, MisuseError: as ``send``.
        """
    def send_ping(self, payload: str | Buffer = b"") -> Queued:
        """Queue a ping of at most 125 bytes.

        The answer goes to ``on_pong``, and sets ``latency_ms``. Raises as ``send`` does.
        """
    def send_pong(self, payload: str | Buffer = b"") -> Queued:
        """Queue an unsolicited pong (RFC 6455 section 5.5.3). The hub answers pings by itself."""
    def close(self, code: int = 1000, reason: str | Buffer = "") -> Queued:
        """Begin the closing handshake. The queued messages leave first. Does nothing if the connection is closing.

        Before the opening, the handshake still succeeds, so that the client gets the code and the reason. The close
        frame follows the answer. Neither ``on_open`` nor ``on_close`` is called.

        Args:
            code: 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: at most 123 bytes of UTF-8, for the peer.

        Raises:
            InvalidMessageError: the code is another one, or the reason is longer.
            TypeError: ``reason`` is neither str nor bytes.
        """
    async def drain(self) -> None:
        """Wait until the kernel has taken all bytes that are queued now, or ``slow_consumer`` has dropped them.

        It does not wait for later messages. Where a transport takes the bytes instead of the kernel, as described for
        ``buffered``, it waits until the transport is below its limit again.

        Raises:
            ConnectionClosed: the connection is closing already, it ended before all bytes had left, or it was closed
                because its queue was full.
        """
    async def wait_writable(self) -> None:
        """Wait until the send queue has space: until at most half of ``max_send_buffer`` is queued.

        Await it before each ``send`` to send no faster than the client reads. Then the queue does not become full, and
        ``slow_consumer`` is not applied. Messages from elsewhere, such as broadcasts, still use the same queue.

        It returns at once while there is space. Where a transport or another server takes the bytes instead of the
        kernel, only what it has not taken counts, as described for ``buffered``.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
    async def wait_closed(self) -> None:
        """Wait until the connection is closed or its handshake has failed."""
    async def receive(self, timeout: float | None = None) -> Message:
        """Wait for the next message and return it. No message is lost if you cancel the wait.

        Args:
            timeout: the maximum number of seconds to wait. None waits forever. 0 does not wait.

        Raises:
            TimeoutError: no message arrived in time.
            ConnectionClosed: the connection has ended. It is ConnectionLost if the end was not an ordinary one, or came
                before the opening.
            MisuseError: messages go to ``on_message``, another task is in ``receive`` already, or ``timeout`` is
                not a number of seconds.
        """
    async def receive_text(self, timeout: float | None = None) -> str:
        """Wait for the next message, and return its text as a str.

        Raises:
            UnexpectedMessageError: the message is binary. If a handler does not catch the error, the hub closes the
                connection with 1003.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
    async def receive_bytes(self, timeout: float | None = None) -> bytes:
        """Wait for the next message, and return its payload as bytes.

        Raises:
            UnexpectedMessageError: the message is text. If a handler does not catch the error, the hub closes the
                connection with 1003.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
    async def receive_json(self, timeout: float | None = None) -> Any:
        """Wait for the next message, and return the value of its JSON text.

        Raises:
            UnexpectedMessageError: the message is binary, or its text is no JSON. If a handler does not catch the
                error, the hub closes the connection with 1003 or 1007.
            TimeoutError, ConnectionClosed, MisuseError: as ``receive``.
        """
    def iter_json(self) -> AsyncIterator[Any]:
        """Return an iterator for ``async for`` that gives the value of each message, which is JSON text::

            async for value in connection.iter_json():
                connection.send_json({"received": value})

        It ends and raises as ``async for message in connection`` does, and as ``receive_json`` for a message that is
        no JSON.
        """
    def __aiter__(self) -> Connection: ...
    async def __anext__(self) -> Message: ...
