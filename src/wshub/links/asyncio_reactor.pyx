# cython: language_level=3
"""A reactor without a poller of its own: connections over the transports of an asyncio loop."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from wshub.links.asyncio_link cimport AsyncioLink
from wshub.links.link cimport LinkCounters, Receiver
from wshub.protocol.frame_buffer cimport FrameBuffer

from functools import partial

from wshub.links.accepting import SocketListener, TransportSetup
from wshub.links.failures import accept_failed

cdef enum:
    # Size in bytes of the block that keep_heap() frees once. glibc then keeps up to twice as much free memory.
    HEAP_HYSTERESIS = 1 << 19


cdef void keep_heap() noexcept:
    """Have the C library keep the memory that one iteration of the loop frees, for the next one.

    glibc gives the end of its heap back to the kernel. Once a large block has been freed, it does so only if twice the
    size of that block is free there (mallopt(3), M_MMAP_THRESHOLD). Before, messages of some KiB on a dozen connections
    can make the heap shrink and grow in each iteration, because transports copy them.
    """
    PyMem_RawFree(PyMem_RawMalloc(HEAP_HYSTERESIS))


cdef class AcceptedLink(AsyncioLink):
    """The link of an accepted connection, and the protocol of its transport. It sends once it has the transport."""

    def connection_made(self, transport):
        if self.closed:
            transport.abort()
            return
        self.use(transport)
        self.setup = None

    def setup_failed(self):
        """End the link: there will be no transport."""
        self.setup = None
        self.on_lost(0)

    cdef int write(self, FrameBuffer *frame) noexcept:
        return 0 if self.transport is None else AsyncioLink.write(self, frame)

    cdef void abort(self, bint after_flush) noexcept:
        if self.transport is not None:
            AsyncioLink.abort(self, after_flush)
        elif self.setup is not None and not self.closed:
            self.setup.abort()
            # A transport reports the loss in a later iteration of the loop, and so does the link.
            self.loop.call_soon(self.on_lost, 0)

    cdef object peer_name(self):
        return peer_of(self.setup.socket) if self.setup is not None else self.peer

    cdef void notify_lost(self, int error) noexcept:
        self.reactor.links.discard(self)
        AsyncioLink.notify_lost(self, error)


cdef object peer_of(connected):
    """Return the peer's address in the form of socket.getpeername(), or None."""
    try:
        name = connected.getpeername()
    except OSError:
        return None
    # The address of a Unix socket is an empty string.
    return name[:2] if isinstance(name, tuple) else None


cdef class AsyncioReactor:
    """Serves connections over the transports of an asyncio loop, where there is no epoll.

    Args:
        loop: any asyncio event loop. Use the reactor only on the thread of that loop.
        counters: where bytes and messages are counted.
    """

    # Whether a connected socket can become a link by adopt().
    adopts = False

    def __init__(self, loop, LinkCounters counters not None):
        self.loop = loop
        self.users = 1
        self.counters = counters
        self.listeners = {}
        self.links = set()
        keep_heap()

    async def listen(self, listening_socket, accepted, *, int backlog=100, ssl=None):
        """Accept the connections of a bound socket, with TLS if ``ssl`` is a ServerTls.

        ``accepted(link)`` is called with each new link, before any TLS handshake. It returns the Receiver, or None to
        close the connection.
        """
        listener = SocketListener(self.loop, listening_socket, partial(self._accept, accepted, ssl))
        self.listeners[listening_socket.fileno()] = listener
        try:
            listener.start(backlog)
        except BaseException:
            del self.listeners[listening_socket.fileno()]
            raise

    def _accept(self, accepted, ssl, connected):
        cdef AcceptedLink link = AcceptedLink(None, self.loop)
        link.counters = self.counters
        link.reactor = self
        link.setup = TransportSetup(
            self.loop, connected, lambda: link, ssl=ssl, failed=link.setup_failed
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
        """Accept no more connections of that listening socket, which stays open."""
        listener = self.listeners.pop(descriptor, None)
        if listener is not None:
            listener.close()

    def resume_accepting(self):
        """Do nothing: after a shortage each listener tries again by itself."""

    @property
    def connection_count(self):
        """The number of open links."""
        return len(self.links)

    def adopt(self, int descriptor, Receiver receiver not None):
        """Raise NotImplementedError: a transport needs the socket object."""
        raise NotImplementedError("this reactor has adopts = False")

    def retain(self):
        """Count one more user of the reactor, which will call release()."""
        self.users += 1

    def release(self):
        """Count one user less, and close the reactor after the last one."""
        self.users -= 1
        if self.users == 0:
            self.close()

    def close(self):
        """End every connection at once. The receivers are called before this returns."""
        cdef AcceptedLink link
        for descriptor in list(self.listeners):
            self.unlisten(descriptor)
        for link in list(self.links):
            # A transport of a closed loop can do nothing any more.
            if not self.loop.is_closed():
                if link.transport is not None:
                    link.transport.abort()
                elif link.setup is not None:
                    link.setup.abort()
            link.on_lost(0)
