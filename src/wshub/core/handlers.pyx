# cython: language_level=3
"""Calls of the application's handlers, and the tasks of those that are coroutines.

A coroutine handler runs in an asyncio task of its own, as if ``asyncio.eager_task_factory`` had made it: its first step
runs before the hub goes on. A handler that does not suspend costs no loop iteration. While it is suspended, a block of
the connection is set. If the loop has a task factory, the factory makes the tasks and decides when they start.
"""

from libc.stdint cimport uint16_t

from wshub.core.closing cimport begin_closing, close_returned_endpoint, close_going_away, code_to_send
from wshub.core.connection_logging cimport log_opened
from wshub.core.connection_state cimport (
    ANY_HANDLER_RUNS,
    HANDLER_RUNS,
    IS_CLOSING,
    IS_OPEN,
    ON_OPEN_RUNS,
)
from wshub.core.hub_state cimport RATES
from wshub.core.keepalive cimport start_deadlines
from wshub.core.queued cimport QUEUED

import asyncio
import logging
from functools import partial
from inspect import isawaitable, iscoroutine

from wshub.errors import ConnectionClosed, MisuseError, UnexpectedMessageError
from wshub.links.eager_task import start_eager_task
from wshub.protocol.close_code import encode_close_payload

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    bint PyGen_CheckExact(object value)
    bint PyAsyncGen_CheckExact(object value)

logger = logging.getLogger("wshub.server")

cdef str TASK_NAME = "wshub handler"


cdef int start(ConnectionCore connection, Link link) except -1:
    """Open the connection on a link, on which the answer to the handshake is queued, and call on_open.

    A connection that was closed before the opening is closed with its code and reason instead.
    """
    cdef bint closes_at_once = connection.status == IS_CLOSING
    cdef int kind
    cdef double now = connection.hub.clock()
    connection.link = link
    link.receiver = connection
    connection.status = IS_OPEN
    connection.hub.window_changes += connection.room_table is not None
    start_deadlines(connection, now)
    connection.hub.connections_opened += 1
    log_opened(connection, now)
    for kind in range(RATES):
        connection.left[kind] = connection.hub.rates[kind].at_most
    if closes_at_once:
        payload = encode_close_payload(connection.code, connection.reason)
        connection.code = 0
        connection.reason = ""
        begin_closing(connection, payload)
        return 0
    link.notifies_drained = connection.handlers.on_drain is not None
    connection.opened = True
    PyContext_Enter(connection.context)
    try:
        call_handler(connection, connection.handlers.on_open, (connection,), ON_OPEN_RUNS, "on_open")
        if connection.handlers.endpoint:
            close_returned_endpoint(connection)
    finally:
        PyContext_Exit(connection.context)
    return 0


cdef int call_handler(
    ConnectionCore connection, object handler, tuple arguments, uint8_t block, str event
) except -1:
    """Call the handler of an event, if there is one, in the connection's context. Exceptions go to handler_failed().

    The block is set while the handler is suspended.
    """
    if handler is None:
        return 0
    try:
        result = handler(*arguments)
        if result is not None and result is not QUEUED:
            run_awaitable(connection, result, block, event, None)
    except BaseException as error:
        handler_failed(connection, error, block, event)
    return 0


cdef bint run_awaitable(
    ConnectionCore connection, object awaitable, uint8_t block, str event, object ended
) except -1:
    """Run the awaitable that the handler of an event returned, in a task whose first step runs now.

    Raise MisuseError for a generator. Any other value is ignored; then return False. The block is set while the task is
    suspended. `ended` is None, or a function that is called with the task when it is done.
    """
    if not iscoroutine(awaitable):
        if not isawaitable(awaitable):
            if PyGen_CheckExact(awaitable) or PyAsyncGen_CheckExact(awaitable):
                raise MisuseError(f"{event} returned {awaitable!r}, which runs nothing: a handler has no yield")
            return False
        awaitable = await_it(awaitable)
    if not connection.is_named:
        connection.hub.handling.set(connection.connection_id)
        connection.is_named = True
    # The task enters the context itself, and a context cannot be entered twice.
    PyContext_Exit(connection.context)
    try:
        task = start_task(connection.hub.loop, awaitable, connection.context)
    finally:
        PyContext_Enter(connection.context)
    if not task.done():
        connection.blocks |= block
        connection.hub.handler_tasks[task] = connection
        if ended is not None:
            task.add_done_callback(ended, context=connection.context)
        task.add_done_callback(partial(task_done, connection, block, event))
        return True
    if ended is not None:
        ended(task)
    error = error_of(task)
    if error is not None:
        handler_failed(connection, error, block, event)
    return True


