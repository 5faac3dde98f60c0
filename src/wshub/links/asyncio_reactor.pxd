from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport LinkCounters


cdef class AcceptedLink(AsyncioLink):
    cdef AsyncioReactor reactor
    cdef object setup     # TransportSetup until there is a transport, then None


cdef class AsyncioReactor:
    cdef object loop
    cdef int users       # the objects that release() it; the last one closes it
    cdef LinkCounters counters
    cdef dict listeners  # descriptor: SocketListener
    cdef set links       # every open AcceptedLink
