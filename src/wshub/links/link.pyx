# cython: language_level=3
"""The two sides of every link: who carries the octets of a connection, and who receives them."""

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
    Tally,
    frame_is_message,
)


cdef dict counts_of(const Tally *tally, uint64_t pending):
    """What became of messages, by name."""
    return {
        "messages_accepted": tally.accepted,
        "messages_delivered": tally.outcomes[DELIVERED],
        "messages_pending": pending,
        "dropped": {
            "closed": tally.outcomes[DROPPED_CLOSED],
            "slow": tally.outcomes[DROPPED_SLOW],
            "newest": tally.outcomes[DROPPED_NEWEST],
            "oldest": tally.outcomes[DROPPED_OLDEST],
            "replaced": tally.outcomes[REPLACED],
        },
    }


cdef class Ledger:
    """Counts of octets and messages, kept for a hub by its links."""


cdef class Receiver:
    """Whoever is told what arrives on a link. Each method here does nothing."""

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        """`length` octets have arrived; they are gone when this returns."""

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        """Where the next octets may be received without a copy, and how many: 0 if nowhere in particular."""
        return 0

    cdef void buffer_updated(self, size_t length) noexcept:
        """`length` octets were received where get_buffer() said."""

    cdef void eof_received(self) noexcept:
        """The peer sends nothing more. The link stays open until it is aborted."""

    cdef void drained(self) noexcept:
        """What was to be told of has left: all of the queue, or as many octets as were named."""

    cdef void continue_input(self) noexcept:
        """It is the receiver's turn to handle what it has left unread."""

    cdef void connection_lost(self, int error) noexcept:
        """The link is gone, and all that was queued with it. `error` is an errno, or 0. It is called once."""


cdef class Link:
    """Carries the octets of one connection. Each kind of link gives these verbs their meaning."""

    def __dealloc__(self):
        queue_clear(&self.queue, DROPPED_CLOSED)

    cdef int write(self, FrameBuffer *frame) noexcept:
        """Queues a frame, of which the queue takes a reference of its own. Returns -1 where there is no memory."""
        return -1

    cdef void pause(self) noexcept:
        """Stops reading until resume(). What has been read already may still arrive."""

    cdef void resume(self) noexcept:
        """Reads again."""

    cdef void abort(self, bint after_flush) noexcept:
        """Ends the link.

        At once, losing what is queued; or, with `after_flush`, when the queue has left and the peer has ended its
        side too, until which everything that arrives is discarded. A second call may turn the one into the other.
        """

    cdef void flush_now(self) noexcept:
        """Sends what the kernel takes of the queue right away, rather than at the end of this turn."""

    cdef void send_from_task(self) noexcept:
        """Passes on the queue before the task that has sent goes on, where an ASGI server may end the connection then.

        Code of the application may run in it, so it is never called from within a fan-out.
        """

    cdef void drop_unsent(self) noexcept:
        """Forgets, and counts as dropped for slowness, every queued frame of which nothing has left yet."""
        self.ledger.messages.outcomes[DROPPED_SLOW] += queue_discard_unsent(&self.queue, DROPPED_SLOW)

    cdef bint has_drained(self) noexcept:
        """Whether nothing is queued, and more would be taken: a transport that asks for a pause has a queue itself."""
        return queue_is_empty(&self.queue) and not self.blocked

    cdef int64_t end_of_queue(self) noexcept:
        """How many octets will have left, ever, once all that is queued now has: fewer if some of it is dropped."""
        return self.given + self.queue.octets

    cdef void notify_when_left(self, int64_t octets) noexcept:
        """Has the receiver told, once, when so many octets have left the queue, ever, or the queue is empty."""
        self.notify_drained = True
        if self.notify_at == 0 or octets < self.notify_at:
            self.notify_at = octets

    cdef bint has_news(self) noexcept:
        """Whether what the receiver asked to be told of has left."""
        return self.notify_drained and (self.has_drained() or 0 < self.notify_at <= self.given)

    cdef void tell_drained(self) noexcept:
        """Tells the receiver, if what it asked to be told of has left; if not, it is still to be told."""
        if self.closed or self.receiver is None or not self.has_news():
            return
        self.notify_at = 0
        if self.has_drained():
            self.notify_drained = False
        self.receiver.drained()

    cdef Progress look(self) noexcept:
        """Asks the kernel how much the peer has acknowledged, and returns how that has changed since the last call."""
        cdef int64_t before = self.acknowledged
        if self.closed:
            return AT_REST
        if before < self.given:
            self.acknowledged = self.given - self.unacknowledged()
            if self.acknowledged > before:
                return TAKING
        return STALLED if self.blocked else AT_REST

    cdef int64_t unacknowledged(self) noexcept:
        """How many of the octets that were given away the peer is not known to have."""
        return 0

    cdef bint make_room(self, size_t bound) noexcept:
        """Forgets the oldest of the queued messages that can be spared, until less than `bound` octets wait.

        Returns False, and forgets none, where that cannot be.
        """
        cdef size_t dropped = queue_make_room(&self.queue, bound)
        self.ledger.messages.outcomes[DROPPED_OLDEST] += dropped
        return dropped > 0

    cdef bint replace(self, FrameBuffer *frame) noexcept:
        """Puts a message in the place of the queued one with the same key. Returns whether there was one."""
        if not queue_replace(&self.queue, frame):
            return False
        self.ledger.messages.accepted += 1
        self.ledger.messages.outcomes[REPLACED] += 1
        return True

    cdef void turn_away(self, FrameBuffer *frame, Outcome outcome) noexcept:
        """Counts a message that is dropped rather than queued."""
        if not frame_is_message(frame):
            return
        self.ledger.messages.accepted += 1
        self.ledger.messages.outcomes[outcome] += 1
        if frame.tally != NULL:
            frame.tally.accepted += 1
            frame.tally.outcomes[outcome] += 1

    cdef int detach(self) noexcept:
        """Gives up the descriptor, which is the caller's from here on. The link ends; its receiver is not told.

        Nothing may be queued. Returns -1, and changes nothing, where there is no descriptor to be had.
        """
        return -1

    cdef object peer_name(self):
        """The peer's IP address and port, or None for a Unix socket."""
        return None

    cdef int push(self, FrameBuffer *frame) noexcept:
        """Queues the frame and counts it."""
        cdef size_t messages = self.queue.messages
        if queue_push(&self.queue, frame) < 0:
            return -1
        self.ledger.messages.accepted += self.queue.messages - messages
        return 0

    cdef FrameBuffer *hand_on(self) noexcept:
        """Removes the first frame of the queue, and counts it as delivered. It is the caller's from here on."""
        cdef FrameBuffer *frame = queue_pop(&self.queue, DELIVERED)
        self.ledger.messages.outcomes[DELIVERED] += frame_is_message(frame)
        return frame

    cdef void fall_behind(self) noexcept:
        """Something is left behind: a receiver that is to be told of the empty queue then, will be."""
        if self.tells_drained:
            self.fell_behind = True
            self.notify_drained = True

    cdef void drop_queue(self) noexcept:
        """Forgets, and counts as dropped by the end of the connection, everything queued."""
        cdef size_t dropped = queue_clear(&self.queue, DROPPED_CLOSED)
        if dropped:
            self.ledger.messages.outcomes[DROPPED_CLOSED] += dropped

    cdef void tell_lost(self, int error) noexcept:
        """The link is gone: forgets what is queued, and tells the receiver, once."""
        cdef Receiver receiver = self.receiver
        if self.closed:
            return
        self.closed = True
        self.drop_queue()
        self.receiver = None
        if receiver is not None:
            receiver.connection_lost(error)
