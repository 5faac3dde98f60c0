from wshub.links.link cimport Link, Receiver


cdef class OpeningHandshake(Receiver):
    """Receives the request of a connection that is not a WebSocket yet."""

    cdef Link link
    cdef object server
    cdef object reader           # RequestReader
    cdef readonly double deadline
    cdef object decision         # Future of what the application says of the request, or None
    cdef bint answered

    cdef void failed(self, object error) noexcept


cdef class FirstRequest(OpeningHandshake):
    """Receives the first request of a connection that may be for a hub, or for somebody who reads it all again."""

    cdef bytearray received
