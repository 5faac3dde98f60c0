# cython: language_level=3
"""One WebSocket connection, as applications see it."""

from libc.math cimport INFINITY, NAN
from libc.stdint cimport uint8_t

from wshub.core.hub_state cimport (
    CLOSE_CONNECTION,
    INHERITED,
    PRIVATE_KEYS,
    QUEUED,
    Delivery,
    Room,
    check_key,
    room_name,
)
from wshub.core.connection_core cimport (
    INBOX_FULL,
    INBOX_KIBIBYTES,
    INBOX_LIMIT,
    IS_CLOSED,
    IS_CLOSING,
    IS_CONNECTING,
    IS_OPEN,
    ConnectionCore,
    inbox_charge,
    is_foreign,
)
from wshub.links.link cimport queue_charge
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_release
from wshub.protocol.message cimport (
    Message,
    frame_from_payload,
    labelled_frame_from_data,
)
from wshub.protocol.opcodes cimport (
    MAX_CONTROL_PAYLOAD,
    PING_OPCODE,
    PONG_OPCODE,
    TEXT_OPCODE,
)

import asyncio
import enum
import json
import logging
from collections import OrderedDict
from functools import partial

from wshub.errors import (
    ConnectionClosed,
    ConnectionLost,
    InvalidMessageError,
    MisuseError,
)
from wshub.protocol.close_code import encode_close_payload

logger = logging.getLogger("wshub.server")


