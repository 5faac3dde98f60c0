# cython: language_level=3
"""The state of a connection.

    State        From                  Begins with                                          Link   Rooms      Sends:
    CONNECTING   -                     the registration, before the handshake is answered   none   may join   no.
    OPEN         CONNECTING            start(), after the 101 was queued                    yes    may join   yes.
    CLOSING      CONNECTING            close() before the opening                           none   none       no.
    CLOSING      OPEN                  the first close frame of either side, or a failure   yes    none       no.
    CLOSED       CONNECTING, CLOSING   a failed handshake                                   none   none       no.
    CLOSED       OPEN, CLOSING         the loss of the link                                 lost   none       no.

A connection that was closed before the opening becomes OPEN in start() and CLOSING in the same call. The ends of a
connection are a table in closing.pyx.

The rules of all files of a connection: the loop calls the handlers, one after another, never from within a call of the
application. Every call into Python may close this connection or another one, so the state is read again after it. Input
from the network never raises. It ends in an event or in a close.
"""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc

from wshub.protocol.compression.deflate cimport deflater_clear, deflater_init, inflater_clear, inflater_init
from wshub.protocol.frame_buffer cimport frame_release
from wshub.protocol.opcodes cimport SERVER
from wshub.protocol.parser cimport parser_clear, parser_init

from contextvars import copy_context


cdef class ConnectionCore(Receiver):
    """The state of a :class:`wshub.Connection`."""

    def __cinit__(self, HubBase hub not None, uint64_t id, HandlerTable handlers not None, request, subprotocol):
        parser_init(&self.parser, SERVER, hub.max_message_size)
        self.parser.max_fragments = hub.max_fragments
        self.hub = hub
        self.id = id
        self.connection_id = id
        self.handlers = handlers
        self.request = request
        self.subprotocol = subprotocol
        self.receiving = handlers.receives
        self.reason = ""
        self.context = copy_context()

    def __dealloc__(self):
        parser_clear(&self.parser)
        frame_release(self.pending_pong)
        free_compressors(self)

    cdef void resume_input(self, uint8_t block) noexcept:
        """Clear a block. Handle unread bytes and read the link again, unless another block is set.

        The class in receiving.pyx implements it. It is a method so that files that receiving.pyx imports can call it.
        """

    def _unblock(self, block):
        """``resume_input`` for ``loop.call_soon``."""
        self.resume_input(block)


cdef bint can_hand_over(ConnectionCore connection) noexcept:
    """Whether the loop can take a call from another thread."""
    return (
        connection.status != IS_CLOSED and connection.hub.loop is not None and not connection.hub.loop.is_closed()
    )


cdef object hand_over(ConnectionCore connection, object call):
    """Have the loop make a call that came from another thread."""
    try:
        connection.hub.loop.call_soon_threadsafe(call)
    except RuntimeError:
        if not connection.hub.loop.is_closed():
            raise
        # The loop closed a moment ago, so no thread is left to hand the call to.
        call()


cdef void wait_for_next_iteration(ConnectionCore connection) noexcept:
    """Leave unread input to a later loop iteration. Without memory for that, go on now."""
    if not connection.blocks & BUDGET_SPENT and connection.hub.backlog.push(connection, connection.hub.loop):
        connection.blocks |= BUDGET_SPENT


cdef void unblock_later(ConnectionCore connection, uint8_t block) noexcept:
    """resume_input() for a caller that unblocks many connections at once: unread input waits for a later iteration."""
    connection.blocks &= ~block
    if connection.unread is not None and not is_blocked(connection):
        wait_for_next_iteration(connection)
    connection.resume_input(0)


cdef object take_negotiated(ConnectionCore connection, object compression):
    """Set up the negotiated compression, a PermessageDeflate or None, before the first message in either direction."""
    if compression is None:
        return
    config = connection.hub.pool.config
    connection.compression = compression
    connection.window_bits = compression.server_max_window_bits
    connection.server_context_takeover = not compression.server_no_context_takeover
    connection.parser.inflater = &connection.hub.pool.inflater
    if not compression.client_no_context_takeover:
        connection.inflater = <Inflater *>PyMem_RawMalloc(sizeof(Inflater))
        if connection.inflater == NULL:
            raise MemoryError
        inflater_init(connection.inflater, compression.client_max_window_bits, True)
        connection.parser.inflater = connection.inflater
    if config.server_context_takeover and connection.server_context_takeover:
        connection.deflater = <Deflater *>PyMem_RawMalloc(sizeof(Deflater))
        if connection.deflater == NULL:
            raise MemoryError
        deflater_init(connection.deflater, config.level, config.memory_level, connection.window_bits)


cdef void drop_compression(ConnectionCore connection) noexcept:
    """Forget the negotiated compression: another server answers the handshake."""
    connection.compression = None
    connection.window_bits = 0
    connection.server_context_takeover = False
    connection.parser.inflater = NULL
    free_compressors(connection)


cdef void free_compressors(ConnectionCore connection) noexcept:
    if connection.inflater != NULL:
        inflater_clear(connection.inflater)
        PyMem_RawFree(connection.inflater)
        connection.inflater = NULL
    if connection.deflater != NULL:
        deflater_clear(connection.deflater)
        PyMem_RawFree(connection.deflater)
        connection.deflater = NULL
