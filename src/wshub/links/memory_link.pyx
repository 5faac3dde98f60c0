# cython: language_level=3
"""A pair of links in memory: what is written to one end arrives at the other.

No descriptor is needed. Between the two ends each direction holds a bounded number of bytes, as the kernel's buffers
do, so a receiver that does not read blocks its writer. Without an event loop, bytes move only when ``deliver()`` is
called: a test or a simulation decides what happens next.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from wshub.links.link cimport LinkCounters, Link, Receiver, iovec, queue_advance, queue_gather, queue_is_empty
from wshub.protocol.frame_buffer cimport DELIVERED, FrameBuffer

import errno

cdef enum:
    # Maximum number of bytes that one step receives, as with one read of a socket.
    RECEIVE_SIZE = 65536
    SCRATCH_SIZE = 4096


cdef class MemoryLink(Link):
    """One end of a pair. ``create_memory_links()`` makes both."""

    def deliver(self, limit=None):
        """Take one step at this end. Return whether anything happened.

        A step sends what is queued at both ends, as far as it fits. It then calls the receiver:
        with up to ``limit`` bytes or the end of the other side, with ``drained()``, and with the end of the link.
        Within a receiver this does nothing.
        """
        cdef Py_ssize_t most = RECEIVE_SIZE if limit is None else limit
        cdef bint busy
        cdef Receiver receiver
        if self.delivering:
            return False
        self.delivering = True
        try:
            busy = self.has_work()
            if not self.closed:
                self.other.flush()
                busy |= self.receive(most)
                self.flush()
            if not self.closed and self.should_notify_drained():
                busy = True
                self.notify_drained()
                self.flush()
            if self.lost_pending:
                busy = True
                self.lost_pending = False
                receiver = self.receiver
                self.receiver = None
                if receiver is not None:
                    receiver.connection_lost(self.error)
        finally:
            self.delivering = False
        if self.has_work():
            self.schedule()
        return busy

    def end_output(self):
        """End this side once the queue has left. The other end may go on to send."""
        self.output_ends = True
        self.schedule()

    def cut(self, int error=errno.ECONNRESET):
        """Lose the connection. Both ends end with that error, and the bytes between them are gone."""
        cdef MemoryLink end
        for end in (self, self.other):
            end.outgoing.clear()
            end.on_lost(error)

    @property
    def bytes_on_the_way(self):
        """The number of bytes that this end has sent and the other has not received."""
        return len(self.outgoing)

    cdef int write(self, FrameBuffer *frame) noexcept:
        if self.closed or self.finishing or self.output_ends:
            return 0
        if self.push(frame) < 0:
            return -1
        self.schedule()
        return 0

    cdef void pause(self) noexcept:
        self.paused = True

    cdef void resume(self) noexcept:
        self.paused = False
        if not self.closed:
            self.schedule()

    cdef void abort(self, bint after_flush) noexcept:
        if self.closed:
            return
        if after_flush:
            self.finishing = True
            self.paused = False
            self.schedule()
        else:
            self.on_lost(0)

    cdef void flush_now(self) noexcept:
        if not self.closed:
            self.flush()
            self.schedule()

    cdef int64_t bytes_unacked(self) noexcept:
        return len(self.outgoing)

    cdef void flush(self) noexcept:
        """Move bytes from the queue to the other end's side, as many as fit."""
        cdef uint8_t scratch[SCRATCH_SIZE]
        cdef iovec piece
        cdef size_t total, space
        if self.closed:
            return
        self.blocked = False
        while not queue_is_empty(&self.queue):
            if self.other.closed:
                self.on_lost(errno.EPIPE)
                return
            space = self.capacity - len(self.outgoing)
            if space == 0:
                self.blocked = True
                self.mark_blocked()
                break
            queue_gather(&self.queue, &piece, 1, scratch, SCRATCH_SIZE, &total)
            total = min(total, space)
            try:
                self.outgoing += (<const uint8_t *>piece.iov_base)[:total]
            except MemoryError:
                # The next step tries again.
                break
            self.bytes_written += total
            self.counters.bytes_sent += total
            self.counters.messages.outcomes[DELIVERED] += queue_advance(&self.queue, total)
            self.other.schedule()
        if (self.finishing or self.output_ends) and queue_is_empty(&self.queue):
            if self.finishing and self.ended:
                self.on_lost(0)
            elif not self.shut_down:
                self.shut_down = True
                self.other.schedule()

    cdef bint receive(self, Py_ssize_t limit) except -1:
        """Give the receiver bytes of the other end, or its end. Return whether there was anything."""
        cdef MemoryLink other = self.other
        cdef Receiver receiver = self.receiver
        cdef Py_ssize_t length = min(limit, len(other.outgoing), RECEIVE_SIZE)
        cdef size_t space = 0
        cdef uint8_t *target = NULL
        cdef bytes data
        if self.paused or self.ended:
            return False
        if length <= 0:
            if len(other.outgoing) or not (other.shut_down or other.closed):
                return False
            self.ended = True
            if not self.finishing and receiver is not None:
                receiver.eof_received()
            return True
        if receiver is not None and not self.finishing:
            space = receiver.get_buffer(&target)
        if space:
            length = min(length, <Py_ssize_t>space)
        data = bytes(other.outgoing[:length])
        del other.outgoing[:length]
        if other.blocked:
            other.schedule()
        self.counters.bytes_received += length
        if receiver is None or self.finishing:
            pass
        elif space:
            memcpy(target, <const char *>data, length)
            receiver.buffer_updated(length)
        else:
            receiver.data_received(<const uint8_t *><const char *>data, length)
        return True

    cdef bint has_work(self) noexcept:
        """Return whether a step would do anything."""
        cdef MemoryLink other = self.other
        if self.closed:
            return self.lost_pending
        if not queue_is_empty(&self.queue) and (other.closed or <size_t>len(self.outgoing) < self.capacity):
            return True
        if queue_is_empty(&self.queue):
            if self.finishing and self.ended or (self.finishing or self.output_ends) and not self.shut_down:
                return True
        if self.should_notify_drained():
            return True
        if self.paused or self.ended:
            return False
        return len(other.outgoing) > 0 or other.shut_down or other.closed or not queue_is_empty(&other.queue)

    cdef void schedule(self) noexcept:
        if self.loop is None or self.scheduled:
            return
        try:
            self.loop.call_soon(self._deliver_soon)
            self.scheduled = True
        except RuntimeError:
            # The loop is closed: nothing of this link will ever run again.
            pass

    def _deliver_soon(self):
        self.scheduled = False
        self.deliver()

    cdef void on_lost(self, int error) noexcept:
        """End the link. The receiver is called in the next step. Bytes on the way still arrive at the other end."""
        if self.closed:
            return
        self.closed = True
        self.error = error
        self.drop_queue()
        self.lost_pending = True
        self.schedule()
        self.other.schedule()


def create_memory_links(*, loop=None, Py_ssize_t capacity=65536):
    """Return the two ends of a connection in memory.

    Args:
        loop: an event loop that calls ``deliver()`` when there is something to do; None leaves that to the caller.
        capacity: the bytes that may be on the way in each direction.
    """
    cdef MemoryLink first = MemoryLink()
    cdef MemoryLink second = MemoryLink()
    cdef MemoryLink end
    if capacity <= 0:
        raise ValueError("capacity must be positive")
    for end in (first, second):
        end.loop = loop
        end.capacity = capacity
        end.outgoing = bytearray()
        end.counters = LinkCounters()
    first.other = second
    second.other = first
    return first, second


def deliver_all(MemoryLink link not None):
    """Let both ends take steps until nothing is left to do."""
    cdef bint busy = True
    while busy:
        busy = link.deliver()
        busy |= link.other.deliver()
