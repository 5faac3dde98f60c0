from wshub.core.connection_state cimport ConnectionCore
from wshub.core.hub_state cimport HubBase


cdef bint keeps_history(HubBase hub, str name) except -1
cdef bytes history_envelope(
    HubBase hub, str name, object message, ConnectionCore excluded, object compress, object slow_consumer, object key,
    str publisher
)
cdef Py_ssize_t send_to_history(
    HubBase hub, str name, object message, ConnectionCore excluded, object compress, object slow_consumer, object key,
    str publisher
) except -1