cdef object start_task(object loop, object coroutine, object context):
    if loop.get_task_factory() is not None:
        return loop.create_task(coroutine, name=TASK_NAME, context=context)
    return start_eager_task(loop, coroutine, context, TASK_NAME)


def task_done(ConnectionCore connection, uint8_t block, str event, task):
    """Go on after the task of a suspended handler: call the handlers that waited for it, and resume input."""
    connection.hub.handler_tasks.pop(task, None)
    connection.blocks &= ~block
    error = error_of(task)
    PyContext_Enter(connection.context)
    try:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            # The task has raised the error out of the loop already.
            close_going_away(connection, "")
        elif error is not None:
            handler_failed(connection, error, block, event)
        connection.error_blocks &= connection.blocks
        if connection.handlers.endpoint:
            close_returned_endpoint(connection)
        call_on_drain(connection)
        if connection.close_pending and not connection.blocks & ANY_HANDLER_RUNS:
            connection.close_pending = False
            call_on_close(connection)
    finally:
        PyContext_Exit(connection.context)
    connection.resume_input(0)


cdef void handler_failed(ConnectionCore connection, object error, uint8_t block, str event) noexcept:
    """Log the exception of the handler of an event, close the connection with 1011, and call on_error in its place.

    A message that the application did not expect closes the connection with the error's own code. It is the client's
    mistake, so it does not fill the log.
    """
    cdef uint16_t code = 1011
    cdef str reason = "internal error"
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        connection.hub.loop.call_soon(connection.hub.close_and_raise, error)
        return
    if connection.status >= IS_CLOSING and is_end_of_connection(error):
        # The handler noticed the end of its connection in the middle of its work.
        return
    if connection.error_blocks & block:
        connection.error_blocks &= ~block
        logger.error("%s of %r raised an exception itself", named(connection, "on_error"), connection, exc_info=error)
        return
    if isinstance(error, UnexpectedMessageError):
        code, reason = error.code, error.reason
        logger.debug("%s of %r got an unexpected message: %s", named(connection, event), connection, error)
    elif isinstance(error, asyncio.CancelledError):
        # The application cancelled the handler and needs no traceback.
        logger.warning("%s of %r was cancelled: closing with 1011", named(connection, event), connection)
    else:
        logger.error("%s of %r has failed", named(connection, event), connection, exc_info=error)
    if connection.status == IS_OPEN:
        connection.code = code_to_send(connection, code)
        connection.reason = reason
        begin_closing(connection, encode_close_payload(connection.code, reason))
    if connection.handlers.on_error is not None:
        connection.error_blocks |= block
        call_handler(connection, connection.handlers.on_error, (connection, error), block, "on_error")
        connection.error_blocks &= connection.blocks


cdef int call_on_drain(ConnectionCore connection) except -1:
    """Call on_drain if it is due.

    It waits for a suspended handler. It does not wait for on_open if the connection receives: on_open may then run as
    long as the connection.
    """
    if not connection.drain_pending or connection.status != IS_OPEN:
        return 0
    if connection.blocks & HANDLER_RUNS or (connection.blocks & ON_OPEN_RUNS and not connection.receiving):
        return 0
    if not connection.link.has_drained():
        # More was queued since. on_drain is called when all of it has left.
        connection.link.drain_requested = True
        return 0
    connection.drain_pending = False
    return call_handler(connection, connection.handlers.on_drain, (connection,), HANDLER_RUNS, "on_drain")


cdef int call_on_close(ConnectionCore connection) except -1:
    """Call on_close if on_open was called."""
    if not connection.opened:
        return 0
    connection.opened = False
    return call_handler(
        connection, connection.handlers.on_close, (connection, connection.code, connection.reason), HANDLER_RUNS,
        "on_close",
    )


cdef str named(ConnectionCore connection, str event):
    """Return an event with the name of the function that handles it, for the log."""
    function = getattr(connection.handlers.handler, event, None)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if connection.handlers.endpoint and event == "on_open":
        return f"the endpoint {name}()"
    return f"{event} ({name})"


cdef object error_of(object task):
    """Return the exception that ended a task, asyncio.CancelledError included, or None. The task must be done."""
    try:
        return task.exception()
    except asyncio.CancelledError as cancelled:
        return cancelled


cdef bint is_end_of_connection(object error):
    """Whether a handler gets this error, or every error of this group, because its connection ends."""
    if isinstance(error, BaseExceptionGroup):
        return all([is_end_of_connection(each) for each in error.exceptions])
    return isinstance(error, (ConnectionClosed, asyncio.CancelledError))


async def await_it(awaitable):
    """Await any awaitable, in a coroutine."""
    return await awaitable
