from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport Ledger


cdef class AcceptedLink(AsyncioLink):
    cdef AsyncioReactor reactor
    cdef object accepted  # called with this link once it has its transport; returns its Receiver


cdef class AsyncioReactor:
    cdef object loop
    cdef Ledger ledger
    cdef object ssl      # SSLContext, or None
    cdef double timeout  # seconds
    cdef dict servers    # descriptor: asyncio.Server
    cdef set links       # every open AcceptedLink
