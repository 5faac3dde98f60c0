from libc.stdint cimport uintptr_t

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.tls.epoll_tls_link cimport EpollTls


cdef enum:
    # Epoll has one field for descriptors of listening sockets and for pointers to links. Objects are aligned, so the
    # lowest bit tells the two apart.
    LISTENER_BIT = 1


cdef class Listener:
    cdef object socket    # keeps the descriptor open
    cdef int descriptor   # borrowed from the socket
    cdef object accepted  # called with each new link; returns its Receiver
    cdef object settings  # ServerTls, or None for plain connections
    cdef EpollTls tls     # with settings: what the TLS links of the reactor share
    cdef bint paused


cdef class EpollListeners:
    cdef EpollLinks links
    cdef dict listeners   # descriptor: Listener
    cdef bint exhausted   # there was no descriptor for a connection, and the log says so
    cdef bint unwatched   # epoll could not take a connection, and the log says so

    cdef object add(self, object listening_socket, object accepted, object settings, EpollTls tls)
    cdef EpollLink create_link(self, Listener listener, int descriptor)
    cdef object remove(self, int descriptor)
    cdef object resume(self)
    cdef object register(self, Listener listener)
    cdef void accept(self, uintptr_t tagged) noexcept
    cdef void pause(self, Listener listener, int error) noexcept
