from libc.stdint cimport uint8_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.core.hub_state cimport HubBase


cdef Py_ssize_t send_to_many(
    HubBase hub, uint8_t kind, str name, object message, ConnectionCore excluded, object compress, object slow_consumer,
    object key, list envelopes
) except -1
cdef bint hand_to_loop(HubBase hub, object call) except -1
