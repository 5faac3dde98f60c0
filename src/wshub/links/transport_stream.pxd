"""The stream below a StreamTransport. transport_stream.pyx says how it is used."""

from wshub.links.byte_stream cimport ByteStream


cdef class TransportStream(ByteStream):
    cdef object ended
    cdef object short_again
