# cython: language_level=3
"""The inner life of a connection: what arrives, what is queued, how it ends, and the handlers that are told.

The rules of this file. Handlers are called from the loop only, never from within a call of the application's, and
one after another. After every call into Python the state is looked at again: a handler may have closed this
connection, or any other. What comes from the network never raises: it ends in an event, or in a close.

    CONNECTING -> OPEN -> CLOSING -> CLOSED

CLOSING begins with the first close frame of either side, or when either side gives up; from then on the connection is
in no room and takes nothing to send. CLOSED is when the link is gone. A connection that is closed before it opens goes
from CONNECTING to CLOSING; one whose handshake fails goes from either to CLOSED. Neither has a link until start().
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from wshub.core.hub_state cimport (
    CLOSE_CONNECTION,
    CONTROL_FRAMES,
    DROP_NEWEST,
    HANDLER_TIME,
    LATEST,
    MESSAGES,
    OCTETS,
    QUEUED,
    RATES,
    Delivery,
    HandlerTable,
    HubBase,
    Rate,
    Room,
)
from wshub.core.shared_window cimport SharedWindow
from wshub.links.link cimport AT_REST, STALLED, TAKING, Link, Progress, Receiver, queue_charge
from wshub.protocol.compression.deflate cimport (
    LONGEST_DEFLATED,
    Deflater,
    Inflater,
    deflater_clear,
    deflater_forget,
    deflater_init,
    inflater_clear,
    inflater_init,
)
from wshub.protocol.frame_buffer cimport (
    DROPPED_NEWEST,
    DROPPED_SLOW,
    FrameBuffer,
    frame_is_message,
    frame_payload,
    frame_release,
    frame_retain,
    frame_seal,
)
from wshub.protocol.message cimport Message, frame_from_payload, message_from_frame
from wshub.protocol.opcodes cimport CLOSE_OPCODE, PONG_OPCODE, SERVER
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
import logging
from collections import deque
from contextvars import copy_context
from functools import partial
from inspect import isawaitable, iscoroutine

from wshub.errors import ConnectionClosed, ConnectionLost, MisuseError
from wshub.core.handler_task import start_handler_task
from wshub.protocol.close_code import decode_close_payload, encode_close_payload

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    bint PyGen_CheckExact(object value)
    bint PyAsyncGen_CheckExact(object value)

logger = logging.getLogger("wshub.server")

cdef enum:
    # What a connection may have decompressed in one go before others have their turn, in octets and work worth so many.
    TURN_INFLATES = 1 << 20
    # Messages and control frames that are handled in one go.
    TURN_EVENTS = 1024
    # The clock is looked at after so many of them. It is looked at after so many messages that were queued, too: one
    # may go to a whole room. Few clients have as many under way.
    EVENTS_BETWEEN_LOOKS = 8
    QUEUED_BETWEEN_LOOKS = 512
    # From this size on it is better to compress a message than to stay in step with a room: a message of a room that
    # is missed costs some dozens of octets more, and there are at most some hundreds until the next restart.
    WORTH_A_STEP = 8192
    # What a connection that has rates may still send when it is being closed, in octets: what may be under way from a
    # client that does not know of it yet, as much as its kernel takes of it unless told otherwise.
    MOST_UNDER_WAY = 4 << 20

# Seconds that a connection may have in one go, and while others wait for theirs.
cdef double TURN_SECONDS = 0.001
cdef double SHARED_SECONDS = 0.0005

# What a connection does that exceeds each of the rates.
cdef tuple EXCESSES = ("more octets", "more messages", "more pings or pongs", "what takes longer to handle")


cdef bint is_normal(int code):
    """Whether a close with this code is an ordinary end, and not one to be told of by an exception."""
    return code in (1000, 1001, 1005) or code >= 3000


cdef bint found_again(uint8_t *found) noexcept:
    """Whether the sweep before has found the same of a peer.

    Where the loop itself had stopped, what the peer did in time is seen only after a first sweep.
    """
    cdef bint found_before = found[0]
    found[0] = True
    return found_before


cdef inline bint is_full(ConnectionCore connection) noexcept:
    """Whether as much waits for the peer as may."""
    return queue_charge(&connection.link.queue) >= connection.hub.max_send_buffer


cdef void wake(object future) noexcept:
    try:
        if not future.done():
            future.set_result(None)
    except RuntimeError:
        # The loop is closed: what waits will never run again.
        pass


cdef bytes octets_of(FrameBuffer *frame):
    """A copy of the payload. Releases the frame if it raises MemoryError."""
    try:
        return frame_payload(frame)[:frame.length]
    except MemoryError:
        frame_release(frame)
        raise


cdef class ConnectionCore(Receiver):
    """A connection without its public face, which is :class:`wshub.Connection`."""

    def __cinit__(self, HubBase hub not None, uint64_t id, HandlerTable handlers not None, request, subprotocol):
        parser_init(&self.parser, SERVER, hub.max_message_size)
        self.parser.max_fragments = hub.max_fragments
        self.hub = hub
        self.id = id
        self.key = id
        self.handlers = handlers
        self.request = request
        self.subprotocol = subprotocol
        self.receiving = handlers.receives
        self.reason = ""
        self.context = copy_context()

    def __dealloc__(self):
        parser_clear(&self.parser)
        frame_release(self.pending_pong)
        self.free_compressors()

    cdef void leave_all_rooms(self) noexcept:
        """Leaves every room; their names stay to be seen by on_close."""
        cdef Room room
        if self.room_table is None:
            return
        for room in self.room_table.values():
            room.members.pop(self.key, None)
            self.hub.window_changes += room.window is not None
            if not room.members and self.hub.room_table.get(room.name) is room:
                del self.hub.room_table[room.name]

    cdef void wake_receiver(self) noexcept:
        if self.waiter is not None:
            wake(self.waiter)

    cdef void wake_all(self) noexcept:
        """Ends every wait for this connection, which is CLOSED."""
        self.wake_receiver()
        waiters, self.waiters = self.waiters, None
        for future in waiters or ():
            wake(future)
        self.refuse_drainers()

    # Checks

    cdef bint can_hand_over(self) noexcept:
        """Whether the loop is there to take a call from another thread."""
        return self.status != IS_CLOSED and self.hub.loop is not None and not self.hub.loop.is_closed()

    cdef object hand_over(self, call):
        """Has the loop make a call that came from another thread."""
        try:
            self.hub.loop.call_soon_threadsafe(call)
        except RuntimeError:
            if not self.hub.loop.is_closed():
                raise
            # The loop has closed in this moment: there is no other thread to hand the call to.
            call()

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
        cdef double spread = self.id * 0.6180339887498949 % 1
        cdef bint closes_at_once = self.status == IS_CLOSING
        cdef int kind
        self.link = link
        link.receiver = self
        self.status = IS_OPEN
        self.hub.window_changes += self.room_table is not None
        # Connections that came together are not to be pinged together, which would take one long turn of the loop, nor
        # to leave together.
        self.next_ping = now + self.hub.ping_interval * (1 - spread / 2)
        self.lifetime_end = now + self.hub.max_lifetime * (1 - spread / 10)
        self.idle_deadline = now + self.hub.idle_timeout
        for kind in range(RATES):
            self.left[kind] = self.hub.rates[kind].at_most
        if closes_at_once:
            payload = encode_close_payload(self.code, self.reason)
            self.code = 0
            self.reason = ""
            self.begin_closing(payload)
            return
        link.tells_drained = self.handlers.on_drain is not None
        self.opened = True
        PyContext_Enter(self.context)
        try:
            self.call(self.handlers.on_open, (self,), ON_OPEN_RUNS)
            if self.handlers.endpoint:
                self.end_endpoint()
        finally:
            PyContext_Exit(self.context)

    cdef object close_before_opening(self, bytes payload):
        """Keeps code and reason until start(), which sends them."""
        self.leave_all_rooms()
        self.status = IS_CLOSING
        self.code, self.reason = decode_close_payload(payload)

    cdef object abandon(self):
        """The handshake has not been answered with 101: the connection ends without having been open."""
        if self.link is not None or self.status == IS_CLOSED:
            return
        self.leave_all_rooms()
        self.status = IS_CLOSED
        self.code = 1006
        self.reason = ""
        self.hub.forget(self.key, self.address_key)
        self.wake_all()

    cdef void forsake(self) noexcept:
        """The hub or its loop has gone: the connection is closed, and no handler can be called any more."""
        if self.hub.loop.is_closed():
            self.opened = False
        if self.link is None:
            self.abandon()
        else:
            self.connection_lost(0)

    cdef object end_endpoint(self):
        """Closes the connection if the coroutine that is its whole life has returned."""
        if self.status == IS_OPEN and not self.blocks & ON_OPEN_RUNS:
            self.begin_closing(encode_close_payload(1000, ""))

    cdef object negotiated(self, object compression):
        """Takes what was agreed on compression, a PermessageDeflate or None, before anything is sent or received."""
        if compression is None:
            return
        config = self.hub.pool.config
        self.compression = compression
        self.window_bits = compression.server_max_window_bits
        self.keeps_window = not compression.server_no_context_takeover
        self.parser.inflater = &self.hub.pool.inflater
        if not compression.client_no_context_takeover:
            self.inflater = <Inflater *>PyMem_RawMalloc(sizeof(Inflater))
            if self.inflater == NULL:
                raise MemoryError
            inflater_init(self.inflater, compression.client_max_window_bits, True)
            self.parser.inflater = self.inflater
        if config.server_context_takeover and self.keeps_window:
            self.deflater = <Deflater *>PyMem_RawMalloc(sizeof(Deflater))
            if self.deflater == NULL:
                raise MemoryError
            deflater_init(self.deflater, config.level, config.memory_level, self.window_bits)

    cdef void renounce_compression(self) noexcept:
        """Drops what was agreed on compression: someone else has answered the handshake, or the connection is gone."""
        self.compression = None
        self.window_bits = 0
        self.keeps_window = False
        self.parser.inflater = NULL
        self.free_compressors()

    cdef void free_compressors(self) noexcept:
        if self.inflater != NULL:
            inflater_clear(self.inflater)
            PyMem_RawFree(self.inflater)
            self.inflater = NULL
        if self.deflater != NULL:
            deflater_clear(self.deflater)
            PyMem_RawFree(self.deflater)
            self.deflater = NULL

    cdef bint stays_in_step(self, FrameBuffer *frame) noexcept:
        """Whether the message is to go plain, for the sake of the shared window that the peer is in step with."""
        return self.generation != 0 and frame.length < WORTH_A_STEP

    cdef bint stands_alone(self, const Delivery *delivery) noexcept:
        """Whether a message must not refer to others, nor be referred to, since it may be dropped while it waits."""
        return delivery.policy != CLOSE_CONNECTION and self.link.blocked

    cdef void fall_out_of_step(self, SharedWindow window) noexcept:
        """The peer misses what is compressed with that window."""
        if self.generation == window.generation:
            self.come_in_step(0)

    cdef void come_in_step(self, uint64_t generation) noexcept:
        """The peer is in step with that generation from here on, or with none if it is 0."""
        if self.generation != generation:
            self.generation = generation
            self.hub.window_changes += 1

    cdef int queue_compressible(self, FrameBuffer *frame, const Delivery *delivery) noexcept:
        """queue_message() for a peer that decompresses."""
        cdef FrameBuffer *form = NULL
        if frame.length >= delivery.threshold and self.status == IS_OPEN and not self.stays_in_step(frame):
            form = self.hub.pool.form(frame, self.window_bits)
        if form == NULL:
            return self.queue(frame, delivery.policy)
        return self.queue_compressed(form, 0, delivery.policy)

    cdef int queue_alone(self, FrameBuffer *frame, const Delivery *delivery) noexcept:
        """queue_message() for one that nobody else gets: it may refer to what was sent to this connection before."""
        cdef FrameBuffer *form
        cdef int queued
        if (
            self.deflater == NULL or self.status != IS_OPEN
            or not delivery.threshold <= frame.length <= LONGEST_DEFLATED or self.stands_alone(delivery)
        ):
            return queue_message(self, frame, delivery)
        if self.stays_in_step(frame):
            return self.queue(frame, delivery.policy)
        if self.history_is_stale:
            deflater_forget(self.deflater)
            self.history_is_stale = False
        if is_full(self):
            # A transport's code may send something else meanwhile, which must not come between this message and those
            # that refer to it.
            self.link.flush_now()
        form = self.hub.pool.compress(self.deflater, frame, False)
        if form == NULL or form.length >= frame.length:
            # What the peer is not given cannot be referred to.
            frame_release(form)
            self.history_is_stale = True
            return self.queue(frame, delivery.policy)
        form.chained = True
        queued = self.queue_compressed(form, 0, delivery.policy)
        self.history_is_stale = queued <= 0
        frame_release(form)
        return queued

    cdef int queue_compressed(self, FrameBuffer *form, uint64_t generation, uint8_t policy) noexcept:
        """queue() for a compressed form, which leaves the connection in step with that generation, or with none."""
        self.come_in_step(generation)
        self.history_is_stale = True
        return self.queue(form, policy)

    cdef int queue(self, FrameBuffer *frame, uint8_t policy) noexcept:
        """Queues a frame if the connection is open, without any Python code being run.

        Returns 1 if it was queued, 0 if it was not because the connection is not open or the policy drops it, and -1 if
        too much is queued already and the policy is to close: then the caller calls overflow(), which is not done here
        since it changes rooms, and there may be a loop over one.
        """
        if self.status != IS_OPEN:
            return 0
        # Looked at first: what is not written need not be written back from the cache, for each receiver of a fan-out.
        if not self.is_active and frame_is_message(frame):
            self.is_active = True
        if is_full(self) or (policy == LATEST and self.link.blocked):
            return self.queue_at_bound(frame, policy)
        if self.link.write(frame) < 0:
            self.out_of_memory()
            return 0
        return 1

    cdef int queue_at_bound(self, FrameBuffer *frame, uint8_t policy) noexcept:
        """queue() for a connection that does not take as much as it is sent."""
        if policy == LATEST and frame.key != 0 and self.link.blocked and self.link.replace(frame):
            return 1
        if is_full(self):
            # A burst within one turn has not been tried yet: only what the kernel does not take is too much.
            self.link.flush_now()
        if is_full(self):
            self.hub.had_no_room = True
            if policy == CLOSE_CONNECTION:
                self.link.turn_away(frame, DROPPED_SLOW)
                return -1
            self.sheds = True
            if policy == DROP_NEWEST or not self.link.make_room(self.hub.max_send_buffer):
                self.link.turn_away(frame, DROPPED_NEWEST)
                # What the peer is not given cannot be referred to.
                self.history_is_stale = True
                self.come_in_step(0)
                return 0
        if self.link.write(frame) < 0:
            self.out_of_memory()
            return 0
        return 1

    cdef void out_of_memory(self) noexcept:
        """Something of what was sent or received is lost, so the connection is ended at once."""
        self.give_up(1011, "out of memory")

    cdef void overflow(self) noexcept:
        """The peer does not read: closes the connection, and forgets what it would have to read first."""
        if self.status != IS_OPEN:
            return
        self.link.drop_unsent()
        self.fail(1013, "too much is waiting to be sent")
        self.refuse_drainers()

    cdef void go_away(self, bytes payload) noexcept:
        """The hub closes, or its time is over: so does this connection, with that payload of the close frame."""
        if self.status == IS_OPEN:
            self.begin_closing(payload)

    cdef void sweep(self, double now, FrameBuffer *ping) noexcept:
        """Does what is due at `now`; `ping` is a sealed ping that all connections share."""
        cdef Progress progress = AT_REST
        if self.status == IS_CLOSING:
            if self.link is not None and (now >= self.lifetime_end or self.is_stalled(now, self.link.look())):
                self.link.abort(False)
            return
        if self.status != IS_OPEN:
            return
        self.refill(now - self.hub.swept_at)
        if self.sheds:
            self.sheds = self.link.blocked
            if self.blocks & OUTPUT_FULL:
                self.unblock_later(OUTPUT_FULL)
        if self.is_in_doubt():
            progress = self.link.look()
        if self.status != IS_OPEN or self.is_overdue(now, progress) or self.link.without_pings:
            return
        if self.alive:
            self.alive = False
            self.seems_silent = False
            self.pong_deadline = 0
        elif self.pong_deadline > 0 and self.is_excused(progress):
            self.pong_deadline = now + self.hub.pong_timeout
            self.seems_silent = False
        if self.pong_deadline > 0 and now >= self.pong_deadline and found_again(&self.seems_silent):
            self.give_up(1006, "no answer to a ping")
            return
        if now >= self.next_ping:
            self.next_ping = now + self.hub.ping_interval
            self.ping(now, ping)
        if self.link.acknowledged >= self.before_ping:
            self.before_ping = 0

    cdef bint is_in_doubt(self) noexcept:
        """Whether it matters what the peer has acknowledged: to ask that of everybody would make a sweep expensive."""
        if self.link.blocked or (self.pong_deadline > 0 and not self.alive):
            return True
        return self.link.hides_octets and not self.is_active

    cdef void ping(self, double now, FrameBuffer *ping) noexcept:
        """Asks the peer for a sign of life, unless what it takes of what waits for it is watched already."""
        if self.link.blocked and self.hub.ends_stalled:
            return
        if self.pong_deadline == 0:
            self.pong_deadline = now + self.hub.pong_timeout
            self.link.look()
            self.before_ping = self.link.given + self.link.queue.octets
        self.link.write(ping)
        self.last_ping_time = now

    cdef bint is_excused(self, Progress progress) noexcept:
        """Whether a ping may be unanswered through no fault of the peer.

        Nothing has been read because of this side; or the peer goes on to take what was sent before the ping. That
        something is taken behind it tells of life only while more is left behind: a kernel with room acknowledges what
        comes for a program that does not run any more.
        """
        if self.is_blocked() and self.blocks != OUTPUT_FULL:
            return True
        return progress == TAKING and (self.before_ping > 0 or self.link.blocked)

    cdef bint is_stalled(self, double now, Progress progress) noexcept:
        """Whether the peer has taken nothing of what waits for it for too long."""
        if progress != STALLED:
            self.give_up_at = 0
            self.seems_stalled = False
        elif self.give_up_at == 0:
            self.give_up_at = now + self.hub.send_timeout
        elif now >= self.give_up_at:
            return found_again(&self.seems_stalled)
        return False

    cdef bint is_overdue(self, double now, Progress progress) noexcept:
        """Ends a connection that has lived, rested or kept octets waiting for too long. Returns whether it was one."""
        if self.is_stalled(now, progress):
            self.give_up(1006, "the peer takes nothing of what is sent to it")
            return True
        if self.is_active:
            self.is_active = False
            self.idle_deadline = now + self.hub.idle_timeout
        elif now >= self.idle_deadline:
            self.retire("nothing was sent or received for too long")
            return True
        if now >= self.lifetime_end:
            self.retire("the connection has reached the age allowed")
            return True
        return False

    cdef void retire(self, str reason) noexcept:
        """An ordinary end that only the time of day asks for."""
        try:
            payload = encode_close_payload(1001, reason)
        except MemoryError:
            return
        self.go_away(payload)

    cdef void give_up(self, uint16_t code, str reason) noexcept:
        """Ends the connection at once: nothing more can be said to the peer, or is worth to be."""
        self.code = code
        self.reason = reason
        self.input_ended = True
        self.link.abort(False)

    # Rates

    cdef void refill(self, double elapsed) noexcept:
        """What the rates allow for that many seconds is added to what is left."""
        cdef Rate *rate
        cdef bint exceeded = False
        cdef int kind
        if elapsed <= 0:
            return
        for kind in range(RATES):
            rate = &self.hub.rates[kind]
            self.left[kind] = min(self.left[kind] + rate.per_second * elapsed, rate.at_most)
            exceeded = exceeded or self.left[kind] < 0
        if self.blocks & RATE_SPENT and not exceeded:
            self.unblock_later(RATE_SPENT)

    cdef void spend(self, int kind, double amount) noexcept:
        """So much was done of what has a rate: where it is more than that allows, the connection is held to it."""
        self.left[kind] -= amount
        if self.left[kind] >= 0:
            return
        if self.status == IS_OPEN:
            self.slow_down(EXCESSES[kind])
        elif self.status == IS_CLOSING and kind == OCTETS:
            # It goes on as if it had not been told of its end.
            self.input_ended = True
            self.wake_receiver()
            self.link.abort(False)

    cdef void slow_down(self, str what) noexcept:
        """More arrived than the rates allow: nothing more is read until they do, or the connection is closed."""
        self.hub.rates_exceeded += 1
        if self.hub.rates_exceeded == 1:
            logger.warning(
                "%r sends %s than its rates allow (HubConfig.rates); further ones are only counted", self, what
            )
        if self.hub.closes_at_rate:
            self.fail(1008, f"{what} than allowed")
        else:
            self.blocks |= RATE_SPENT
            self.link.pause()

    # From the link

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef const uint8_t *cursor = data
        cdef const uint8_t *end = data + length

        self.alive = True
        if self.input_ended:
            return
        self.spend(OCTETS, length)
        if self.unread is not None:
            # The link had read this before it was paused.
            try:
                self.unread = self.unread[self.unread_offset:] + data[:length]
                self.unread_offset = 0
            except MemoryError:
                self.out_of_memory()
            return
        PyContext_Enter(self.context)
        self.process(&cursor, end, self.parser.inflating_work)
        PyContext_Exit(self.context)
        if cursor < end and not self.input_ended:
            try:
                self.unread = cursor[:end - cursor]
                self.unread_offset = 0
            except MemoryError:
                self.out_of_memory()

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        # A message must not be complete before it may be handled: elsewhere what arrives can be left unread.
        if self.input_ended or self.unread is not None or self.is_blocked():
            return 0
        return parser_get_buffer(&self.parser, buffer)

    cdef void buffer_updated(self, size_t length) noexcept:
        cdef Event event
        cdef const uint8_t *nothing = NULL
        cdef uint64_t work_before = self.parser.inflating_work
        self.alive = True
        self.spend(OCTETS, length)
        if self.input_ended:
            return
        event = parser_buffer_updated(&self.parser, length)
        if event == NEED_DATA:
            return
        PyContext_Enter(self.context)
        self.dispatch(event)
        self.process(&nothing, nothing, work_before)
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
        cdef bint all_left = self.link.has_drained()
        self.wake_drainers(all_left)
        if pong != NULL:
            self.pending_pong = NULL
            if self.status == IS_OPEN:
                self.queue_pong(pong)
            frame_release(pong)
        if all_left and self.link.fell_behind:
            # What falls behind from here on, as handlers of what is unread may have it, is told of once more.
            self.link.fell_behind = False
            self.drain_pending = True
        if self.blocks & OUTPUT_FULL:
            if is_full(self):
                self.link.notify_when_left(self.link.end_of_queue())
            else:
                self.unblock(OUTPUT_FULL)
        PyContext_Enter(self.context)
        self.call_on_drain()
        PyContext_Exit(self.context)

    cdef void wake_drainers(self, bint all_left) noexcept:
        """Wakes who waits in drain() for no more than what has left."""
        while self.drain_waiters:
            future, octets = self.drain_waiters.popitem(False)
            if not all_left and octets > self.link.given:
                self.drain_waiters[future] = octets
                self.drain_waiters.move_to_end(future, False)
                self.link.notify_when_left(octets)
                return
            wake(future)
        self.drain_waiters = None

    cdef void refuse_drainers(self) noexcept:
        """What is waited for in drain() is lost."""
        waiters, self.drain_waiters = self.drain_waiters, None
        for future in waiters or ():
            if future.done():
                continue
            try:
                future.set_exception(self.closed_error())
            except RuntimeError:
                # The loop is closed: whoever waits will never run again.
                return

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
        self.hub.forget(self.key, self.address_key)
        closes = self.hub.closes
        try:
            closes[self.code] = closes.get(self.code, 0) + 1
        except MemoryError:
            logger.error("out of memory: the end of a connection is not counted")
        self.wake_all()
        if self.blocks & ANY_HANDLER_RUNS:
            self.close_pending = True
            return
        PyContext_Enter(self.context)
        try:
            self.call_on_close()
        finally:
            PyContext_Exit(self.context)

    # What arrives

    cdef void process(self, const uint8_t **cursor, const uint8_t *end, uint64_t work_before) noexcept:
        """Handles events up to `end`, or until handling is blocked; the cursor is behind what has been handled.

        `work_before` is the parser's `inflating_work` at the beginning of this turn. Handling is blocked too when the
        connection has had its turn, which is bounded in messages, in time and in what is decompressed.
        """
        cdef Event event
        cdef Turn turn
        turn.events = 0
        turn.look_at = EVENTS_BETWEEN_LOOKS
        turn.look_at_queued = self.hub.ledger.messages.accepted + QUEUED_BETWEEN_LOOKS
        turn.is_timed = False
        while not self.input_ended:
            if not self.sheds and is_full(self):
                self.blocks |= OUTPUT_FULL
                self.link.notify_when_left(self.link.end_of_queue())
            if self.parser.inflating_work - work_before >= TURN_INFLATES:
                self.end_turn()
            if self.is_blocked():
                self.link.pause()
                return
            event = parser_next(&self.parser, cursor, end)
            if event == NEED_DATA:
                return
            self.dispatch(event)
            turn.events += 1
            if turn.events < turn.look_at and self.hub.ledger.messages.accepted < turn.look_at_queued:
                continue
            if cursor[0] < end and self.is_over(&turn):
                self.end_turn()

    cdef bint is_over(self, Turn *turn) noexcept:
        """Looks at the clock. Returns whether the connection has had its turn."""
        cdef double now = self.hub.clock()
        turn.look_at = turn.events + EVENTS_BETWEEN_LOOKS
        turn.look_at_queued = self.hub.ledger.messages.accepted + QUEUED_BETWEEN_LOOKS
        if not turn.is_timed:
            turn.is_timed = True
            turn.began = now
        if turn.events >= TURN_EVENTS:
            return True
        return now - turn.began >= (SHARED_SECONDS if self.hub.backlog.waiting else TURN_SECONDS)

    cdef void end_turn(self) noexcept:
        """Leaves what is unread to a later turn of the loop, unless there is no memory for that."""
        if not self.blocks & TURN_SPENT and self.hub.backlog.push(self, self.hub.loop):
            self.blocks |= TURN_SPENT

    cdef void continue_input(self) noexcept:
        self.unblock(TURN_SPENT)

    def _unblock(self, block):
        self.unblock(block)

    cdef void dispatch(self, Event event) noexcept:
        try:
            if event == MESSAGE:
                self.handle_message()
            elif event == FAILURE:
                reason = (<bytes>self.parser.failure_reason).decode("ascii")
                self.fail(self.parser.failure_code, reason)
            elif event == CLOSE:
                self.handle_close()
            else:
                self.handle_control(event)
        except BaseException as error:
            self.handler_failed(error, HANDLER_RUNS)

    cdef void handle_message(self):
        cdef Message message = message_from_frame(parser_take_message(&self.parser))
        cdef object result
        cdef double started = 0
        self.hub.ledger.messages_received += 1
        self.is_active = True
        self.spend(MESSAGES, 1)
        if self.status != IS_OPEN:
            return
        if self.handlers.on_message is not None:
            if self.hub.times_handlers:
                started = self.hub.clock()
            result = self.handlers.on_message(self, message)
            if result is not None and result is not QUEUED:
                self.run(result, HANDLER_RUNS)
            if self.hub.times_handlers:
                self.spend(HANDLER_TIME, <double>self.hub.clock() - started)
        elif self.receiving:
            if self.inbox is None:
                self.inbox = deque()
            self.inbox.append(message)
            self.inbox_kibibytes += inbox_charge(message)
            self.wake_receiver()
            if len(self.inbox) >= INBOX_LIMIT or self.inbox_kibibytes >= INBOX_KIBIBYTES:
                self.blocks |= INBOX_FULL

    cdef void handle_control(self, Event event):
        cdef FrameBuffer *frame = parser_take_control(&self.parser)
        cdef bytes payload = None
        handler = self.handlers.on_ping if event == PING else self.handlers.on_pong
        if handler is not None:
            payload = octets_of(frame)
        self.spend(CONTROL_FRAMES, 1)
        if event == PING and self.status == IS_OPEN:
            frame_seal(frame, PONG_OPCODE)
            self.queue_pong(frame)
        frame_release(frame)
        if event != PING:
            self.last_pong_time = self.hub.clock()
        if handler is not None and self.status == IS_OPEN:
            self.call(handler, (self, payload), HANDLER_RUNS)

    cdef void queue_pong(self, FrameBuffer *pong) noexcept:
        """Queues the answer to a ping, which no policy drops.

        Only the latest of several pings needs an answer (RFC 6455 section 5.5.3), and a peer that sends them without
        reading the answers gets to queue one, behind which the latest waits.
        """
        frame_release(self.pending_pong)
        self.pending_pong = NULL
        if is_full(self):
            self.link.flush_now()
        if self.link.blocked and self.link.given < self.pong_end:
            self.pending_pong = frame_retain(pong)
            self.link.notify_when_left(self.pong_end)
        elif self.link.write(pong) < 0:
            self.out_of_memory()
        else:
            self.pong_end = self.link.end_of_queue()

    cdef void handle_close(self):
        cdef FrameBuffer *frame = parser_take_control(&self.parser)
        cdef bytes payload = octets_of(frame)
        frame_release(frame)
        self.input_ended = True
        if not self.code:
            self.code = self.parser.close_code
            self.reason = payload[2:].decode()
        if self.status == IS_OPEN:
            # The answer has the client's code and reason (RFC 6455 section 5.5.1).
            self.begin_closing(payload)
        self.wake_receiver()
        self.link.abort(True)

    cdef void fail(self, uint16_t code, str reason) noexcept:
        """Fails the connection (RFC 6455 section 7.1.7): a close frame, then nothing more in either direction."""
        code = self.code_to_send(code)
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

    cdef uint16_t code_to_send(self, uint16_t code) noexcept:
        """The code with which the hub closes for a reason that has that code, as its handler says."""
        if self.handlers.close_codes is None:
            return code
        try:
            return self.handlers.close_codes.get(code, code)
        except MemoryError:
            return code

    cdef void begin_closing(self, bytes payload) noexcept:
        """Leaves all rooms and queues a close frame, unless the payload is None; nothing can be sent after it."""
        cdef FrameBuffer *frame
        self.leave_all_rooms()
        self.status = IS_CLOSING
        if self.hub.limits_input:
            self.left[OCTETS] = MOST_UNDER_WAY
        self.lifetime_end = self.hub.clock() + self.hub.close_timeout
        if payload is not None:
            try:
                frame = frame_from_payload(payload, CLOSE_OPCODE)
            except MemoryError:
                self.link.abort(False)
                return
            if self.link.write(frame) < 0:
                self.link.abort(False)
            frame_release(frame)
        if self.blocks:
            try:
                self.hub.loop.call_soon(self._unblock, 0)
            except (MemoryError, RuntimeError):
                # There is no memory, or no loop any more: then the time for closing runs out.
                pass

    cdef bint is_blocked(self) noexcept:
        """Whether what arrives is not to be handled now.

        Of a connection that is closing only the peer's close frame is: what stands before it is read and ignored.
        """
        if self.status == IS_CLOSING:
            return self.blocks & TURN_SPENT != 0
        return self.blocks != 0 and (self.blocks != ON_OPEN_RUNS or not self.receiving)

    cdef void unblock(self, uint8_t block) noexcept:
        """Clears that reason for being blocked, and goes on with what is unread unless there is another."""
        self.blocks &= ~block
        if self.status == IS_CLOSED or self.link is None:
            return
        if self.unread is not None and not self.is_blocked():
            if block != TURN_SPENT and self.hub.backlog.waiting:
                # Others wait for their turn already.
                self.end_turn()
            else:
                self.process_unread()
        if self.unread is None and not self.is_blocked():
            self.link.resume()

    cdef void unblock_later(self, uint8_t block) noexcept:
        """unblock() where it may be done for many connections at once: what is unread waits for its turn."""
        self.blocks &= ~block
        if self.unread is not None and not self.is_blocked():
            self.end_turn()
        self.unblock(0)

    cdef void process_unread(self) noexcept:
        cdef bytes unread = self.unread
        cdef const uint8_t *start = <const uint8_t *>unread
        cdef const uint8_t *cursor = start + self.unread_offset
        cdef const uint8_t *end = start + len(unread)
        PyContext_Enter(self.context)
        self.process(&cursor, end, self.parser.inflating_work)
        PyContext_Exit(self.context)
        if cursor == end or self.input_ended:
            self.unread = None
        else:
            self.unread_offset = cursor - start

    # Handlers

    cdef object call(self, object handler, tuple arguments, uint8_t block):
        """Calls a handler, if there is one, within this connection's context. Never raises.

        While it is suspended, that block is set.
        """
        if handler is None:
            return
        try:
            result = handler(*arguments)
            if result is not None and result is not QUEUED:
                self.run(result, block)
        except BaseException as error:
            self.handler_failed(error, block)

    cdef object run(self, object awaitable, uint8_t block):
        """Runs what a coroutine handler returned in a task of its own, which starts at once.

        While the task is suspended, the block is set.
        """
        if not iscoroutine(awaitable):
            if not isawaitable(awaitable):
                if PyGen_CheckExact(awaitable) or PyAsyncGen_CheckExact(awaitable):
                    raise MisuseError(f"the handler returned {awaitable!r}, which runs nothing: a handler has no yield")
                return
            awaitable = await_it(awaitable)
        if not self.is_named:
            self.hub.handling.set(self.key)
            self.is_named = True
        # The task enters the context itself, which cannot be entered twice.
        PyContext_Exit(self.context)
        try:
            task = start_handler_task(self.hub.loop, awaitable, self.context)
        finally:
            PyContext_Enter(self.context)
        if not task.done():
            self.blocks |= block
            self.hub.handler_tasks[task] = self.key
            task.add_done_callback(partial(self._handler_done, block))
            return
        error = error_of(task)
        if error is not None:
            self.handler_failed(error, block)

    def _handler_done(self, uint8_t block, task):
        self.hub.handler_tasks.pop(task, None)
        self.blocks &= ~block
        error = error_of(task)
        PyContext_Enter(self.context)
        try:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                # The task has raised it out of the loop already.
                self.retire("")
            elif error is not None:
                self.handler_failed(error, block)
            self.tells_of_error &= self.blocks
            if self.handlers.endpoint:
                self.end_endpoint()
            self.call_on_drain()
            if self.close_pending and not self.blocks & ANY_HANDLER_RUNS:
                self.close_pending = False
                self.call_on_close()
        finally:
            PyContext_Exit(self.context)
        self.unblock(0)

    cdef void handler_failed(self, object error, uint8_t block) noexcept:
        """A handler has raised. The application is told, in its place, and the connection is closed with 1011."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.hub.loop.call_soon(self.hub._exit, error)
            return
        if self.status >= IS_CLOSING and tells_of_an_end(error):
            # The handler noticed the end of its connection in the middle of its work.
            return
        if self.tells_of_error & block:
            self.tells_of_error &= ~block
            logger.error("on_error of %r has failed itself", self, exc_info=error)
            return
        if isinstance(error, asyncio.CancelledError):
            # Somebody meant it, and knows where.
            logger.warning("a handler of %r was cancelled: the connection is closed with 1011", self)
        else:
            logger.error("a handler of %r has failed", self, exc_info=error)
        if self.status == IS_OPEN:
            self.code = self.code_to_send(1011)
            self.begin_closing(encode_close_payload(self.code, "internal error"))
        if self.handlers.on_error is not None:
            self.tells_of_error |= block
            self.call(self.handlers.on_error, (self, error), block)
            self.tells_of_error &= self.blocks

    cdef object call_on_drain(self):
        """Tells that all which had to wait has left, if that is still to be told.

        A handler that is suspended is let end first, unless it is an on_open that receives: that may be the whole life
        of the connection.
        """
        if not self.drain_pending or self.status != IS_OPEN:
            return
        if self.blocks & HANDLER_RUNS or (self.blocks & ON_OPEN_RUNS and not self.receiving):
            return
        if not self.link.has_drained():
            # More has been queued since: it is told when that has left.
            self.link.notify_drained = True
            return
        self.drain_pending = False
        self.call(self.handlers.on_drain, (self,), HANDLER_RUNS)

    cdef object call_on_close(self):
        if self.opened:
            self.opened = False
            self.call(self.handlers.on_close, (self, self.code, self.reason), HANDLER_RUNS)


cdef object error_of(object task):
    """The exception that ended a task, asyncio.CancelledError included, or None. The task must be done."""
    try:
        return task.exception()
    except asyncio.CancelledError as cancelled:
        return cancelled


cdef bint tells_of_an_end(object error):
    """Whether the error, or every error of a group, is what a handler gets when its connection ends."""
    if isinstance(error, BaseExceptionGroup):
        return all([tells_of_an_end(each) for each in error.exceptions])
    return isinstance(error, (ConnectionClosed, asyncio.CancelledError))


async def await_it(awaitable):
    """A coroutine that awaits any awaitable."""
    return await awaitable
