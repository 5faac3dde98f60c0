from libc.stdint cimport uint8_t

from wshub.core.inbox cimport InboxConnection


cdef class Connection(InboxConnection):
    cdef object send_control(self, object payload, uint8_t opcode)
