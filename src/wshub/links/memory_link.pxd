from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.links.link cimport Link


cdef class MemoryLink(Link):
    cdef MemoryLink other        # the other end of the pair
    cdef object loop             # calls deliver(); None leaves that to the caller
    cdef bytearray outgoing      # bytes that have left the queue, and that the other end has not received
    cdef size_t capacity         # the most that `outgoing` holds
    cdef int error               # why the link was lost: an errno, or 0
    cdef uint8_t paused
    cdef uint8_t ended           # the end of the other side has been received
    cdef uint8_t output_ends     # this side ends once the queue is empty
    cdef uint8_t shut_down       # the end of this side is behind `outgoing`
    cdef uint8_t lost_pending    # connection_lost() is to be called
    cdef uint8_t delivering
    cdef uint8_t scheduled       # the loop will call deliver()

    cdef void flush(self) noexcept
    cdef bint receive(self, Py_ssize_t limit) except -1
    cdef bint has_work(self) noexcept
    cdef void schedule(self) noexcept
    cdef void on_lost(self, int error) noexcept
