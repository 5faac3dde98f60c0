from wshub.core.connection_state cimport ConnectionCore
from wshub.protocol.message cimport Message


cdef int call_observed(ConnectionCore connection, Message message) except -1
