from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from wshub.core.hub_state cimport Delivery, HubBase, Room
from wshub.core.connection cimport Connection
from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class HubCore(HubBase):
    cdef readonly object config
    cdef object reactor      # a Reactor; None until the hub has a loop
    cdef uint64_t last_id
    cdef readonly dict refused  # status: how many handshakes
    cdef bint fullness_told  # the log says that some connection has had no room
    cdef object emptied      # Future that is done when no connection is left, or None

    cdef object set_rates(self, object config)
    cdef object begin_anew(self)
    cdef Connection named_by(self, object exclude)
    cdef int fan_out(
        self, dict members, FrameBuffer *frame, Connection excluded, const Delivery *delivery, SharedWindow window,
        FrameBuffer *shared
    ) noexcept
    cdef FrameBuffer *shared_form(self, Room room, FrameBuffer *frame) noexcept
    cdef int send_to_all(self, FrameBuffer *frame, Connection excluded, const Delivery *delivery) noexcept
    cdef int send_to_room(
        self, Room room, FrameBuffer *frame, Connection excluded, const Delivery *delivery
    ) noexcept
