from libc.stdint cimport int64_t

from wshub.links.link cimport Link


cdef class AsyncioLink(Link):
    cdef object transport        # None until there is one
    cdef object loop
    cdef int64_t handed          # octets that the transport was ever given
    cdef int64_t left            # of these, how many it did not hold any more when it was last asked
    cdef int unacknowledged      # how many the peer had not acknowledged then, as far as the kernel can tell
    cdef bint watched            # some of them may not have left
    cdef bint moved              # some of them had left when that was last looked at
    cdef bint scheduled          # flushed in the next turn of the loop
    cdef bint finishing          # nothing more is queued; close the transport once all has left
    cdef bint ended              # the peer has ended its side
    cdef bint closing_transport

    cdef void schedule(self) noexcept
