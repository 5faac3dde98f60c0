"""A stream of bytes. byte_stream.pyx says how it is used."""

from libc.stddef cimport size_t

from wshub.links.link cimport Link, LinkCounters, Receiver, iovec


cdef class ByteStream(Receiver):
    cdef readonly Link link      # None before open() and after the end
    cdef readonly LinkCounters counters
    cdef object received
    cdef object lost

    cdef size_t pending(self) noexcept
    cdef void write_pieces(self, const iovec *pieces, int count) noexcept
