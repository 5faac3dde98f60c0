# cython: language_level=3
"""The input of a connection: bytes from the link become events of the parser, and events become calls of handlers.

One connection gets a share of a loop iteration, a Budget of messages, time and decompressed bytes. When the budget is
spent, or input is blocked for another reason, the bytes not parsed yet wait in `unread`, and the link is paused.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

from wshub.core.closing cimport abort_out_of_memory, begin_closing, fail, finish_closing, wake_receiver
from wshub.core.connection_state cimport (
    BUDGET_SPENT,
    HANDLER_RUNS,
    INBOX_FULL,
    INBOX_KIBIBYTES,
    INBOX_LIMIT,
    IS_CLOSED,
    IS_OPEN,
    OUTPUT_FULL,
    inbox_charge,
    is_blocked,
    is_full,
    wait_for_next_iteration,
)
from wshub.core.handlers cimport call_handler, call_on_close, call_on_drain, handler_failed, run_awaitable
from wshub.core.hub_state cimport CONTROL_FRAMES, MESSAGES, BYTES
from wshub.core.keepalive cimport note_pong
from wshub.core.observed_calls cimport call_observed
from wshub.core.queued cimport QUEUED
from wshub.core.rates cimport spend
from wshub.core.sending cimport queue_pong, wake_drain_waiters
from wshub.links.clock cimport read_clock
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_payload, frame_release, frame_seal
from wshub.protocol.opcodes cimport MESSAGE_TOO_BIG, POLICY_VIOLATION, PONG_OPCODE
from wshub.protocol.message cimport Message, message_from_frame
from wshub.protocol.parser cimport (
    CLOSE,
    FAILURE,
    MESSAGE,
    NEED_DATA,
    PING,
    Event,
    parser_buffer_updated,
    parser_get_buffer,
    parser_next,
    parser_take_control,
    parser_take_message,
)

from collections import deque

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1


cdef enum:
    # Maximum number of bytes that a connection decompresses in one loop iteration, or of work that costs as much.
    BUDGET_INFLATES = 1 << 20
    # Maximum number of messages and control frames that are handled in one loop iteration.
    BUDGET_EVENTS = 1024
    # Events after which the clock is read for the first time, and again.
    EVENTS_BEFORE_FIRST_LOOK = 4
    EVENTS_BETWEEN_LOOKS = 8
    # Queued messages after which the clock is read too, since one event may queue a message for a whole room.
    QUEUED_BETWEEN_LOOKS = 512

# Seconds that a connection may use of a loop iteration, alone and while others wait in the backlog.
cdef double BUDGET_SECONDS = 0.001
cdef double SHARED_SECONDS = 0.0005


cdef struct Budget:
    # The use that a connection has made of its share of this loop iteration.
    int events              # handled so far
    int look_at             # the number of events at which the clock is read next
    uint64_t look_at_queued  # ... and the number of messages that the hub has ever queued
    bint is_timed           # the clock was read before
    double began            # when it was read first


cdef class ReceivingConnection(ConnectionCore):
    """The receiver of a link."""

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef const uint8_t *cursor = data
        cdef const uint8_t *end = data + length

        self.liveness.is_alive = True
        if self.input_ended:
            return
        self.bytes_received += length
        spend(self, BYTES, length)
        if self.unread is not None:
            # The link had read these bytes before it was paused.
            try:
                self.unread = self.unread[self.unread_offset:] + data[:length]
                self.unread_offset = 0
            except MemoryError:
                abort_out_of_memory(self)
            return
        PyContext_Enter(self.context)
        process(self, &cursor, end, self.parser.inflating_work)
        PyContext_Exit(self.context)
        if cursor < end and not self.input_ended:
            try:
                self.unread = cursor[:end - cursor]
                self.unread_offset = 0
            except MemoryError:
                abort_out_of_memory(self)

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        # While input is blocked, no message may become complete. Bytes that data_received() gets can stay unread.
        if self.input_ended or self.unread is not None or is_blocked(self):
            return 0
        return parser_get_buffer(&self.parser, buffer)

    cdef void buffer_updated(self, size_t length) noexcept:
        cdef Event event
        cdef const uint8_t *nothing = NULL
        cdef uint64_t work_before = self.parser.inflating_work
        self.liveness.is_alive = True
        self.bytes_received += length
        spend(self, BYTES, length)
        if self.input_ended:
            return
        event = parser_buffer_updated(&self.parser, length)
        if event == NEED_DATA:
            return
        PyContext_Enter(self.context)
        dispatch(self, event)
        process(self, &nothing, nothing, work_before)
        PyContext_Exit(self.context)

    cdef void eof_received(self) noexcept:
        if self.status == IS_OPEN:
            self.code = 1006
            begin_closing(self, None)
        self.input_ended = True
        wake_receiver(self)
        self.link.abort(True)

    cdef void drained(self) noexcept:
        cdef FrameBuffer *pong = self.pending_pong
        cdef bint all_left = self.link.has_drained()
        wake_drain_waiters(self, all_left)
        if pong != NULL:
            self.pending_pong = NULL
            if self.status == IS_OPEN:
                queue_pong(self, pong)
            frame_release(pong)
        if all_left and self.link.was_blocked:
            # The handlers of unread messages may fill the queue again. Then on_drain is called once more.
            self.link.was_blocked = False
            self.drain_pending = True
        if self.blocks & OUTPUT_FULL:
            if is_full(self):
                self.link.notify_when_left(self.link.end_of_queue())
            else:
                self.resume_input(OUTPUT_FULL)
        PyContext_Enter(self.context)
        call_on_drain(self)
        PyContext_Exit(self.context)

    cdef void continue_input(self) noexcept:
        self.resume_input(BUDGET_SPENT)

    cdef void connection_lost(self, int error) noexcept:
        if not finish_closing(self):
            return
        PyContext_Enter(self.context)
        try:
            call_on_close(self)
        finally:
            PyContext_Exit(self.context)

    cdef void resume_input(self, uint8_t block) noexcept:
        self.blocks &= ~block
        if self.status == IS_CLOSED or self.link is None:
            return
        if self.unread is not None and not is_blocked(self):
            if block != BUDGET_SPENT and self.hub.backlog.waiting:
                # Other connections wait for the next iteration already.
                wait_for_next_iteration(self)
            else:
                process_unread(self)
        if self.unread is None and not is_blocked(self):
            self.link.resume()


# Events

cdef void process_unread(ConnectionCore connection) noexcept:
    """process() for the bytes that waited while input was blocked."""
    cdef bytes unread = connection.unread
    cdef const uint8_t *start = <const uint8_t *>unread
    cdef const uint8_t *cursor = start + connection.unread_offset
    cdef const uint8_t *end = start + len(unread)
    PyContext_Enter(connection.context)
    process(connection, &cursor, end, connection.parser.inflating_work)
    PyContext_Exit(connection.context)
    if cursor == end or connection.input_ended:
        connection.unread = None
    else:
        connection.unread_offset = cursor - start


cdef void process(
    ConnectionCore connection, const uint8_t **cursor, const uint8_t *end, uint64_t work_before
) noexcept:
    """Handle events up to `end`, or until input is blocked. Moves the cursor behind the bytes that were handled.

    `work_before` is the parser's `inflating_work` from before the first event of this loop iteration.
    """
    cdef Event event
    cdef Budget budget
    budget.events = 0
    budget.look_at = EVENTS_BEFORE_FIRST_LOOK
    budget.look_at_queued = connection.hub.counters.messages.accepted + QUEUED_BETWEEN_LOOKS
    budget.is_timed = False
    budget.began = 0
    while not connection.input_ended:
        if not connection.is_dropping and is_full(connection):
            connection.blocks |= OUTPUT_FULL
            connection.link.notify_when_left(connection.link.end_of_queue())
        if connection.parser.inflating_work - work_before >= BUDGET_INFLATES:
            wait_for_next_iteration(connection)
        if is_blocked(connection):
            connection.link.pause()
            return
        event = parser_next(&connection.parser, cursor, end)
        if event == NEED_DATA:
            return
        dispatch(connection, event)
        budget.events += 1
        if budget.events < budget.look_at and connection.hub.counters.messages.accepted < budget.look_at_queued:
            continue
        if cursor[0] < end and is_spent(connection, &budget):
            wait_for_next_iteration(connection)


cdef bint is_spent(ConnectionCore connection, Budget *budget) noexcept:
    """Read the clock. Returns whether the connection has used its share of this loop iteration."""
    cdef double now = read_clock(connection.hub.clock, connection.hub.clock_is_monotonic)
    budget.look_at = budget.events - budget.events % EVENTS_BETWEEN_LOOKS + EVENTS_BETWEEN_LOOKS
    budget.look_at_queued = connection.hub.counters.messages.accepted + QUEUED_BETWEEN_LOOKS
    if not budget.is_timed:
        budget.is_timed = True
        budget.began = now
    if budget.events >= BUDGET_EVENTS:
        return True
    return now - budget.began >= (SHARED_SECONDS if connection.hub.backlog.waiting else BUDGET_SECONDS)


cdef void dispatch(ConnectionCore connection, Event event) noexcept:
    """Handle one event. An exception of a handler goes to handler_failed()."""
    try:
        if event == MESSAGE:
            handle_message(connection)
        elif event == FAILURE:
            reason = (<bytes>connection.parser.failure_reason).decode("ascii")
            fail(connection, connection.parser.failure_code, reason)
            note_limit(connection)
        elif event == CLOSE:
            handle_close(connection)
        else:
            handle_control(connection, event)
    except BaseException as error:
        # For another event than a message, this is a lack of memory: call_handler() handles what its handler raises.
        handler_failed(connection, error, HANDLER_RUNS, "on_message")


cdef int note_limit(ConnectionCore connection) except -1:
    """Warn, once for the hub, that a message was too long or had too many fragments."""
    if connection.parser.failure_code == MESSAGE_TOO_BIG:
        connection.hub.limit_log.reached("max_message_size")
    elif connection.parser.failure_code == POLICY_VIOLATION:
        connection.hub.limit_log.reached("max_fragments")
    return 0


cdef int handle_message(ConnectionCore connection) except -1:
    """Give a message to on_message, or put it in the inbox for receive()."""
    cdef Message message = message_from_frame(parser_take_message(&connection.parser))
    cdef object result
    connection.hub.counters.messages_received += 1
    connection.is_active = True
    spend(connection, MESSAGES, 1)
    if connection.status != IS_OPEN:
        return 0
    if connection.handlers.on_message is not None:
        if connection.hub.observes_handlers:
            call_observed(connection, message)
            return 0
        result = connection.handlers.on_message(connection, message)
        if result is not None and result is not QUEUED:
            run_awaitable(connection, result, HANDLER_RUNS, "on_message", None)
    elif connection.receiving:
        if connection.inbox is None:
            connection.inbox = deque()
        connection.inbox.append(message)
        connection.inbox_kibibytes += inbox_charge(message)
        wake_receiver(connection)
        if len(connection.inbox) >= INBOX_LIMIT or connection.inbox_kibibytes >= INBOX_KIBIBYTES:
            connection.blocks |= INBOX_FULL
    return 0


cdef int handle_control(ConnectionCore connection, Event event) except -1:
    """Answer a ping, and call on_ping or on_pong."""
    cdef FrameBuffer *frame = parser_take_control(&connection.parser)
    cdef bytes payload = None
    handler = connection.handlers.on_ping if event == PING else connection.handlers.on_pong
    if handler is not None:
        payload = payload_of(frame)
    spend(connection, CONTROL_FRAMES, 1)
    if event == PING and connection.status == IS_OPEN:
        frame_seal(frame, PONG_OPCODE)
        queue_pong(connection, frame)
    frame_release(frame)
    if event != PING:
        note_pong(connection)
    if handler is not None and connection.status == IS_OPEN:
        call_handler(
            connection, handler, (connection, payload), HANDLER_RUNS, "on_ping" if event == PING else "on_pong"
        )
    return 0


cdef int handle_close(ConnectionCore connection) except -1:
    """Answer the peer's close frame, unless it is the answer to ours, and end the link."""
    cdef FrameBuffer *frame = parser_take_control(&connection.parser)
    cdef bytes payload = payload_of(frame)
    frame_release(frame)
    connection.input_ended = True
    if not connection.code:
        connection.code = connection.parser.close_code
        connection.reason = payload[2:].decode()
    if connection.status == IS_OPEN:
        # The answer has the client's code and reason (RFC 6455 section 5.5.1).
        begin_closing(connection, payload)
    wake_receiver(connection)
    connection.link.abort(True)
    return 0


cdef bytes payload_of(FrameBuffer *frame):
    """A copy of the payload. Releases the frame if it raises MemoryError."""
    try:
        return frame_payload(frame)[:frame.length]
    except MemoryError:
        frame_release(frame)
        raise
