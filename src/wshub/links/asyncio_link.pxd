from wshub.links.link cimport Link


cdef class AsyncioLink(Link):
    cdef object transport        # None until there is one
    cdef object loop
    cdef bint scheduled          # flushed in the next turn of the loop
    cdef bint ended              # the peer has ended its side
    cdef bint closing_transport

    cdef void schedule(self) noexcept
