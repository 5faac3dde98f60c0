from wshub.core.hub_state cimport HubBase
from wshub.core.rooms cimport Room


cdef object hub_stats(HubBase hub, dict refused, object cluster)
cdef object room_stats(Room room)
