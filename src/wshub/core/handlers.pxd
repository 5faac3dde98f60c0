from libc.stdint cimport uint8_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.links.link cimport Link


cdef int start(ConnectionCore connection, Link link) except -1
cdef int call_handler(
    ConnectionCore connection, object handler, tuple arguments, uint8_t block, str event
) except -1
cdef bint run_awaitable(
    ConnectionCore connection, object awaitable, uint8_t block, str event, object ended
) except -1
cdef void handler_failed(ConnectionCore connection, object error, uint8_t block, str event) noexcept
cdef int call_on_drain(ConnectionCore connection) except -1
cdef int call_on_close(ConnectionCore connection) except -1
cdef object error_of(object task)
