from wshub.links.link cimport Receiver


cdef class Backlog:
    cdef object clock    # the hub's clock
    cdef object waiting  # deque of Receiver, oldest first
    cdef object loop     # the loop that will call _run(), or None

    cdef bint push(self, Receiver receiver, object loop) noexcept
    cdef object schedule(self, object loop)
