# cython: language_level=3
"""The listening sockets of the epoll reactor, and how they accept connections."""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EPERM, EPROTO, errno
from libc.stdint cimport uint32_t, uintptr_t
from libc.string cimport memcpy

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.tls.epoll_tls_link cimport EpollTls
from wshub.links.linux_sockets cimport (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    accept4,
    epoll_ctl,
    epoll_event,
    sockaddr,
    socklen_t,
)

import logging
import os

from wshub.links.failures import accept_failed
from wshub.links.shortage import ShortageLog

logger = logging.getLogger("wshub.server")

NOT_WATCHED = ShortageLog("a new connection cannot be watched (%s): it is closed")

cdef enum:
    # Connections that one listening socket accepts in one round.
    ACCEPT_BURST = 64


cdef class Listener:
    """One listening socket."""


cdef class EpollListeners:
    """The listening sockets of one reactor."""

    def __cinit__(self, EpollLinks links not None):
        self.links = links
        self.listeners = {}

    cdef object add(self, object listening_socket, object accepted, object settings, EpollTls tls):
        """Accept the connections of a socket that listens already, with TLS if there are settings for it.

        Raise OSError if epoll cannot watch the socket.
        """
        cdef Listener listener = Listener.__new__(Listener)
        listener.socket = listening_socket
        listener.descriptor = listening_socket.fileno()
        listener.accepted = accepted
        listener.settings = settings
        listener.tls = tls
        # The step that may fail comes first: epoll must not know a listener that is not in the table.
        self.listeners[listener.descriptor] = listener
        try:
            self.register(listener)
        except BaseException:
            del self.listeners[listener.descriptor]
            raise

    cdef object remove(self, int descriptor):
        """Accept no more connections of that socket, which stays open."""
        cdef Listener listener = self.listeners.pop(descriptor, None)
        if listener is not None and not listener.paused:
            epoll_ctl(self.links.epoll_fd, EPOLL_CTL_DEL, descriptor, NULL)

    cdef object resume(self):
        """Accept again with every socket that a shortage had paused."""
        cdef Listener listener
        for listener in self.listeners.values():
            if listener.paused:
                try:
                    self.register(listener)
                except OSError:
                    # There is no memory yet: the next sweep tries again.
                    return

    cdef object register(self, Listener listener):
        cdef epoll_event event
        event.events = EPOLLIN
        # Not a pointer: the listener may be removed, and freed, between epoll_wait() and its event.
        event.data.ptr = <void *>(<uintptr_t>listener.descriptor << 1 | LISTENER_BIT)
        if epoll_ctl(self.links.epoll_fd, EPOLL_CTL_ADD, listener.descriptor, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        listener.paused = False

    cdef EpollLink create_link(self, Listener listener, int descriptor):
        if listener.settings is None:
            return self.links.add(descriptor)
        return listener.tls.add(descriptor, listener.settings, False, None)

    cdef void accept(self, uintptr_t tagged) noexcept:
        """Accept the connections that wait at the listening socket that an event of epoll names."""
        cdef int listening = <int>(tagged >> 1)
        cdef int _accepted, descriptor
        cdef uint32_t address[7]
        cdef socklen_t length
        cdef EpollLink link
        cdef Listener listener

        for _accepted in range(ACCEPT_BURST):
            listener = self.listeners.get(listening)
            if listener is None or listener.paused:
                return
            length = sizeof(address)
            descriptor = accept4(listener.descriptor, <sockaddr *>address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if descriptor < 0:
                if errno in (EINTR, ECONNABORTED, EPROTO, EPERM):
                    continue
                if errno == EAGAIN:
                    # No connection waits any more. One success does not end a shortage: it may have taken the last
                    # descriptor.
                    self.exhausted = False
                else:
                    # EMFILE, ENFILE, ENOBUFS or ENOMEM. The connections wait in the backlog. A retry at once would fail
                    # again.
                    self.pause(listener, errno)
                return
            try:
                link = self.create_link(listener, descriptor)
            except (OSError, MemoryError) as error:
                NOT_WATCHED.failed(error)
                self.unwatched = True
                continue
            if length <= sizeof(address):
                memcpy(link.peer, address, length)
                link.peer_length = length
            try:
                link.receiver = listener.accepted(link)
                if link.receiver is None:
                    self.links.on_lost(link, 0)
                if self.unwatched:
                    NOT_WATCHED.recovered()
                    self.unwatched = False
            except BaseException as error:
                # This comes first: a link without a receiver must not be read.
                self.links.on_lost(link, 0)
                accept_failed(self.links.loop, error)

    cdef void pause(self, Listener listener, int error) noexcept:
        """Accept nothing at this socket until resume()."""
        listener.paused = True
        epoll_ctl(self.links.epoll_fd, EPOLL_CTL_DEL, listener.descriptor, NULL)
        if not self.exhausted:
            self.exhausted = True
            logger.error(
                "no more connections can be accepted for now (%s): raise the limit on open files, or lower "
                "max_connections", os.strerror(error)
            )
