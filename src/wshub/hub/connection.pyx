# cython: language_level=3
"""One WebSocket connection, from its opening handshake to its end.

The rules of this file. Handlers are called from the loop only, never from within a call of the application's, and
one after another. After every call into Python the state is looked at again: a handler may have closed this
connection, or any other. What comes from the network never raises: it ends in an event, or in a close.

    CONNECTING -> OPEN -> CLOSING -> CLOSED

CLOSING begins with the first close frame of either side, or when either side gives up; from then on the connection is
in no room and takes nothing to send. CLOSED is when the link is gone.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from wshub.links.link cimport Link, Receiver
from wshub.protocol.frame_buffer cimport (
    FrameBuffer,
    frame_payload,
    frame_release,
    frame_seal,
)
from wshub.protocol.message cimport (
    Message,
    frame_from_data,
    frame_from_payload,
    message_from_frame,
)
from wshub.protocol.parser cimport (
    CLOSE,
    FAILURE,
    MESSAGE,
    NEED_DATA,
    PING,
    Event,
    parser_buffer_updated,
    parser_clear,
    parser_get_buffer,
    parser_init,
    parser_next,
    parser_take_control,
    parser_take_message,
)

import asyncio
import enum
import json
import logging
from asyncio.tasks import _enter_task as enter_task
from asyncio.tasks import _leave_task as leave_task
from collections import deque
from collections.abc import Awaitable
from contextvars import copy_context
from inspect import iscoroutine

from wshub.errors import (
    ConnectionClosed,
    ConnectionLost,
    InvalidMessageError,
    MisuseError,
)
from wshub.hub.handler_task import SpareTask
from wshub.protocol.close_code import encode_close_payload

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

logger = logging.getLogger("wshub.server")

cdef enum Status:
    IS_CONNECTING
    IS_OPEN
    IS_CLOSING
    IS_CLOSED

# Why the handling of what arrives is blocked; a connection is read only while nothing of this is set.
cdef enum:
    HANDLER_RUNS = 1  # a handler is suspended, and messages go to handlers
    INBOX_FULL = 2    # receive() is not called as fast as messages arrive
    OUTPUT_FULL = 4   # the peer does not read what is sent to it

cdef enum:
    TEXT_OPCODE = 0x1
    BINARY_OPCODE = 0x2
    CLOSE_OPCODE = 0x8
    PING_OPCODE = 0x9
    PONG_OPCODE = 0xA
    MAX_CONTROL_PAYLOAD = 125
    INBOX_LIMIT = 16


class ConnectionState(enum.Enum):
    """Where a connection is in its life (RFC 6455 sections 4.1 and 7.1)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


cdef tuple STATES = tuple(ConnectionState)


cdef bint is_normal(int code):
    """Whether a close with this code is an ordinary end, and not one to be told of by an exception."""
    return code in (1000, 1001, 1005) or code >= 3000


cdef bytes octets_of(FrameBuffer *frame):
    """A copy of the payload. Releases the frame if it raises MemoryError."""
    try:
        return frame_payload(frame)[:frame.length]
    except MemoryError:
        frame_release(frame)
        raise


cdef class HandlerTable:
    def __init__(self, handler, endpoint=False):
        self.handler = handler
        self.on_open = handler.on_open
        self.on_message = handler.on_message
        self.on_close = handler.on_close
        self.on_error = handler.on_error
        self.on_ping = handler.on_ping
        self.on_pong = handler.on_pong
        self.endpoint = endpoint


cdef class Room:
    """The connections that a message to a room reaches."""

    def __init__(self, name):
        self.name = name
        self.members = {}


cdef class HubBase:
    cdef object forget(self, Connection connection):
        """The connection is closed. Nothing of the hub refers to it from here on."""


