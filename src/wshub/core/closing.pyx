# cython: language_level=3
"""How a connection ends, and how the application's waits end with it.

    Cause                                  Function                  Close frame               Passed to on_close:
    The application calls close()          begin_closing             its code and reason       the code of the answer.
    The hub closes                         close_if_open             1001, or the hub's code   the code of the answer.
    idle_timeout or max_lifetime is over   close_going_away          1001                      the code of the answer.
    The endpoint returns                   close_returned_endpoint   1000                      the code of the answer.
    The client sends a close frame         begin_closing             the client's payload      the client's code.
    A handler raises                       handler_failed            1011                      1011, after on_error.
    The message is not the expected one    handler_failed            1003 or 1007              the same, after on_error.
    The client breaks the protocol         fail                      1002, 1007 or 1009        the code that was sent.
    A rate is exceeded under "close"       fail                      1008                      the code that was sent.
    The queue is full under "close"        fail_slow_consumer        1013, queue dropped       the code that was sent.
    There is no memory for a message       abort_out_of_memory       none                      1011.
    The client is silent or stalled        abort                     none                      1006.
    The client hangs up, no close frame    begin_closing             none                      1006.
    The link is lost                       finish_closing            none                      the known code, or 1006.
    The loop has closed                    close_without_loop        none                      not called.
    close() is called before the opening   close_before_opening      its own, after the 101    not called.
    The handshake fails                    cancel_opening            none                      not called.

handler_failed() is in handlers.pyx, fail_slow_consumer() in slow_consumers.pyx. keepalive.pyx calls abort().

EventHandler.close_codes may replace 1002, 1003, 1007, 1008, 1009, 1011 and 1013 in a close frame. If the client does
not answer within close_timeout, its connection is aborted. on_close is called if on_open was. The loss of the link ends
receive(), wait_closed() and drain(); fail() ends receive() at once.
"""

from wshub.core.connection_logging cimport log_closed
from wshub.core.hub_state cimport BYTES
from wshub.core.rooms cimport leave_all_rooms
from wshub.core.connection_state cimport (
    ANY_HANDLER_RUNS,
    IS_CLOSED,
    IS_CLOSING,
    IS_CONNECTING,
    IS_OPEN,
    ON_OPEN_RUNS,
)
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_release
from wshub.protocol.opcodes cimport CLOSE_OPCODE
from wshub.protocol.message cimport frame_from_payload
from wshub.protocol.parser cimport parser_clear

import logging

from wshub.errors import ConnectionClosed, ConnectionLost, MisuseError
from wshub.protocol.close_code import decode_close_payload, encode_close_payload

logger = logging.getLogger("wshub.server")

cdef enum:
    # Bytes that a connection with rates may still send after it was told to close. The client may have had as much
    # under way: its kernel buffers up to 4 MiB unless it is configured otherwise.
    CLOSING_ALLOWANCE = 4 << 20


# Errors

cdef bint is_normal(int code):
    """Whether a close with this code raises ConnectionClosed. Other codes raise ConnectionLost."""
    return code in (1000, 1001, 1005) or code >= 3000


cdef object closed_error(ConnectionCore connection):
    """Return the exception for a call that needs an open connection."""
    cdef int code = connection.code if connection.code else 1006
    if connection.status == IS_CLOSING and not connection.code:
        return ConnectionClosed(1000, "it is closing")
    return (ConnectionClosed if is_normal(code) else ConnectionLost)(code, connection.reason)


cdef object check_open(ConnectionCore connection):
    """Raise MisuseError if the connection is not open yet, and closed_error() if it is closing or closed."""
    if connection.status == IS_CONNECTING:
        raise MisuseError("the connection is not open yet: send, drain and wait_writable work from on_open on")
    if connection.status != IS_OPEN:
        raise closed_error(connection)


# Closing with a close frame

cdef void begin_closing(ConnectionCore connection, bytes payload) noexcept:
    """Leave all rooms and queue a close frame. With None as the payload, no frame is sent.

    Nothing can be sent after this call.
    """
    cdef FrameBuffer *frame
    leave_all_rooms(connection)
    connection.status = IS_CLOSING
    if connection.hub.limits_input:
        connection.left[BYTES] = CLOSING_ALLOWANCE
    connection.liveness.lifetime_end = connection.hub.clock() + connection.hub.close_timeout
    if payload is not None:
        try:
            frame = frame_from_payload(payload, CLOSE_OPCODE)
        except MemoryError:
            connection.link.abort(False)
            return
        if connection.link.write(frame) < 0:
            connection.link.abort(False)
        frame_release(frame)
    if connection.blocks:
        try:
            connection.hub.loop.call_soon(connection._unblock, 0)
        except (MemoryError, RuntimeError):
            # MemoryError: close_timeout ends the connection. RuntimeError: the loop has closed, so nothing runs.
            pass


