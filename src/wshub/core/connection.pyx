# cython: language_level=3
"""One WebSocket connection, as applications see it."""

from libc.stdint cimport int64_t, uint8_t

from wshub.core.delivery_options cimport CLOSE_CONNECTION, INHERITED, Delivery, resolve_delivery_options
from wshub.core.closing cimport begin_closing, check_open, close_before_opening, closed_error
from wshub.core.conflation_keys cimport PRIVATE_KEYS, check_conflation_key, intern_key
from wshub.core.connection_state cimport (
    IS_CLOSING,
    IS_CLOSED,
    IS_CONNECTING,
    IS_OPEN,
    hand_over,
    is_other_thread,
)
from wshub.core.inbox cimport InboxConnection
from wshub.core.keepalive cimport note_ping
from wshub.core.queued cimport QUEUED
from wshub.core.rooms cimport join_room, leave_room, names_of_rooms, room_name, set_user, user_name, user_of
from wshub.core.sending cimport add_drain_waiter, queue, queue_alone
from wshub.core.slow_consumers cimport fail_slow_consumer
from wshub.links.link cimport queue_charge
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_release
from wshub.protocol.json_text cimport encode_json
from wshub.protocol.message cimport (
    Message,
    frame_from_payload,
    frame_with_metadata_from_data,
    message_from_frame,
)
from wshub.protocol.opcodes cimport (
    MAX_CONTROL_PAYLOAD,
    PING_OPCODE,
    PONG_OPCODE,
    TEXT_OPCODE,
)

import enum
import logging
from functools import partial

from wshub.errors import ConnectionClosed, InvalidMessageError
from wshub.protocol.close_code import encode_close_payload

logger = logging.getLogger("wshub.server")


class ConnectionState(enum.Enum):
    """The state of a connection (RFC 6455 sections 4.1 and 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


cdef tuple STATES = tuple(ConnectionState)

cdef enum:
    # Rooms, and characters of a path or of a room's name, in the repr of a connection: it stands in log lines.
    SHOWN_ROOMS = 3
    SHOWN_CHARACTERS = 80


cdef str shortened(str text):
    """Return text from a client for a log line: quoted, so that it stays on that line, and not too long."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


