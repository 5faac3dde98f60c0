from libc.stdint cimport uint8_t

from wshub.core.receiving cimport ReceivingConnection


cdef class Connection(ReceivingConnection):
    cdef object send_control(self, object payload, uint8_t opcode)
