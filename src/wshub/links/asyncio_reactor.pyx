# cython: language_level=3
"""A reactor in name: connections over the transports of an asyncio loop, behind the methods that the native one has."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport Ledger, Receiver
from wshub.protocol.frame_buffer cimport FrameBuffer

from functools import partial

from wshub.links.accepting import SocketListener, TransportSetup
from wshub.links.failures import accept_failed

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
    """The link of a connection that a listening socket has accepted, and the protocol of its transport.

    Until it has its transport, nothing can be sent.
    """

    def connection_made(self, transport):
        if self.closed:
            transport.abort()
            return
        self.use(transport)
        self.setup = None

    def setup_failed(self):
        """There will be no transport."""
        self.setup = None
        self.lose(0)

    cdef int write(self, FrameBuffer *frame) noexcept:
        return 0 if self.transport is None else AsyncioLink.write(self, frame)

    cdef void abort(self, bint after_flush) noexcept:
        if self.transport is not None:
            AsyncioLink.abort(self, after_flush)
        elif self.setup is not None and not self.closed:
            self.setup.abort()
            # A transport tells of the loss in a later iteration of the loop; so does this.
            self.loop.call_soon(self.lose, 0)

    cdef object peer_name(self):
        return peer_of(self.setup.socket) if self.setup is not None else self.peer

    cdef void tell_lost(self, int error) noexcept:
        self.reactor.links.discard(self)
        AsyncioLink.tell_lost(self, error)


cdef object peer_of(connected):
    """The peer's address in the form that socket.getpeername() has, or None."""
    try:
        name = connected.getpeername()
    except OSError:
        return None
    # That of a Unix socket is an empty string.
    return name[:2] if isinstance(name, tuple) else None


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
        self.listeners = {}
        self.links = set()
        keep_heap()

    async def listen(self, listening_socket, accepted, *, int backlog=100):
        """Accepts the connections of a bound socket.

        ``accepted(link)`` is called with each new link, before any TLS handshake. It returns the Receiver, or None to
        refuse the connection.
        """
        listener = SocketListener(self.loop, listening_socket, partial(self._accept, accepted))
        self.listeners[listening_socket.fileno()] = listener
        try:
            listener.start(backlog)
        except BaseException:
            del self.listeners[listening_socket.fileno()]
            raise

    def _accept(self, accepted, connected):
        cdef AcceptedLink link = AcceptedLink(None, self.loop)
        link.ledger = self.ledger
        link.reactor = self
        link.setup = TransportSetup(
            self.loop, connected, lambda: link, ssl=self.ssl, timeout=self.timeout, failed=link.setup_failed
        )
        self.links.add(link)
        try:
            receiver = accepted(link)
            if receiver is not None:
                link.receiver = <Receiver?>receiver
        except BaseException as error:
            accept_failed(self.loop, error)
        if link.receiver is None:
            link.abort(False)

    def unlisten(self, int descriptor):
        """Accepts no more connections of that listening socket, which is left open."""
        listener = self.listeners.pop(descriptor, None)
        if listener is not None:
            listener.close()

    def resume_accepting(self):
        """Nothing is to be done: a listener tries again by itself to accept, after there were no descriptors."""

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
        for descriptor in list(self.listeners):
            self.unlisten(descriptor)
        for link in list(self.links):
            if link.transport is not None:
                link.transport.abort()
            elif link.setup is not None:
                link.setup.abort()
            link.lose(0)