cdef class Connection(InboxConnection):
    """One WebSocket connection of a hub.

    You may call its methods from any thread. A call from another thread than the hub's is handed over to the loop. Only
    the coroutines, such as ``drain`` and ``receive``, need a task of that loop.

    The methods that send, ``close``, ``join`` and ``leave`` are ordinary functions that queue and return at once. Call
    them without ``await``; an ``await`` on their result does nothing. Messages leave in the order of the calls. To
    wait, await ``wait_writable``, ``drain`` or ``wait_closed``.

    A call that needs an open connection raises ``ConnectionClosed`` once the client has left. A handler need not catch
    it: the handler ends quietly, without a traceback in the log.
    """

    # Properties

    @property
    def state(self):
        """The ConnectionState."""
        return STATES[self.status]

    @property
    def handler(self):
        """The EventHandler of this connection."""
        return self.handlers.handler

    @property
    def remote_address(self):
        """The client's address as a pair of host and port, or None for a Unix socket.

        It is a pair for IPv6 too, without the zone of a link-local address. Behind a trusted proxy it is the address
        that the proxy reports, with port 0. It is None before the opening, and stays after the end.
        """
        if self.forwarded_address is not None:
            return self.forwarded_address
        return self.link.peer_name() if self.link is not None else None

    @property
    def path(self):
        """The percent-decoded path of the client's request."""
        return self.request.path if self.request is not None else ""

    @property
    def headers(self):
        """The header fields of the client's request, or None for a connection without one."""
        return self.request.headers if self.request is not None else None

    def getpeercert(self, binary_form=False):
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
        if self.request is None or self.status == IS_CLOSED:
            return None
        return self.request.getpeercert(binary_form)

    @property
    def close_code(self):
        """The code that is passed to ``on_close``, or None until it is known."""
        return self.code if self.code else None

    @property
    def close_reason(self):
        """The reason that is passed to ``on_close``, or None until it is known."""
        return self.reason if self.code else None

    @property
    def buffered(self):
        """The bytes in the send queue that the kernel has not taken yet, as ``max_send_buffer`` counts them.

        Wherever the reactor does not carry the connection, a transport takes the bytes instead of the kernel. It may
        hold up to 64 KB more, and behind them one message or 16 KB of short ones. Under another ASGI server, the server
        takes the bytes.
        """
        return queue_charge(&self.link.queue) if self.link is not None else 0

    @property
    def rooms(self):
        """The names of the connection's rooms. Once it is closing, these are the rooms that it has left."""
        return names_of_rooms(self)

    @property
    def user(self):
        """The name of the connection's user: a str, or None if it is not known.

        ``Hub.send_to_user`` and the other methods about users reach all connections of a user, on every node. An empty
        name counts as None. ``on_upgrade`` sets it by the key ``"user"`` of its mapping, if the value is a str.

        A closing connection keeps its user.

        Raises:
            TypeError: the user is set to something else than a str or None.
        """
        return user_of(self)

    @user.setter
    def user(self, user):
        cdef str name = user_name(user)
        if is_other_thread(self):
            hand_over(self, partial(setattr, self, "user", name))
        else:
            set_user(self, name)

    @property
    def metadata(self):
        """A dict for your own data about the connection."""
        if self.user_metadata is None:
            self.user_metadata = {}
        return self.user_metadata

    def set_metadata(self, key, value):
        """Set ``metadata[key]`` to ``value``."""
        self.metadata[key] = value

    def get_metadata(self, key, default=None):
        """Return ``metadata[key]``, or ``default`` if there is no such key."""
        return default if self.user_metadata is None else self.user_metadata.get(key, default)

    @property
    def latency_ms(self):
        """The round-trip time of the last answered ping, in milliseconds, or None before the first answer.

        The hub sends a ping every ``ping_interval_ms``, and ``send_ping`` sends one at once. It stays None under
        another ASGI server, which sends its own pings.
        """
        return (self.round_trip - 1) / 1000 if self.round_trip else None

    def __repr__(self):
        """Show the id, the state, the client's address, the path and the rooms. Queries and messages stay hidden."""
        shown = [f"<Connection {self.id} {STATES[self.status].name.lower()}"]
        address = self.remote_address
        if address is not None:
            host, port = address[:2]
            shown.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        if self.request is not None:
            shown.append(shortened(self.path))
        rooms = sorted(self.rooms)
        if rooms:
            more = f" and {len(rooms) - SHOWN_ROOMS} more" if len(rooms) > SHOWN_ROOMS else ""
            shown.append(f"rooms: {', '.join(map(shortened, rooms[:SHOWN_ROOMS]))}{more}")
        return f"{' '.join(shown)}>"

    # Rooms

    def in_room(self, name):
        """Return whether the connection is in that room."""
        cdef str room = room_name(name)
        return self.room_table is not None and room in self.room_table

    def join(self, name, *, info=None):
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
        cdef str room = room_name(name)
        if info is not None:
            info = self.hub._copy_presence_info(room, info)
        if is_other_thread(self):
            hand_over(self, partial(self._quietly, partial(self.join, room, info=info)))
            return QUEUED
        if self.hub.histories is not None and self.status < IS_CLOSING:
            if self.hub.histories.rejoined(self.connection_id, room, info):
                return QUEUED
        if not join_room(self, room):
            raise closed_error(self)
        if info is not None:
            self.hub._set_presence_info(room, self.connection_id, info)
        return QUEUED

    def leave(self, name):
        """Leave a room. Does nothing if the connection is not in it. Raises TypeError if ``name`` is not a str."""
        cdef str room = room_name(name)
        if is_other_thread(self):
            hand_over(self, partial(self.leave, room))
            return QUEUED
        if self.hub.histories is not None:
            self.hub.histories.left(self.connection_id, room)
        leave_room(self, room)
        return QUEUED

    async def recover(self, name, position=None, *, limit=10_000):
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
        cdef str room = room_name(name)
        if self.status >= IS_CLOSING:
            raise closed_error(self)
        return await self.hub._recover(self, room, position, limit)

    # Sending

    def send(self, message, *, compress=None, slow_consumer=None, key=None):
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
        cdef FrameBuffer *frame
        cdef Delivery delivery
        check_conflation_key(key)
        resolve_delivery_options(&delivery, &self.hub.delivery_defaults, compress, slow_consumer, INHERITED)
        if is_other_thread(self):
            check_open(self)
            later = partial(self.send, Message(message), compress=compress, slow_consumer=slow_consumer, key=key)
            hand_over(self, partial(self._quietly, later))
            return QUEUED
        if self.status != IS_OPEN:
            check_open(self)
        frame = frame_with_metadata_from_data(
            message, intern_key(self.hub.conflation_keys, PRIVATE_KEYS, key), NULL, delivery.policy != CLOSE_CONNECTION
        )
        if queue_alone(self, frame, &delivery) < 0:
            fail_slow_consumer(self)
        frame_release(frame)
        if self.link.without_pings:
            self.link.send_from_task()
        return QUEUED

    def send_text(self, text, *, compress=None, slow_consumer=None, key=None):
        """Queue a text message. ``text`` is a str, or bytes of UTF-8. Raises as ``send`` does."""
        if isinstance(text, Message):
            (<Message>text).check()
            if (<Message>text).frame.opcode == TEXT_OPCODE:
                return self.send(text, compress=compress, slow_consumer=slow_consumer, key=key)
        if not isinstance(text, str):
            if isinstance(text, Message):
                raise TypeError("send_text() takes a str or a text message, not a binary message")
            try:
                text = bytes(Message(text)).decode()
            except TypeError:
                raise TypeError(f"send_text() takes a str, not {type(text).__name__}") from None
            except UnicodeDecodeError as error:
                raise InvalidMessageError(f"a text message must be UTF-8: {error}") from None
        return self.send(text, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_binary(self, data, *, compress=None, slow_consumer=None, key=None):
        """Queue a binary message. ``data`` is any object with a contiguous buffer. Raises as ``send`` does."""
        if isinstance(data, str):
            raise TypeError("send_binary() takes bytes, not str: encode it, or call send_text()")
        return self.send(data, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_bytes(self, data, *, compress=None, slow_consumer=None, key=None):
        """Do what ``send_binary`` does, under the name that Starlette has for it."""
        return self.send_binary(data, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_json(self, value, *, compress=None, slow_consumer=None, key=None):
        """Queue ``value`` as JSON in a text message.

        ``orjson`` or ``msgspec`` encodes it if one of them is installed, which is faster. The client receives the same
        value in each case.

        Raises:
            TypeError: ``json.dumps`` cannot encode the value.
            InvalidMessageError: the value contains NaN, infinity or itself.
            ConnectionClosed, MisuseError: as ``send``.
        """
        message = message_from_frame(frame_from_payload(encode_json(value, "send_json"), TEXT_OPCODE))
        return self.send(message, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_ping(self, payload=b""):
        """Queue a ping of at most 125 bytes.

        The answer goes to ``on_pong``, and sets ``latency_ms``. Raises as ``send`` does.
        """
        return self.send_control(payload, PING_OPCODE)

    def send_pong(self, payload=b""):
        """Queue an unsolicited pong (RFC 6455 section 5.5.3). The hub answers pings by itself."""
        return self.send_control(payload, PONG_OPCODE)

    cdef object send_control(self, object payload, uint8_t opcode):
        cdef FrameBuffer *frame
        cdef int queued
        check_open(self)
        if is_other_thread(self):
            method = self.send_ping if opcode == PING_OPCODE else self.send_pong
            hand_over(self, partial(self._quietly, partial(method, payload)))
            return QUEUED
        frame = frame_from_payload(payload, opcode)
        try:
            if frame.length > MAX_CONTROL_PAYLOAD:
                method = "send_ping" if opcode == PING_OPCODE else "send_pong"
                raise InvalidMessageError(f"{method}(): payload must have at most 125 bytes, not {frame.length}")
            queued = queue(self, frame, self.hub.delivery_defaults.policy)
            if queued < 0:
                fail_slow_consumer(self)
            elif queued and opcode == PING_OPCODE and not self.awaits_pong:
                # While an earlier ping is unanswered, the next pong answers that one.
                note_ping(self, self.last_ping_time)
        finally:
            frame_release(frame)
        return QUEUED

    def close(self, code=1000, reason=""):
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
        payload = encode_close_payload(code, reason)
        if is_other_thread(self):
            hand_over(self, partial(self.close, code, reason))
        elif self.status == IS_OPEN:
            begin_closing(self, payload)
        elif self.status == IS_CONNECTING:
            close_before_opening(self, payload)
        return QUEUED

    async def drain(self):
        """Wait until the kernel has taken all bytes that are queued now, or ``slow_consumer`` has dropped them.

        It does not wait for later messages. Where a transport takes the bytes instead of the kernel, as described for
        ``buffered``, it waits until the transport is below its limit again.

        Raises:
            ConnectionClosed: the connection is closing already, it ended before all bytes had left, or it was closed
                because its queue was full.
        """
        check_open(self)
        if not self.link.has_drained():
            await self._bytes_left(self.link.end_of_queue())

    async def wait_writable(self):
        """Wait until the send queue has space: until at most half of ``max_send_buffer`` is queued.

        Await it before each ``send`` to send no faster than the client reads. Then the queue does not become full, and
        ``slow_consumer`` is not applied. Messages from elsewhere, such as broadcasts, still use the same queue.

        It returns at once while there is space. Where a transport or another server takes the bytes instead of the
        kernel, only what it has not taken counts, as described for ``buffered``.

        Raises:
            ConnectionClosed: the connection is closing or closed.
        """
        check_open(self)
        while queue_charge(&self.link.queue) > self.hub.max_send_buffer // 2:
            await self._bytes_left(
                max(self.link.end_of_queue() - <int64_t>(self.hub.max_send_buffer // 2), self.link.bytes_written + 1)
            )
            check_open(self)

    async def _bytes_left(self, end):
        """Wait until the link's ``bytes_written`` has reached ``end``, or the queue is empty."""
        future = self.hub.loop.create_future()
        add_drain_waiter(self, future, end)
        try:
            await future
        finally:
            if self.drain_waiters is not None:
                self.drain_waiters.pop(future, None)
                if not self.drain_waiters:
                    self.drain_waiters = None

    async def wait_closed(self):
        """Wait until the connection is closed or its handshake has failed."""
        if self.status == IS_CLOSED:
            return
        future = self.hub.loop.create_future()
        if self.waiters is None:
            self.waiters = {}
        self.waiters[future] = None
        try:
            await future
        finally:
            if self.waiters is not None:
                self.waiters.pop(future, None)
                if not self.waiters:
                    self.waiters = None

    def _quietly(self, call):
        """Make a call that another thread handed over. That thread cannot get its ConnectionClosed any more."""
        try:
            call()
        except ConnectionClosed:
            logger.debug("a call from another thread came too late for %r", self)