class ConnectionState(enum.Enum):
    """Where a connection is in its life (RFC 6455 sections 4.1 and 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


cdef tuple STATES = tuple(ConnectionState)


cdef object seconds_from(object timeout):
    """A timeout as asyncio takes it: seconds, or None for a wait without an end. Raises MisuseError."""
    cdef double seconds = NAN
    if not isinstance(timeout, bool):
        try:
            seconds = timeout
        except (TypeError, OverflowError):
            pass
    if not seconds >= 0:
        raise MisuseError(f"timeout must be None or a number of seconds that is not negative, not {timeout!r}")
    return seconds if seconds < INFINITY else None


cdef class Connection(ConnectionCore):
    """One WebSocket connection of a hub.

    Every method may be called from any thread; another thread than the hub's hands the call over to the loop. The
    coroutines are excepted: ``drain``, ``receive`` and ``wait_closed`` are for tasks of that loop. Messages leave in
    the order of the calls. Nothing that sends ever waits: it queues.

    ``send`` and its like, ``close``, ``join`` and ``leave`` are no coroutines: call them without ``await``. An
    ``await`` on what they return is allowed and does nothing. To wait, await ``drain`` or ``wait_closed``.
    """

    # What the connection is

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
        """The client's address as a pair of host and port, or None where it has none (a Unix socket).

        It is a pair for IPv6 too; a link-local address has no zone. Behind a trusted proxy it is the address that the
        proxy saw, with 0 for the port. It stays after the end. It is None before the opening.
        """
        if self.forwarded_address is not None:
            return self.forwarded_address
        return self.link.peer_name() if self.link is not None else None

    @property
    def path(self):
        """The percent-decoded path that the client asked for."""
        return self.request.path if self.request is not None else ""

    @property
    def headers(self):
        """The header fields of the client's request, or None for a connection without one."""
        return self.request.headers if self.request is not None else None

    @property
    def close_code(self):
        """The code that ``on_close`` is given, or None while it is not known."""
        return self.code if self.code else None

    @property
    def close_reason(self):
        """The reason that ``on_close`` is given, or None while it is not known."""
        return self.reason if self.code else None

    @property
    def buffered(self):
        """Octets that are queued and not yet taken by the kernel, as ``max_send_buffer`` counts them.

        With TLS, and wherever the reactor has not the connection, a transport takes them in the kernel's place: up to
        64 KB more may wait there, and then a message or 16 KB of short ones. Under another ASGI server it is the server
        that takes them.
        """
        return queue_charge(&self.link.queue) if self.link is not None else 0

    @property
    def rooms(self):
        """The names of the rooms that the connection is in; once it is closing, of those it was in until then."""
        return frozenset(self.room_table) if self.room_table is not None else frozenset()

    @property
    def metadata(self):
        """A dict for whatever the application wants to keep with the connection."""
        if self.user_metadata is None:
            self.user_metadata = {}
        return self.user_metadata

    def set_metadata(self, key, value):
        """Keeps ``value`` under ``key`` in ``metadata``."""
        self.metadata[key] = value

    def get_metadata(self, key, default=None):
        """What ``metadata`` has under ``key``, or ``default``."""
        return default if self.user_metadata is None else self.user_metadata.get(key, default)

    def __repr__(self):
        return f"<Connection {self.id} {STATES[self.status].name.lower()}>"

    # Rooms

    def in_room(self, name):
        """Whether the connection is in that room."""
        cdef str room = room_name(name)
        return self.room_table is not None and room in self.room_table

    def join(self, name):
        """Enters a room. Being in it already is fine.

        Raises:
            ConnectionClosed: the connection is closing.
            TypeError: ``name`` is no str.
        """
        cdef str room = room_name(name)
        if is_foreign(self):
            self.hand_over(partial(self._quietly, partial(self.join, room)))
            return QUEUED
        self.join_room(room)
        return QUEUED

    def leave(self, name):
        """Leaves a room. Not being in it is fine. Raises TypeError if ``name`` is no str."""
        cdef str room = room_name(name)
        if is_foreign(self):
            self.hand_over(partial(self.leave, room))
            return QUEUED
        self.leave_room(room)
        return QUEUED

    cdef object join_room(self, str name):
        cdef Room room
        if self.status >= IS_CLOSING:
            raise self.closed_error()
        if self.room_table is None:
            self.room_table = {}
        elif name in self.room_table:
            return
        room = self.hub.room_table.get(name)
        if room is None:
            room = self.hub.open_room(name)
        if room.members is room.walked:
            room.members = dict(room.members)
        if self.status >= IS_CLOSING:
            # Code that the garbage collector has run meanwhile has closed it.
            if not room.members:
                del self.hub.room_table[name]
            raise self.closed_error()
        room.members[self.key] = self
        self.hub.window_changes += room.window is not None
        self.room_table[name] = room

    cdef bint leave_room(self, str name) except -1:
        cdef Room room
        if self.room_table is None or self.status >= IS_CLOSING:
            return False
        room = self.room_table.pop(name, None)
        if room is None:
            return False
        del room.members[self.key]
        if room.window is not None:
            self.hub.window_changes += 1
            self.fall_out_of_step(room.window)
        if not room.members:
            del self.hub.room_table[name]
        return True

    # Sending

    def send(self, message, *, compress=None, slow_consumer=None, key=None):
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
        cdef FrameBuffer *frame
        cdef Delivery delivery
        check_key(key)
        self.hub.describe(&delivery, compress, slow_consumer, INHERITED)
        if is_foreign(self):
            self.check_open()
            later = partial(self.send, Message(message), compress=compress, slow_consumer=slow_consumer, key=key)
            self.hand_over(partial(self._quietly, later))
            return QUEUED
        if self.status != IS_OPEN:
            self.check_open()
        frame = labelled_frame_from_data(
            message, self.hub.number_of(PRIVATE_KEYS, key), NULL, delivery.policy != CLOSE_CONNECTION
        )
        if self.queue_alone(frame, &delivery) < 0:
            self.overflow()
        frame_release(frame)
        if self.link.without_pings:
            self.link.send_from_task()
        return QUEUED

    def send_text(self, text, *, compress=None, slow_consumer=None, key=None):
        """Queues a text message; ``text`` is a str, or UTF-8 octets. Raises as ``send`` does."""
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
        """Queues a binary message; ``data`` is any object with a contiguous buffer. Raises as ``send`` does."""
        if isinstance(data, str):
            raise TypeError("send_binary() takes bytes, not str: encode it, or call send_text()")
        return self.send(data, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_json(self, value, *, compress=None, slow_consumer=None, key=None):
        """Queues ``value`` as JSON in a text message. Raises as ``send`` and ``json.dumps`` do."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return self.send(text, compress=compress, slow_consumer=slow_consumer, key=key)

    def send_ping(self, payload=b""):
        """Queues a ping of at most 125 octets; ``on_pong`` sees the answer. Raises as ``send`` does."""
        return self.send_control(payload, PING_OPCODE)

    def send_pong(self, payload=b""):
        """Queues a pong that answers nothing (RFC 6455 section 5.5.3); pings are answered by the hub."""
        return self.send_control(payload, PONG_OPCODE)

    cdef object send_control(self, object payload, uint8_t opcode):
        cdef FrameBuffer *frame
        self.check_open()
        if is_foreign(self):
            method = self.send_ping if opcode == PING_OPCODE else self.send_pong
            self.hand_over(partial(self._quietly, partial(method, payload)))
            return QUEUED
        frame = frame_from_payload(payload, opcode)
        try:
            if frame.length > MAX_CONTROL_PAYLOAD:
                raise InvalidMessageError(f"a ping or pong has at most 125 octets, not {frame.length}")
            if self.queue(frame, self.hub.policy) < 0:
                self.overflow()
        finally:
            frame_release(frame)
        return QUEUED

    def close(self, code=1000, reason=""):
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
        payload = encode_close_payload(code, reason)
        if is_foreign(self):
            self.hand_over(partial(self.close, code, reason))
        elif self.status == IS_OPEN:
            self.begin_closing(payload)
        elif self.status == IS_CONNECTING:
            self.close_before_opening(payload)
        return QUEUED

    async def drain(self):
        """Waits until everything that is queued now has been taken by the kernel, or dropped as ``slow_consumer`` says.

        It does not wait for what is queued meanwhile. Where it is a transport that takes in the kernel's place, as for
        ``buffered``, it waits until that asks for no pause any more.

        Raises:
            ConnectionClosed: the connection is closing already; or it has ended before all had left, or was closed
                because too much waited.
        """
        self.check_open()
        if self.link.has_drained():
            return
        future = self.hub.loop.create_future()
        if self.drain_waiters is None:
            self.drain_waiters = OrderedDict()
        self.drain_waiters[future] = self.link.end_of_queue()
        self.link.notify_when_left(self.link.end_of_queue())
        try:
            await future
        finally:
            if self.drain_waiters is not None:
                self.drain_waiters.pop(future, None)
                if not self.drain_waiters:
                    self.drain_waiters = None

    async def wait_closed(self):
        """Waits until the connection is closed and gone, or its handshake has failed."""
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
        """Makes a call on behalf of another thread, which cannot be told any more that it is too late."""
        try:
            call()
        except ConnectionClosed:
            logger.debug("a call from another thread came too late for %r", self)

    # Receiving

    async def receive(self, timeout=None):
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
        if timeout is None:
            return await self._receive()
        async with asyncio.timeout(seconds_from(timeout)):
            return await self._receive()

    async def _receive(self):
        if self.handlers.on_message is not None:
            raise MisuseError("the messages of this connection go to its on_message handler")
        if not self.receiving:
            self.receiving = True
            if self.status != IS_CLOSED and not self.hub.loop.is_closed():
                # Handlers of pings may run while what is unread is read: from the loop, not from this task.
                self.hub.loop.call_soon(self._unblock, 0)
        while not self.inbox:
            if self.status >= IS_CLOSING and (self.input_ended or self.status == IS_CLOSED):
                raise self.closed_error()
            if self.waiter is not None:
                raise MisuseError(f"{self.receiving_task} is receiving from this connection already")
            self.waiter = self.hub.loop.create_future()
            self.receiving_task = asyncio.current_task()
            try:
                await self.waiter
            except RuntimeError:
                if not self.hub.loop.is_closed():
                    raise
                # The loop of the connection has gone, and this is another one.
                raise self.closed_error() from None
            finally:
                self.waiter = None
                self.receiving_task = None
        message = self.inbox.popleft()
        self.inbox_kibibytes -= inbox_charge(message)
        if not self.blocks & INBOX_FULL or self.status == IS_CLOSED:
            return message
        if len(self.inbox) <= INBOX_LIMIT // 2 and self.inbox_kibibytes <= INBOX_KIBIBYTES // 2:
            self.hub.loop.call_soon(self._unblock, INBOX_FULL)
        return message

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self._receive()
        except ConnectionLost:
            raise
        except ConnectionClosed:
            raise StopAsyncIteration from None
