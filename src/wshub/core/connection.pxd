from libc.stdint cimport uint8_t

from wshub.core.connection_core cimport ConnectionCore


cdef class Connection(ConnectionCore):
    cdef object send_control(self, object payload, uint8_t opcode)
