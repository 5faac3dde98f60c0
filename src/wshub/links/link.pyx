# cython: language_level=3
"""The interface between a link, which carries the bytes of a connection, and its receiver, which handles them."""

from libc.stdint cimport int64_t

from wshub.protocol.frame_buffer cimport (
    DELIVERED,
    DROPPED_CLOSED,
    DROPPED_NEWEST,
    DROPPED_OLDEST,
    DROPPED_SLOW,
    REPLACED,
    FrameBuffer,
    Outcome,
    DeliveryCounters,
    frame_is_message,
)


cdef dict counts_of(const DeliveryCounters *delivery_counters, uint64_t pending):
    """Return the outcomes of messages as a dict, by name."""
    return {
        "messages_accepted": delivery_counters.accepted,
        "messages_delivered": delivery_counters.outcomes[DELIVERED],
        "messages_pending": pending,
        "dropped": {
            "closed": delivery_counters.outcomes[DROPPED_CLOSED],
            "slow": delivery_counters.outcomes[DROPPED_SLOW],
            "newest": delivery_counters.outcomes[DROPPED_NEWEST],
            "oldest": delivery_counters.outcomes[DROPPED_OLDEST],
            "replaced": delivery_counters.outcomes[REPLACED],
        },
    }


cdef class LinkCounters:
    """Counts of bytes and messages, which the links of a hub keep."""


cdef class Receiver:
    """Gets what arrives on a link. Each method here does nothing; a receiver overrides those that it needs.

    The link calls the methods on the thread of the event loop, from the loop and never from within a task or a method
    of the link. A receiver may write to the link, pause and abort it in each of them. It raises nothing.

    - ``data_received(data, length)`` is called with bytes in the order in which the peer sent them. The memory is valid
      until it returns.
    - ``get_buffer(buffer)`` and ``buffer_updated(length)`` replace ``data_received()`` in links that can read into
      memory of the receiver.
    - ``eof_received()``: the peer has ended its side. It is called at most once. The link stays open for output until
      it is aborted.
    - ``drained()``: the bytes that ``notify_when_left()`` named have left.
    - ``connection_lost(error)`` is called exactly once, after the end of the link. No method is called after it.
      ``abort()`` never calls it before it returns. A link that was detached does not call it.
    """

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        """Take `length` bytes that have arrived. `data` is valid until this returns."""

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        """Return how many of the next bytes may be read into `*buffer`; 0 for data_received()."""
        return 0

    cdef void buffer_updated(self, size_t length) noexcept:
        """Take `length` bytes that were read into the memory that get_buffer() named."""

    cdef void eof_received(self) noexcept:
        """Called when the peer has ended its side. The link stays open until it is aborted."""

    cdef void drained(self) noexcept:
        """Called when the queue is empty, or when the bytes that notify_when_left() named have left."""

    cdef void continue_input(self) noexcept:
        """Go on with input that the receiver has left unread. Its hub calls this, not the link."""

    cdef void connection_lost(self, int error) noexcept:
        """Called when the link is gone, with all that was queued. `error` is an errno, or 0."""


