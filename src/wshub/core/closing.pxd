from libc.stdint cimport uint16_t

from wshub.core.connection_state cimport ConnectionCore


cdef object closed_error(ConnectionCore connection)
cdef object check_open(ConnectionCore connection)

cdef void begin_closing(ConnectionCore connection, bytes payload) noexcept
cdef object close_before_opening(ConnectionCore connection, bytes payload)
cdef void close_if_open(ConnectionCore connection, bytes payload) noexcept
cdef void close_going_away(ConnectionCore connection, str reason) noexcept
cdef object close_returned_endpoint(ConnectionCore connection)
cdef void fail(ConnectionCore connection, uint16_t code, str reason) noexcept
cdef uint16_t code_to_send(ConnectionCore connection, uint16_t code) noexcept
cdef void abort(ConnectionCore connection, uint16_t code, str reason) noexcept
cdef void abort_out_of_memory(ConnectionCore connection) noexcept
cdef object cancel_opening(ConnectionCore connection)
cdef void close_without_loop(ConnectionCore connection) noexcept
cdef bint finish_closing(ConnectionCore connection) noexcept

cdef void wake(object future) noexcept
cdef void wake_receiver(ConnectionCore connection) noexcept
cdef void fail_drain_waiters(ConnectionCore connection) noexcept
