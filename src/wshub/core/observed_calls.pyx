# cython: language_level=3
"""Calls of on_message that are observed: their time is limited or measured, or they have spans.

A hub that does none of that calls on_message without this module.
"""

from wshub.core.connection_state cimport HANDLER_RUNS
from wshub.core.handlers cimport error_of, run_awaitable
from wshub.core.hub_state cimport HANDLER_TIME, HubBase
from wshub.core.queued cimport QUEUED
from wshub.core.rates cimport spend


cdef class ObservedCall:
    """One call of on_message, from its begin to the end of its coroutine. It is called with the coroutine's task."""

    cdef HubBase hub
    cdef double began
    cdef object span   # Span of the Tracer, or None
    cdef bint has_ended

    def __call__(self, task):
        self.end(error_of(task))

    cdef object end(self, object error):
        """Measure the time, and end the span. A second call does nothing."""
        if self.has_ended:
            return
        self.has_ended = True
        if self.hub.times is not None:
            self.hub.times.handlers.add(<double>self.hub.clock() - self.began)
        if self.span is not None:
            self.span.end(error)


cdef int call_observed(ConnectionCore connection, Message message) except -1:
    """Call on_message as handle_message() does, and observe it."""
    cdef HubBase hub = connection.hub
    cdef ObservedCall call = ObservedCall()
    cdef bint runs_task = False
    call.hub = hub
    call.began = hub.clock()
    if hub.traces_messages:
        call.span = hub.tracer.begin_message(connection, message)
    try:
        result = connection.handlers.on_message(connection, message)
        if result is not None and result is not QUEUED:
            runs_task = run_awaitable(connection, result, HANDLER_RUNS, "on_message", call)
    except BaseException as error:
        call.end(error)
        raise
    if not runs_task:
        call.end(None)
    if hub.times_handlers:
        spend(connection, HANDLER_TIME, <double>hub.clock() - call.began)
    return 0