cdef class Link:
    """Carries the bytes of one connection. Each kind of link implements these methods; they are native only.

    The receiver, or its hub, calls them on the thread of the event loop. No method raises. None calls the receiver
    before it returns, so a receiver may call each of them at any time, also from within its own methods. After the end
    of the link every method does nothing. Bytes that are written after ``abort()`` are ignored, or dropped.

    - ``write(frame)`` queues a frame. Frames leave whole, in order, each once. It never waits, and never refuses a
      frame because of how much is queued. It returns -1, and changes nothing, if there is no memory.
    - ``pause()`` stops reading, and ``resume()`` reads again. Bytes that were read before may still arrive. A paused
      link of the epoll reactor ends if the peer resets the connection, and leaves unread what came before. The end of
      the peer's side alone waits for ``resume()``.
    - ``abort(after_flush)`` ends the link. At once, it drops what is queued. After the flush, it sends the queue, then
      the end of this side. It ends when the peer has ended its side too, and discards bytes that arrive until then. An
      abort at once may follow one after the flush.
    - ``flush_now()`` sends what can be sent before it returns. Otherwise the queue leaves soon.
    - ``notify_when_left(n)`` has the receiver's ``drained()`` called once: when ``n`` bytes have left, or the queue is
      empty. If ``notifies_drained`` is set, ``drained()`` is also called each time that the queue is empty again after
      the link was blocked.
    - ``poll_progress()`` says whether the peer still acknowledges bytes.
    - ``detach()`` gives up the descriptor, if there is one. It does not call the receiver. ``fileno()`` lends it.
    - ``read_to_end()`` has a link that can still read after a failed send drop its queue, and end when it has read
      everything. Only links that own their descriptor can.

    ``queue`` holds what waits. ``blocked`` is set while the other side takes no more. ``counters`` counts each byte and
    each message once: a message that was accepted is pending, delivered or dropped.
    """

    def __dealloc__(self):
        queue_clear(&self.queue, DROPPED_CLOSED)

    cdef int write(self, FrameBuffer *frame) noexcept:
        """Queue a frame, with a reference of the queue's own. Return -1 if there is no memory."""
        return -1

    cdef void read_to_end(self) noexcept:
        """Read what the peer had sent before the link ends, if the peer takes no more. Others end at once."""

    cdef void pause(self) noexcept:
        """Stop reading until resume(). Bytes that were read already may still arrive."""

    cdef void resume(self) noexcept:
        """Read again."""

    cdef void abort(self, bint after_flush) noexcept:
        """End the link.

        At once, it drops what is queued. With `after_flush`, it ends when the queue has left and the peer has ended its
        side too; bytes that arrive until then are discarded. A second call may still end it at once.
        """

    cdef void flush_now(self) noexcept:
        """Send what the kernel takes of the queue before this returns, instead of soon."""

    cdef void send_from_task(self) noexcept:
        """Send the queue before the current task goes on. An ASGI server may end the connection once that task returns.

        Code of the application may run in it, so a fan-out never calls it.
        """

    cdef void drop_unsent(self) noexcept:
        """Drop every queued frame of which no byte has left yet, and count it as dropped for slowness."""
        self.counters.messages.outcomes[DROPPED_SLOW] += queue_discard_unsent(&self.queue, DROPPED_SLOW)

    cdef bint has_drained(self) noexcept:
        """Return whether nothing is queued and more would be taken. A transport may have a queue of its own."""
        return queue_is_empty(&self.queue) and not self.blocked

    cdef int64_t end_of_queue(self) noexcept:
        """Return the `bytes_written` at which all bytes that are queued now have left, if none of them is dropped."""
        return self.bytes_written + self.queue.queued_bytes

    cdef void notify_when_left(self, int64_t length) noexcept:
        """Have drained() called once: when `bytes_written` has reached `length`, or the queue is empty."""
        self.drain_requested = True
        if self.notify_at == 0 or length < self.notify_at:
            self.notify_at = length

    cdef bint should_notify_drained(self) noexcept:
        """Return whether the bytes that notify_when_left() named have left."""
        return self.drain_requested and (self.has_drained() or 0 < self.notify_at <= self.bytes_written)

    cdef void notify_drained(self) noexcept:
        """Call drained() if the bytes that notify_when_left() named have left. If not, it is called later."""
        if self.closed or self.receiver is None or not self.should_notify_drained():
            return
        self.notify_at = 0
        if self.has_drained():
            self.drain_requested = False
        self.receiver.drained()

    cdef Progress poll_progress(self) noexcept:
        """Ask the kernel how many bytes the peer has acknowledged. Return the progress since the last call."""
        cdef int64_t before = self.bytes_acked
        if self.closed:
            return AT_REST
        if before < self.bytes_written:
            self.bytes_acked = self.bytes_written - self.bytes_unacked()
            if self.bytes_acked > before:
                return TAKING
        return STALLED if self.blocked else AT_REST

    cdef int64_t bytes_unacked(self) noexcept:
        """Return how many of the bytes that have left the queue the peer has not acknowledged."""
        return 0

    cdef bint make_space(self, size_t bound) noexcept:
        """Drop the oldest of the queued messages that may be dropped, until less than `bound` bytes wait.

        Return False, and drop none, if dropping all of them is not enough.
        """
        cdef size_t dropped = queue_make_space(&self.queue, bound)
        self.counters.messages.outcomes[DROPPED_OLDEST] += dropped
        return dropped > 0

    cdef bint replace(self, FrameBuffer *frame) noexcept:
        """Put a message in the place of the queued one with the same key. Return whether there was one."""
        if not queue_replace(&self.queue, frame):
            return False
        self.counters.messages.accepted += 1
        self.counters.messages.outcomes[REPLACED] += 1
        return True

    cdef void reject(self, FrameBuffer *frame, Outcome outcome) noexcept:
        """Count a message that is dropped instead of queued."""
        if not frame_is_message(frame):
            return
        self.counters.messages.accepted += 1
        self.counters.messages.outcomes[outcome] += 1
        if frame.delivery_counters != NULL:
            frame.delivery_counters.accepted += 1
            frame.delivery_counters.outcomes[outcome] += 1

    cdef int detach(self) noexcept:
        """Give the descriptor to the caller. The link ends, without a call of its receiver.

        Nothing may be queued. Return -1, and change nothing, if there is no descriptor.
        """
        return -1

    cdef int fileno(self) noexcept:
        """Return the descriptor, which stays the link's. Return -1 if there is none, or none any more."""
        return -1

    cdef object peer_name(self):
        """Return the peer's IP address and port, or None for a Unix socket."""
        return None

    def get_ssl_object(self):
        """Return an SSLObject of the connection, to ask it; None without TLS, and once the link finishes or has ended.

        There is none before the handshake either.
        """
        return None

    def getpeercert(self, binary_form=False):
        """Return what ``SSLObject.getpeercert()`` does; None where there is no SSLObject."""
        found = self.get_ssl_object()
        return found.getpeercert(binary_form) if found is not None else None

    cdef int push(self, FrameBuffer *frame) noexcept:
        """Queue the frame and count it."""
        cdef size_t messages = self.queue.messages
        if queue_push(&self.queue, frame) < 0:
            return -1
        self.counters.messages.accepted += self.queue.messages - messages
        return 0

    cdef FrameBuffer *pop_delivered(self) noexcept:
        """Remove the first frame of the queue, count it as delivered, and return it. The caller owns it from now on."""
        cdef FrameBuffer *frame = queue_pop(&self.queue, DELIVERED)
        self.counters.messages.outcomes[DELIVERED] += frame_is_message(frame)
        return frame

    cdef void mark_blocked(self) noexcept:
        """Record that the other side takes no more for now, for a receiver that asked for drained() after that."""
        if self.notifies_drained:
            self.was_blocked = True
            self.drain_requested = True

    cdef void drop_queue(self) noexcept:
        """Drop everything queued, and count it as dropped by the end of the connection."""
        cdef size_t dropped = queue_clear(&self.queue, DROPPED_CLOSED)
        if dropped:
            self.counters.messages.outcomes[DROPPED_CLOSED] += dropped

    cdef void notify_lost(self, int error) noexcept:
        """End the link: drop what is queued, and call connection_lost() once."""
        cdef Receiver receiver = self.receiver
        if self.closed:
            return
        self.closed = True
        self.drop_queue()
        self.receiver = None
        if receiver is not None:
            receiver.connection_lost(error)
