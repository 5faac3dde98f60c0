"""A stream of bytes. byte_stream.pyx says how it is used."""

from wshub.links.link cimport Link, LinkCounters, Receiver
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class ByteStream(Receiver):
    cdef readonly Link link      # None before open() and after the end
    cdef readonly LinkCounters counters
    cdef object received
    cdef object lost

    cdef size_t pending(self) noexcept
    cdef int write_frame(self, FrameBuffer *frame) except -1
