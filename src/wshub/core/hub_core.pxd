from libc.stdint cimport uint64_t

from wshub.core.connection cimport Connection
from wshub.core.hub_state cimport HubBase


cdef class HubCore(HubBase):
    cdef readonly object config
    cdef object reactor      # a Reactor; None until the hub has a loop
    cdef uint64_t last_id
    cdef readonly dict refused  # status: number of handshakes
    cdef bint measures_times
    cdef bint warned_of_user
    cdef object emptied      # Future that is done when no connection is left, or None

    cdef object set_rates(self, object config)
    cdef object begin_anew(self)
