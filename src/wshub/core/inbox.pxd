from wshub.core.receiving cimport ReceivingConnection


cdef class InboxConnection(ReceivingConnection):
    pass
