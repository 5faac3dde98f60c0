from wshub.core.connection_state cimport ConnectionCore


cdef class ReceivingConnection(ConnectionCore):
    pass
