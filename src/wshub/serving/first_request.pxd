from wshub.links.link cimport Link, Receiver


cdef class OpeningHandshake(Receiver):
    """Receives the request of a connection that is not a WebSocket yet."""

    cdef readonly Link link      # None once it has ended, or has been taken
    cdef object server           # a FirstRequestServer
    cdef public object hub       # that a refusal counts for; None is that of the server
    cdef public object opening   # the Opening of a request that waits, or is about to be refused; or None
    cdef object reader           # RequestReader
    cdef readonly double deadline
    cdef object decision         # Future of what on_upgrade decides, or None
    cdef bint answered

    cdef void failed(self, object error) noexcept


cdef class FirstRequest(OpeningHandshake):
    """Receives the first request of a connection, which is for a hub or for another server that reads it all again."""

    cdef bytearray received      # None if nothing has arrived, or all in one read

    cdef bint is_silent(self) noexcept
