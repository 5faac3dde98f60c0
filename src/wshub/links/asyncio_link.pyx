# cython: language_level=3
"""A link over an asyncio transport: for TLS, and wherever the reactor cannot have the descriptor."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from wshub.links.link cimport (
    AT_REST,
    STALLED,
    Link,
    Progress,
    queue_advance,
    queue_copy,
    queue_is_empty,
)
from wshub.protocol.frame_buffer cimport DELIVERED, FrameBuffer

import errno

from wshub.links.transports import unacked_bytes

cdef enum:
    # Frames are given to the transport side by side, up to this many bytes. With TLS, one call of a transport costs as
    # much as copying a hundred short ones.
    WRITE_SIZE = 65536


cdef class AsyncioLink(Link):
    """Carries a connection over a transport whose protocol passes its callbacks on to the methods here.

    Bytes that the transport was given count as delivered. While the transport asks for a pause, it gets no more bytes.
    """

    def __init__(self, transport, loop):
        self.loop = loop
        self.hides_bytes = True
        if transport is not None:
            self.use(transport)

    cdef object use(self, object transport):
        """Take the transport, and the peer's address while the transport knows it."""
        self.transport = transport
        try:
            name = transport.get_extra_info("peername")
        except Exception:
            # The connection has ended already.
            return
        # The address of a Unix socket is an empty string.
        if isinstance(name, tuple):
            self.peer = name[:2]

    # The callbacks of the transport

    def data_received(self, bytes data):
        cdef const uint8_t *start = <const uint8_t *><const char *>data
        if self.counters is not None:
            self.counters.bytes_received += len(data)
        if not self.closed and not self.finishing and self.receiver is not None:
            self.receiver.data_received(start, len(data))

    def eof_received(self):
        """Return whether the transport is to be kept open."""
        self.ended = True
        if not self.closed and not self.finishing and self.receiver is not None:
            self.receiver.eof_received()
        self.schedule()
        # A transport that cannot be half closed, as with TLS, ends by itself once its buffer is sent.
        return not self.closed and self.transport.can_write_eof()

    def connection_lost(self, error):
        self.on_lost(error.errno or errno.ECONNRESET if isinstance(error, OSError) else 0)

    def pause_writing(self):
        self.blocked = True
        self.mark_blocked()

    def resume_writing(self):
        self.blocked = False
        self.schedule()

    # The methods of a link

    cdef int write(self, FrameBuffer *frame) noexcept:
        if self.closed or self.finishing:
            return 0
        if self.push(frame) < 0:
            return -1
        self.schedule()
        return 0

    cdef void pause(self) noexcept:
        # A transport of uvloop raises once its loop is closed.
        if not self.closed and not self.loop.is_closed() and self.transport.is_reading():
            self.transport.pause_reading()

    cdef void resume(self) noexcept:
        if self.closed or self.loop.is_closed() or self.transport.is_closing() or self.transport.is_reading():
            return
        self.transport.resume_reading()

    cdef void abort(self, bint after_flush) noexcept:
        if self.closed:
            return
        if after_flush:
            self.finishing = True
            self.resume()
            self.schedule()
            return
        try:
            self.transport.abort()
            # The transport reports the loss in a later iteration of the loop, and so does the link.
            self.loop.call_soon(self.on_lost, 0)
        except RuntimeError:
            # The loop is closed: nothing of this link will ever run again.
            pass

    cdef void flush_now(self) noexcept:
        # The garbage collector may run code while the transport takes a frame. That code must not send the next frame.
        if self.closed or self.flushing or self.transport.is_closing():
            return
        self.flushing = True
        try:
            self.give_to_transport()
        finally:
            self.flushing = False

    cdef object give_to_transport(self):
        cdef size_t total
        while not self.blocked and not queue_is_empty(&self.queue):
            total = min(self.queue.queued_bytes, <size_t>WRITE_SIZE)
            try:
                data = PyBytes_FromStringAndSize(NULL, total)
            except MemoryError:
                # The stream cannot go on with a gap.
                self.abort(False)
                return
            queue_copy(&self.queue, <uint8_t *>PyBytes_AS_STRING(data), total)
            self.counters.messages.outcomes[DELIVERED] += queue_advance(&self.queue, total)
            self.counters.bytes_sent += total
            self.bytes_written += total
            # write() may call pause_writing() before it returns, which ends this loop.
            self.transport.write(data)

    cdef bint should_notify_drained(self) noexcept:
        # A transport that asks for a pause holds too much that was queued.
        return not self.blocked and Link.should_notify_drained(self)

    cdef Progress poll_progress(self) noexcept:
        cdef Progress found = Link.poll_progress(self)
        # A TLS transport may not report bytes that it has encrypted and still holds. Then the kernel holds bytes that
        # the peer has not acknowledged.
        if found == AT_REST and not self.closed and self.bytes_acked < self.bytes_written:
            return STALLED
        return found

    cdef int64_t bytes_unacked(self) noexcept:
        try:
            return <int64_t>self.transport.get_write_buffer_size() + <int64_t>unacked_bytes(self.transport)
        except AttributeError:
            # A TLS transport that has ended has no buffer any more. It reports its end in a later iteration.
            return 0

    cdef object peer_name(self):
        return self.peer

    def get_ssl_object(self):
        if self.closed or self.finishing or self.transport is None or self.transport.is_closing():
            return None
        return self.transport.get_extra_info("ssl_object")

    # In the next iteration of the loop

    cdef void schedule(self) noexcept:
        if not self.scheduled and not self.closed:
            try:
                self.loop.call_soon(self._flush)
                self.scheduled = True
            except RuntimeError:
                # The loop is closed: nothing of this link will ever run again.
                pass

    def _flush(self):
        self.scheduled = False
        if self.closed:
            return
        # Notify before the transport gets more bytes than notify_when_left() named.
        self.notify_drained()
        self.flush_now()
        if not queue_is_empty(&self.queue):
            return
        self.notify_drained()
        if self.finishing and not self.closing_transport and queue_is_empty(&self.queue):
            if self.ended or not self.transport.can_write_eof():
                self.closing_transport = True
                self.transport.close()
            elif not self.transport.is_closing():
                self.closing_transport = True
                try:
                    self.transport.write_eof()
                except OSError:
                    # The peer has gone, and the transport has not seen it yet.
                    self.abort(False)
        elif self.finishing and self.ended and not self.transport.is_closing():
            # Do not close it twice: on Python 3.11 a TLS transport can then no longer report its buffer size.
            self.transport.close()

    def on_lost(self, int error):
        self.notify_lost(error)
