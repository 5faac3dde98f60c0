from wshub.links.link cimport Link


cdef class AsyncioLink(Link):
    cdef object transport        # None until there is one
    cdef object loop
    cdef tuple peer              # the peer's address, or None; kept, as a transport does not know it at all times
    cdef bint scheduled          # _flush() is called in the next iteration of the loop
    cdef bint flushing           # a frame is being given to the transport
    cdef bint ended              # the peer has ended its side
    cdef bint closing_transport

    cdef object use(self, object transport)
    cdef object give_to_transport(self)
    cdef void schedule(self) noexcept