cdef object close_before_opening(ConnectionCore connection, bytes payload):
    """Keep code and reason until start(), which sends them."""
    leave_all_rooms(connection)
    connection.status = IS_CLOSING
    connection.code, connection.reason = decode_close_payload(payload)


cdef void close_if_open(ConnectionCore connection, bytes payload) noexcept:
    """Close with this payload if the connection is open."""
    if connection.status == IS_OPEN:
        begin_closing(connection, payload)


cdef void close_going_away(ConnectionCore connection, str reason) noexcept:
    """Close with 1001. Without memory for the payload, the next sweep tries again."""
    try:
        payload = encode_close_payload(1001, reason)
    except MemoryError:
        return
    close_if_open(connection, payload)


cdef object close_returned_endpoint(ConnectionCore connection):
    """Close with 1000 if the coroutine that handles the whole connection has returned."""
    if connection.status == IS_OPEN and not connection.blocks & ON_OPEN_RUNS:
        begin_closing(connection, encode_close_payload(1000, ""))


cdef void fail(ConnectionCore connection, uint16_t code, str reason) noexcept:
    """Fail the connection (RFC 6455 section 7.1.7): send a close frame, then ignore all further input."""
    code = code_to_send(connection, code)
    connection.input_ended = True
    if not connection.code:
        connection.code = code
        connection.reason = reason
    if connection.status == IS_OPEN:
        try:
            payload = encode_close_payload(code, reason)
        except MemoryError:
            payload = None
        begin_closing(connection, payload)
    wake_receiver(connection)
    connection.link.abort(True)


cdef uint16_t code_to_send(ConnectionCore connection, uint16_t code) noexcept:
    """Return the code that the handler's close_codes gives for this code, or the same code."""
    if connection.handlers.close_codes is None:
        return code
    try:
        return connection.handlers.close_codes.get(code, code)
    except MemoryError:
        return code


# Ends without a close frame

cdef void abort(ConnectionCore connection, uint16_t code, str reason) noexcept:
    """End the link at once, without a close frame."""
    connection.code = code
    connection.reason = reason
    connection.input_ended = True
    connection.link.abort(False)


cdef void abort_out_of_memory(ConnectionCore connection) noexcept:
    """Abort because a message to or from the client is lost."""
    abort(connection, 1011, "out of memory")


cdef object cancel_opening(ConnectionCore connection):
    """Close a connection whose handshake was not answered with 101. Calls no handler."""
    if connection.link is not None or connection.status == IS_CLOSED:
        return
    leave_all_rooms(connection)
    connection.status = IS_CLOSED
    connection.code = 1006
    connection.reason = ""
    connection.hub.forget(connection.connection_id, connection.address_bucket)
    wake_all(connection)


cdef void close_without_loop(ConnectionCore connection) noexcept:
    """Close a connection whose hub or loop is gone. A closed loop can call no handler."""
    if connection.hub.loop.is_closed():
        connection.opened = False
    if connection.link is None:
        cancel_opening(connection)
    else:
        connection.connection_lost(0)


cdef bint finish_closing(ConnectionCore connection) noexcept:
    """Become CLOSED, since the link is gone. Returns whether on_close can be called now.

    If a handler is suspended, on_close is called when that handler has ended.
    """
    if connection.status == IS_CLOSED:
        return False
    if connection.status != IS_CLOSING:
        leave_all_rooms(connection)
    connection.status = IS_CLOSED
    connection.input_ended = True
    connection.unread = None
    parser_clear(&connection.parser)
    if not connection.code:
        connection.code = 1006
    connection.hub.forget(connection.connection_id, connection.address_bucket)
    closes = connection.hub.closes
    try:
        closes[connection.code] = closes.get(connection.code, 0) + 1
    except MemoryError:
        logger.error("out of memory: the end of a connection is not counted")
    if connection.log is not None:
        log_closed(connection)
    wake_all(connection)
    if connection.blocks & ANY_HANDLER_RUNS:
        connection.close_pending = True
        return False
    return True


# Waits

cdef void wake(object future) noexcept:
    try:
        if not future.done():
            future.set_result(None)
    except RuntimeError:
        # The loop has closed, so the waiting task never runs again.
        pass


cdef void wake_receiver(ConnectionCore connection) noexcept:
    if connection.waiter is not None:
        wake(connection.waiter[0])


cdef void wake_all(ConnectionCore connection) noexcept:
    """End every wait for a connection that is CLOSED."""
    wake_receiver(connection)
    waiters, connection.waiters = connection.waiters, None
    for future in waiters or ():
        wake(future)
    fail_drain_waiters(connection)


cdef void fail_drain_waiters(ConnectionCore connection) noexcept:
    """Raise closed_error() in each pending drain(): the bytes that it waits for are lost."""
    waiters, connection.drain_waiters = connection.drain_waiters, None
    for future in waiters or ():
        if future.done():
            continue
        try:
            future.set_exception(closed_error(connection))
        except RuntimeError:
            # The loop has closed, so the waiting task never runs again.
            return
