# cython: language_level=3
"""A reactor in name: connections over the transports of an asyncio loop, behind the methods that the native one has."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport Ledger, Receiver

import logging

from wshub.links.transports import create_server

logger = logging.getLogger("wshub.server")

cdef enum:
    # Octets: twice as many a turn of the loop may free.
    HEAP_HYSTERESIS = 1 << 19


cdef void keep_heap() noexcept:
    """Has the C library keep what one turn of the loop frees for the next one.

    Once a large block has been freed, glibc gives back the end of its heap only where that has twice as much to spare
    (mallopt(3), M_MMAP_THRESHOLD). Before, messages of some KiB on a dozen connections, of which transports make
    copies, can have it shrink and grow with each turn, and all their pages made anew.
    """
    PyMem_RawFree(PyMem_RawMalloc(HEAP_HYSTERESIS))


cdef class AcceptedLink(AsyncioLink):
    """The link of a connection that a listening socket has accepted, and the protocol of its transport."""

    def connection_made(self, transport):
        self.use(transport)
        self.reactor.links.add(self)
        try:
            self.receiver = <Receiver?>self.accepted(self)
        except BaseException:
            logger.exception("a new connection cannot be served")
            self.abort(False)
        finally:
            self.accepted = None

    cdef void tell_lost(self, int error) noexcept:
        self.reactor.links.discard(self)
        AsyncioLink.tell_lost(self, error)


cdef class AsyncioReactor:
    """Drives connections over the transports of an asyncio loop: those with TLS, and all where there is no epoll.

    Args:
        loop: any asyncio event loop; to be used on its thread alone.
        ledger: where octets and messages are counted.
        ssl: an ssl.SSLContext, or None for plain connections.
        timeout: seconds that a TLS handshake may take, and as many its end.
    """

    # Whether a connected socket can become a link by adopt().
    adopts = False

    def __init__(self, loop, Ledger ledger not None, ssl=None, double timeout=10):
        self.loop = loop
        self.ledger = ledger
        self.ssl = ssl
        self.timeout = timeout
        self.servers = {}
        self.links = set()
        keep_heap()

    async def listen(self, listening_socket, accepted, *, int backlog=100):
        """Accepts the connections of a bound socket.

        ``accepted(link)`` is called with each new link, and returns its Receiver.
        """
        def create_link():
            cdef AcceptedLink link = AcceptedLink(None, self.loop)
            link.ledger = self.ledger
            link.reactor = self
            link.accepted = accepted
            return link

        timeouts = {"ssl_handshake_timeout": self.timeout, "ssl_shutdown_timeout": self.timeout} if self.ssl else {}
        self.servers[listening_socket.fileno()] = await create_server(
            self.loop, create_link, sock=listening_socket, backlog=backlog, ssl=self.ssl, **timeouts
        )

    def unlisten(self, int descriptor):
        """Accepts no more connections of that listening socket, which is closed."""
        server = self.servers.pop(descriptor, None)
        if server is not None:
            server.close()

    def resume_accepting(self):
        """Nothing is to be done: asyncio tries again by itself to accept, after there were no descriptors."""

    @property
    def connection_count(self):
        """How many links are open."""
        return len(self.links)

    def release(self):
        """Closes it: nobody else uses it."""
        self.close()

    def close(self):
        """Ends every connection at once. The receivers are told before this returns."""
        cdef AcceptedLink link
        for descriptor in list(self.servers):
            self.unlisten(descriptor)
        for link in list(self.links):
            link.transport.abort()
            link.lose(0)