cdef class Connection(Receiver):
    """One WebSocket connection of a hub.

    Every method may be called from any thread; on another than the hub's it is handed over to the loop, and returns
    None. What is sent leaves in the order of the calls. Nothing that sends ever waits: it queues.
    """

    def __cinit__(self, HubBase hub not None, uint64_t id, HandlerTable handlers not None, request, subprotocol):
        parser_init(&self.parser, hub.max_message_size)
        self.hub = hub
        self.id = id
        self.key = id
        self.handlers = handlers
        self.request = request
        self.subprotocol = subprotocol
        self.receiving = handlers.endpoint
        self.reason = ""
        self.context = copy_context()

    def __dealloc__(self):
        parser_clear(&self.parser)
        frame_release(self.pending_pong)

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
        """The peer's address as ``socket.getpeername()`` has it, or None where it has none (a Unix socket)."""
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
        """Octets that are queued and not yet taken by the kernel."""
        return self.link.queue.octets if self.link is not None else 0

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
        return self.room_table is not None and name in self.room_table

    def join(self, name):
        """Enters a room. Being in it already is fine. Raises ConnectionClosed on a connection that is closing."""
        if self.is_foreign():
            self.hub.loop.call_soon_threadsafe(self._quietly, self.join, name)
            return
        self.join_room(name)

    def leave(self, name):
        """Leaves a room. Not being in it is fine."""
        if self.is_foreign():
            self.hub.loop.call_soon_threadsafe(self.leave, name)
            return
        self.leave_room(name)

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
            room = Room(name)
            self.hub.room_table[name] = room
        room.members[self.key] = self
        self.room_table[name] = room

    cdef bint leave_room(self, str name) except -1:
        cdef Room room
        if self.room_table is None or self.status >= IS_CLOSING:
            return False
        room = self.room_table.pop(name, None)
        if room is None:
            return False
        del room.members[self.key]
        if not room.members:
            del self.hub.room_table[name]
        return True

    cdef void leave_all_rooms(self) noexcept:
        """Leaves every room; their names stay to be seen by on_close."""
        cdef Room room
        if self.room_table is None:
            return
        for room in self.room_table.values():
            room.members.pop(self.key, None)
            if not room.members and self.hub.room_table.get(room.name) is room:
                del self.hub.room_table[room.name]

    # Sending

    def send(self, message):
        """Queues a message: a str as text, bytes or another buffer as binary, a Message as it is, without a copy.

        Raises:
            ConnectionClosed: the connection is closing or closed; its ``code`` and ``reason`` say how.
            TypeError: ``message`` is none of these.
            InvalidMessageError: it is a str with a lone surrogate.
        """
        cdef FrameBuffer *frame
        if self.is_foreign():
            self.check_open()
            self.hub.loop.call_soon_threadsafe(self._quietly, self.send, Message(message))
            return
        if self.status != IS_OPEN:
            self.check_open()
        frame = frame_from_data(message)
        if self.queue(frame) < 0:
            self.overflow()
        frame_release(frame)

    def send_text(self, text):
        """Queues a text message; ``text`` is a str, or UTF-8 octets. Raises as ``send`` does."""
        if isinstance(text, Message):
            (<Message>text).check()
            if (<Message>text).frame.opcode == TEXT_OPCODE:
                return self.send(text)
        if not isinstance(text, str):
            try:
                text = bytes(memoryview(text)).decode()
            except TypeError:
                raise TypeError(f"send_text() takes a str, not {type(text).__name__}") from None
            except UnicodeDecodeError as error:
                raise InvalidMessageError(f"a text message must be UTF-8: {error}") from None
        self.send(text)

    def send_binary(self, data):
        """Queues a binary message; ``data`` is any object with a contiguous buffer. Raises as ``send`` does."""
        if isinstance(data, str):
            raise TypeError("send_binary() takes bytes, not str: encode it, or call send_text()")
        self.send(data)

    def send_json(self, value):
        """Queues ``value`` as JSON in a text message. Raises as ``send`` and ``json.dumps`` do."""
        self.send(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def send_ping(self, payload=b""):
        """Queues a ping of at most 125 octets; ``on_pong`` sees the answer. Raises as ``send`` does."""
        self.send_control(payload, PING_OPCODE)

    def send_pong(self, payload=b""):
        """Queues a pong that answers nothing (RFC 6455 section 5.5.3); pings are answered by the hub."""
        self.send_control(payload, PONG_OPCODE)

    cdef object send_control(self, object payload, uint8_t opcode):
        cdef FrameBuffer *frame
        self.check_open()
        if self.is_foreign():
            method = self.send_ping if opcode == PING_OPCODE else self.send_pong
            self.hub.loop.call_soon_threadsafe(self._quietly, method, payload)
            return
        frame = frame_from_payload(payload, opcode)
        try:
            if frame.length > MAX_CONTROL_PAYLOAD:
                raise InvalidMessageError(f"a ping or pong has at most 125 octets, not {frame.length}")
            if self.queue(frame) < 0:
                self.overflow()
        finally:
            frame_release(frame)

    def close(self, code=1000, reason=""):
        """Begins the closing handshake. What is queued leaves before it. Closing again does nothing.

        Args:
            code: 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: at most 123 octets of UTF-8, for the peer's eyes.

        Raises:
            InvalidMessageError: another code, or a longer reason.
        """
        payload = encode_close_payload(code, reason)
        if self.is_foreign():
            self.hub.loop.call_soon_threadsafe(self.close, code, reason)
        elif self.status == IS_OPEN:
            self.begin_closing(payload)

    async def drain(self):
        """Waits until everything queued has been taken by the kernel. Raises ConnectionClosed if that cannot be."""
        self.check_open()
        if self.link.queue.octets == 0:
            return
        future = self.hub.loop.create_future()
        if self.drain_waiters is None:
            self.drain_waiters = []
        self.drain_waiters.append(future)
        self.link.notify_drained = True
        await future

    async def wait_closed(self):
        """Waits until the connection is closed and gone."""
        if self.status == IS_CLOSED:
            return
        future = self.hub.loop.create_future()
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(future)
        await future

    def _quietly(self, method, argument):
        """Calls a method on behalf of another thread, which cannot be told any more that it is too late."""
        try:
            method(argument)
        except ConnectionClosed:
            logger.debug("a call from another thread came too late for %r", self)

    # Receiving

    async def receive(self, timeout=None):
        """Waits for the next message and returns it.

        It may be cancelled at any time: no message is lost.

        Args:
            timeout: seconds to wait at the most; None waits as long as it takes.

        Raises:
            TimeoutError: nothing came in time.
            ConnectionClosed: the connection has ended, ConnectionLost if not in the ordinary way.
            MisuseError: messages go to ``on_message``, or another task is in ``receive`` already.
        """
        if timeout is None:
            return await self._receive()
        async with asyncio.timeout(timeout):
            return await self._receive()

    async def _receive(self):
        if self.handlers.on_message is not None:
            raise MisuseError("the messages of this connection go to its on_message handler")
        if not self.receiving:
            self.receiving = True
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
            finally:
                self.waiter = None
                self.receiving_task = None
        message = self.inbox.popleft()
        if self.blocks & INBOX_FULL and len(self.inbox) <= INBOX_LIMIT // 2:
            self.hub.loop.call_soon(self._unblock, INBOX_FULL)
        return message

    def _unblock(self, block):
        self.unblock(block)

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self._receive()
        except ConnectionLost:
            raise
        except ConnectionClosed:
            raise StopAsyncIteration from None

    cdef void wake_receiver(self) noexcept:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # Checks

    cdef bint is_foreign(self) noexcept:
        return PyThread_get_thread_ident() != self.hub.thread_id

    cdef object closed_error(self):
        cdef int code = self.code if self.code else 1006
        if self.status == IS_CLOSING and not self.code:
            return ConnectionClosed(1000, "it is closing")
        return (ConnectionClosed if is_normal(code) else ConnectionLost)(code, self.reason)

    cdef object check_open(self):
        if self.status == IS_CONNECTING:
            raise MisuseError("the connection is not open yet: its handler may send, from on_open on")
        if self.status != IS_OPEN:
            raise self.closed_error()

    # From the hub

    cdef void start(self, Link link):
        """The handshake's answer has been queued on the link, which is this connection's from here on."""
        cdef double now = self.hub.clock()
        self.link = link
        link.receiver = self
        self.status = IS_OPEN
        # Spread over a tenth of the interval, so that connections that came together are not pinged together.
        self.next_ping = now + self.hub.ping_interval * (1 - (self.id * 0.6180339887498949 % 1) / 10)
        self.opened = True
        PyContext_Enter(self.context)
        try:
            self.call(self.handlers.on_open, (self,))
            if self.handlers.endpoint:
                self.end_endpoint()
        finally:
            PyContext_Exit(self.context)

    cdef object abandon(self):
        """The handshake has not been answered with 101: the connection ends without having been open."""
        if self.status == IS_CONNECTING:
            self.leave_all_rooms()
            self.status = IS_CLOSED
            self.code = 1006
            self.hub.forget(self)

    cdef object end_endpoint(self):
        """Closes the connection if the coroutine that is its whole life has returned."""
        if self.status == IS_OPEN and not self.blocks & HANDLER_RUNS:
            self.begin_closing(encode_close_payload(1000, ""))

    cdef int queue(self, FrameBuffer *frame) noexcept:
        """Queues a frame if the connection is open, without any Python code being run.

        Returns 1 if it was queued, 0 if the connection is not open, and -1 if its queue is full: then the caller calls
        overflow(), which is not done here since it changes rooms, and there may be a loop over one.
        """
        if self.status != IS_OPEN:
            return 0
        if self.link.queue.octets >= self.hub.max_send_buffer:
            # A burst within one turn has not been tried yet: only what the kernel does not take is too much.
            self.link.flush_now()
            if self.link.queue.octets >= self.hub.max_send_buffer:
                return -1
        if self.link.write(frame) < 0:
            self.out_of_memory()
            return 0
        return 1

    cdef void out_of_memory(self) noexcept:
        """Something of what was sent or received is lost, so the connection is ended at once."""
        self.code = 1011
        self.reason = "out of memory"
        self.input_ended = True
        self.link.abort(False)

    cdef void overflow(self) noexcept:
        """The peer does not read: closes the connection, and forgets what it would have to read first."""
        if self.status != IS_OPEN:
            return
        self.hub.slow_consumers += 1
        if self.hub.slow_consumers == 1:
            logger.warning(
                "%r is closed: %d octets wait for a peer that does not read (max_send_buffer); further ones are only "
                "counted", self, self.link.queue.octets
            )
        self.link.drop_unsent()
        self.fail(1013, "too much is waiting to be sent")

    cdef void go_away(self, uint16_t code, str reason, bytes payload) noexcept:
        """The hub closes: so does this connection."""
        if self.status == IS_OPEN:
            self.begin_closing(payload)

    cdef void sweep(self, double now, FrameBuffer *ping) noexcept:
        """Does what is due at `now`; `ping` is a sealed ping that all connections share."""
        if self.status == IS_CLOSING:
            if now >= self.close_deadline:
                self.link.abort(False)
            return
        if self.status != IS_OPEN:
            return
        if self.alive:
            self.alive = False
            self.pong_deadline = 0
        elif self.pong_deadline > 0 and self.is_blocked():
            # Nothing has been read because of this side, which says nothing about the other.
            self.pong_deadline = now + self.hub.pong_timeout
        if self.pong_deadline > 0 and now >= self.pong_deadline:
            self.code = 1006
            self.reason = "no answer to a ping"
            self.input_ended = True
            self.link.abort(False)
            return
        if now >= self.next_ping:
            self.next_ping = now + self.hub.ping_interval
            self.last_ping_time = now
            if not self.link.blocked:
                self.link.write(ping)
            self.pong_deadline = now + self.hub.pong_timeout

    # From the link

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef const uint8_t *cursor = data
        cdef const uint8_t *end = data + length

        self.alive = True
        if self.input_ended:
            return
        if self.unread is not None:
            # The link had read this before it was paused.
            try:
                self.unread = self.unread[self.unread_offset:] + data[:length]
                self.unread_offset = 0
            except MemoryError:
                self.out_of_memory()
            return
        PyContext_Enter(self.context)
        self.process(&cursor, end)
        PyContext_Exit(self.context)
        if cursor < end and not self.input_ended:
            try:
                self.unread = cursor[:end - cursor]
                self.unread_offset = 0
            except MemoryError:
                self.out_of_memory()

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        if self.input_ended or self.unread is not None:
            return 0
        return parser_get_buffer(&self.parser, buffer)

    cdef void buffer_updated(self, size_t length) noexcept:
        cdef Event event
        cdef const uint8_t *nothing = NULL
        self.alive = True
        event = parser_buffer_updated(&self.parser, length)
        if event == NEED_DATA:
            return
        PyContext_Enter(self.context)
        self.dispatch(event)
        self.process(&nothing, nothing)
        PyContext_Exit(self.context)

    cdef void eof_received(self) noexcept:
        if self.status == IS_OPEN:
            self.code = 1006
            self.begin_closing(None)
        self.input_ended = True
        self.wake_receiver()
        self.link.abort(True)

    cdef void drained(self) noexcept:
        cdef FrameBuffer *pong = self.pending_pong
        if pong != NULL:
            self.pending_pong = NULL
            if self.queue(pong) < 0:
                self.overflow()
            frame_release(pong)
        waiters, self.drain_waiters = self.drain_waiters, None
        if waiters is not None:
            for future in waiters:
                if not future.done():
                    future.set_result(None)
        if self.blocks & OUTPUT_FULL:
            self.unblock(OUTPUT_FULL)

    cdef void connection_lost(self, int error) noexcept:
        if self.status == IS_CLOSED:
            return
        if self.status != IS_CLOSING:
            self.leave_all_rooms()
        self.status = IS_CLOSED
        self.input_ended = True
        self.unread = None
        parser_clear(&self.parser)
        if not self.code:
            self.code = 1006
        self.hub.forget(self)
        closes = self.hub.closes
        try:
            closes[self.code] = closes.get(self.code, 0) + 1
        except MemoryError:
            logger.error("out of memory: the end of a connection is not counted")
        self.wake_receiver()
        waiters, self.waiters = self.waiters, None
        for future in waiters or ():
            if not future.done():
                future.set_result(None)
        waiters, self.drain_waiters = self.drain_waiters, None
        for future in waiters or ():
            if not future.done():
                future.set_exception(self.closed_error())
        if self.blocks & HANDLER_RUNS:
            self.close_pending = True
            return
        PyContext_Enter(self.context)
        try:
            self.call_on_close()
        finally:
            PyContext_Exit(self.context)

    # What arrives

    cdef void process(self, const uint8_t **cursor, const uint8_t *end) noexcept:
        """Handles events up to `end`, or until handling is blocked; the cursor is behind what has been handled."""
        cdef Event event
        while not self.input_ended:
            if self.link.queue.octets >= self.hub.max_send_buffer:
                self.blocks |= OUTPUT_FULL
                self.link.notify_drained = True
            if self.is_blocked():
                self.link.pause()
                return
            event = parser_next(&self.parser, cursor, end)
            if event == NEED_DATA:
                return
            self.dispatch(event)

    cdef void dispatch(self, Event event) noexcept:
        try:
            if event == MESSAGE:
                self.handle_message()
            elif event == FAILURE:
                self.fail(self.parser.failure_code, (<bytes>self.parser.failure_reason).decode("ascii"))
            elif event == CLOSE:
                self.handle_close()
            else:
                self.handle_control(event)
        except BaseException as error:
            self.handler_failed(error)

    cdef void handle_message(self):
        cdef Message message = message_from_frame(parser_take_message(&self.parser))
        cdef object result
        self.hub.messages_received += 1
        if self.status != IS_OPEN:
            return
        if self.handlers.on_message is not None:
            result = self.handlers.on_message(self, message)
            if result is not None:
                self.run(result)
        elif self.receiving:
            if self.inbox is None:
                self.inbox = deque()
            self.inbox.append(message)
            self.wake_receiver()
            if len(self.inbox) >= INBOX_LIMIT:
                self.blocks |= INBOX_FULL

    cdef void handle_control(self, Event event):
        cdef FrameBuffer *frame = parser_take_control(&self.parser)
        cdef bytes payload = None
        handler = self.handlers.on_ping if event == PING else self.handlers.on_pong
        if handler is not None:
            payload = octets_of(frame)
        if event == PING and self.status == IS_OPEN:
            frame_seal(frame, PONG_OPCODE)
            if self.link.blocked:
                # Only the latest of several pings needs an answer (RFC 6455 section 5.5.3), and a peer that sends
                # them without reading the answers gets to queue no more than one.
                frame_release(self.pending_pong)
                self.pending_pong = frame
                frame = NULL
                self.link.notify_drained = True
            elif self.queue(frame) < 0:
                self.overflow()
        frame_release(frame)
        if event != PING:
            self.last_pong_time = self.hub.clock()
        if handler is not None and self.status == IS_OPEN:
            self.call(handler, (self, payload))

    cdef void handle_close(self):
        cdef FrameBuffer *frame = parser_take_control(&self.parser)
        cdef bytes payload = octets_of(frame)
        frame_release(frame)
        self.input_ended = True
        if not self.code:
            self.code = self.parser.close_code
            self.reason = payload[2:].decode()
        if self.status == IS_OPEN:
            self.begin_closing(payload[:2])
        self.wake_receiver()
        self.link.abort(True)

    cdef void fail(self, uint16_t code, str reason) noexcept:
        """Fails the connection (RFC 6455 section 7.1.7): a close frame, then nothing more in either direction."""
        self.input_ended = True
        if not self.code:
            self.code = code
            self.reason = reason
        if self.status == IS_OPEN:
            try:
                payload = encode_close_payload(code, reason)
            except MemoryError:
                payload = None
            self.begin_closing(payload)
        self.wake_receiver()
        self.link.abort(True)

    cdef void begin_closing(self, bytes payload) noexcept:
        """Leaves all rooms and queues a close frame, unless the payload is None; nothing can be sent after it."""
        cdef FrameBuffer *frame
        self.leave_all_rooms()
        self.status = IS_CLOSING
        self.close_deadline = self.hub.clock() + self.hub.close_timeout
        if payload is not None:
            try:
                frame = frame_from_payload(payload, CLOSE_OPCODE)
            except MemoryError:
                self.link.abort(False)
                return
            if self.link.write(frame) < 0:
                self.link.abort(False)
            frame_release(frame)

    cdef bint is_blocked(self) noexcept:
        """Whether what arrives is not to be handled now."""
        return self.blocks != 0 and (self.blocks != HANDLER_RUNS or not self.receiving)

    cdef void unblock(self, uint8_t block) noexcept:
        """Clears that reason for being blocked, and goes on with what is unread unless there is another."""
        self.blocks &= ~block
        if self.status == IS_CLOSED or self.link is None:
            return
        if self.unread is not None and not self.is_blocked():
            self.process_unread()
        if self.unread is None and not self.is_blocked():
            self.link.resume()

    cdef void process_unread(self) noexcept:
        cdef bytes unread = self.unread
        cdef const uint8_t *start = <const uint8_t *>unread
        cdef const uint8_t *cursor = start + self.unread_offset
        cdef const uint8_t *end = start + len(unread)
        PyContext_Enter(self.context)
        self.process(&cursor, end)
        PyContext_Exit(self.context)
        if cursor == end or self.input_ended:
            self.unread = None
        else:
            self.unread_offset = cursor - start

    # Handlers

    cdef object call(self, object handler, tuple arguments):
        """Calls a handler, if there is one, within this connection's context. Never raises."""
        if handler is None:
            return
        try:
            result = handler(*arguments)
            if result is not None:
                self.run(result)
        except BaseException as error:
            self.handler_failed(error)

    cdef object run(self, object coroutine):
        """Makes the first step of what a handler returned; if it suspends, a task goes on with it."""
        if not iscoroutine(coroutine):
            if not isinstance(coroutine, Awaitable):
                return
            coroutine = await_it(coroutine)
        if self.hub.spare is None:
            self.hub.spare = SpareTask(self.hub.loop)
        spare = self.hub.spare
        enter_task(self.hub.loop, spare.task)
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        finally:
            leave_task(self.hub.loop, spare.task)
        self.hub.spare = None
        # The hand-over comes last: what could not be waited for must not run.
        self.hub.handler_tasks.add(spare.task)
        spare.task.add_done_callback(self._handler_done)
        spare.hand_over(coroutine, awaited, self.context)
        self.blocks |= HANDLER_RUNS

    def _handler_done(self, task):
        self.hub.handler_tasks.discard(task)
        self.blocks &= ~HANDLER_RUNS
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        PyContext_Enter(self.context)
        try:
            if error is not None:
                self.handler_failed(error)
            if not self.blocks & HANDLER_RUNS:
                self.tells_of_error = False
            if self.handlers.endpoint:
                self.end_endpoint()
            if self.close_pending and not self.blocks & HANDLER_RUNS:
                self.close_pending = False
                self.call_on_close()
        finally:
            PyContext_Exit(self.context)
        self.unblock(0)

    cdef void handler_failed(self, object error) noexcept:
        """A handler has raised. The application is told, and the connection is closed with 1011."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.hub.loop.call_soon(raise_it, error)
            return
        if self.status >= IS_CLOSING and isinstance(error, (ConnectionClosed, asyncio.CancelledError)):
            # The handler noticed the end of its connection in the middle of its work.
            return
        if self.tells_of_error:
            self.tells_of_error = False
            logger.error("on_error of %r has failed itself", self, exc_info=error)
            return
        logger.error("a handler of %r has failed", self, exc_info=error)
        if self.status == IS_OPEN:
            self.code = 1011
            self.begin_closing(encode_close_payload(1011, "internal error"))
        if self.handlers.on_error is not None:
            self.tells_of_error = True
            self.call(self.handlers.on_error, (self, error))
            if not self.blocks & HANDLER_RUNS:
                self.tells_of_error = False

    cdef object call_on_close(self):
        if self.opened:
            self.opened = False
            self.call(self.handlers.on_close, (self, self.code, self.reason))


async def await_it(awaitable):
    """A coroutine that awaits any awaitable."""
    return await awaitable


def raise_it(error):
    raise error
