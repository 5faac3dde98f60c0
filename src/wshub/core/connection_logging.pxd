from wshub.core.connection_state cimport ConnectionCore


cdef void log_opened(ConnectionCore connection, double now) noexcept
cdef void log_closed(ConnectionCore connection) noexcept
