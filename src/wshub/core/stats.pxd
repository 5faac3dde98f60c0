from wshub.core.hub_state cimport HubBase
from wshub.core.rooms cimport Room


cdef dict hub_stats(HubBase hub, dict refused)
cdef dict room_stats(Room room)
