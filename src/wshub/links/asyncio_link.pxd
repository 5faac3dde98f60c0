from wshub.links.link cimport Link


cdef class AsyncioLink(Link):
    cdef object transport        # None until there is one
    cdef object loop
    cdef tuple peer              # its address, or None: a transport cannot be asked at all times, nor by all threads
    cdef bint scheduled          # flushed in the next turn of the loop
    cdef bint finishing          # nothing more is queued; close the transport once all has left
    cdef bint ended              # the peer has ended its side
    cdef bint closing_transport

    cdef object use(self, object transport)
    cdef void schedule(self) noexcept
