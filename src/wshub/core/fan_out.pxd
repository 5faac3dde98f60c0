from wshub.core.delivery_options cimport Delivery
from wshub.core.connection_state cimport ConnectionCore
from wshub.core.hub_state cimport HubBase
from wshub.core.rooms cimport Room
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef int send_to_all(HubBase hub, FrameBuffer *frame, ConnectionCore excluded, const Delivery *delivery) noexcept
cdef int send_to_room(
    HubBase hub, Room room, FrameBuffer *frame, ConnectionCore excluded, const Delivery *delivery
) noexcept
