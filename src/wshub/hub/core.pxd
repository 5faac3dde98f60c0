from libc.stdint cimport uint64_t

from wshub.hub.base cimport HubBase
from wshub.links.reactor cimport Reactor
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class HubCore(HubBase):
    cdef readonly object config
    cdef Reactor reactor     # None until the hub has a loop
    cdef uint64_t last_id
    cdef readonly dict refused  # reason: how many handshakes
    cdef object emptied      # Future that is done when no connection is left, or None

    cdef int fan_out(self, dict members, FrameBuffer *frame, object exclude) except -1
