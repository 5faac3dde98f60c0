from libc.stdint cimport uint8_t

from wshub.core.receiving cimport ReceivingConnection


cdef class Connection(ReceivingConnection):
    cdef object join_room(self, str name)
    cdef bint leave_room(self, str name) except -1
    cdef object send_control(self, object payload, uint8_t opcode)
