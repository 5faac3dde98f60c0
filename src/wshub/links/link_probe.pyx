# cython: language_level=3
"""A receiver that records its calls, and gives Python the native methods of its link: for tests of links."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from wshub.links.link cimport AT_REST, TAKING, LinkCounters, Link, Progress, Receiver, counts_of, queue_charge
from wshub.protocol.frame_buffer cimport (
    RAW,
    FrameBuffer,
    frame_set_metadata,
    frame_new,
    frame_payload,
    frame_release,
    frame_seal,
)
from wshub.protocol.opcodes cimport BINARY_OPCODE


cdef class LinkProbe(Receiver):
    """Records what a link calls it with, in order, in ``events``.

    An event is a tuple: ``("data", bytes)``, ``("eof",)``, ``("drained",)`` or ``("lost", error)``.

    Args:
        link: the link whose receiver the probe becomes, or None for ``attach()`` later.
        buffer_size: size of the probe's own buffer, into which the link reads; 0 for none.
    """

    cdef readonly list events
    cdef readonly Link link
    cdef readonly LinkCounters counters
    cdef readonly int nested     # calls that came while another had not returned
    cdef public object on_event  # called with each event before the link's call returns, or None
    cdef bytearray buffer
    cdef bint inside

    def __init__(self, Link link=None, *, int buffer_size=0):
        self.events = []
        self.buffer = bytearray(buffer_size)
        if link is not None:
            self.attach(link)

    def attach(self, Link link not None):
        """Become the receiver of a link. Give it counters if it has none."""
        if link.counters is None:
            link.counters = LinkCounters()
        self.link = link
        self.counters = link.counters
        link.receiver = self

    def start_anew(self):
        """Forget the events, and count in new counters."""
        self.events.clear()
        self.nested = 0
        self.counters = self.link.counters = LinkCounters()

    # What the link calls

    cdef void record(self, tuple event) noexcept:
        cdef bint outer = self.inside
        self.nested += outer
        self.inside = True
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)
        self.inside = outer

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        self.record(("data", data[:length]))

    cdef size_t get_buffer(self, uint8_t **buffer) noexcept:
        if len(self.buffer):
            buffer[0] = <uint8_t *><char *>self.buffer
        return len(self.buffer)

    cdef void buffer_updated(self, size_t length) noexcept:
        self.record(("data", bytes(self.buffer[:length])))

    cdef void eof_received(self) noexcept:
        self.record(("eof",))

    cdef void drained(self) noexcept:
        self.record(("drained",))

    cdef void connection_lost(self, int error) noexcept:
        self.record(("lost", error))

    @property
    def received(self):
        """All bytes that have arrived."""
        return b"".join([event[1] for event in self.events if event[0] == "data"])

    def count(self, str name):
        """Return how many events have that name."""
        return sum([event[0] == name for event in self.events])

    # The methods of the link

    def write(self, bytes data):
        """Queue bytes that are sent as they are."""
        self.queue(data, RAW, False)

    def send(self, bytes payload, *, bint droppable=False):
        """Queue a binary message."""
        self.queue(payload, BINARY_OPCODE, droppable)

    cdef object queue(self, bytes data, uint8_t opcode, bint droppable):
        cdef FrameBuffer *frame = frame_new(opcode, len(data))
        cdef int outcome
        if frame == NULL:
            raise MemoryError
        memcpy(frame_payload(frame), <const char *>data, len(data))
        frame.length = len(data)
        if opcode != RAW:
            frame_seal(frame, opcode)
        frame_set_metadata(frame, 0, NULL, droppable)
        outcome = self.link.write(frame)
        frame_release(frame)
        if outcome < 0:
            raise MemoryError

    def pause(self):
        self.link.pause()

    def resume(self):
        self.link.resume()

    def abort(self, *, bint after_flush=False):
        self.link.abort(after_flush)

    def flush_now(self):
        self.link.flush_now()

    def drop_unsent(self):
        self.link.drop_unsent()

    def make_space(self, size_t bound):
        return self.link.make_space(bound)

    def end_of_queue(self):
        return self.link.end_of_queue()

    def notify_when_left(self, int64_t length):
        self.link.notify_when_left(length)

    def notify_whenever_drained(self):
        """Have ``drained()`` called each time that the link was blocked and its queue is empty again."""
        self.link.notifies_drained = True

    def poll_progress(self):
        """Return "at rest", "taking" or "stalled"."""
        cdef Progress found = self.link.poll_progress()
        return "at rest" if found == AT_REST else "taking" if found == TAKING else "stalled"

    @property
    def blocked(self):
        return self.link.blocked != 0

    @property
    def closed(self):
        return self.link.closed != 0

    @property
    def queued(self):
        """Bytes in the queue."""
        return self.link.queue.queued_bytes

    @property
    def charge(self):
        """The bytes of the queue that count against a bound."""
        return queue_charge(&self.link.queue)

    @property
    def peer_name(self):
        return self.link.peer_name()

    @property
    def counts(self):
        """The values of the link's counters. Messages in the queue are ``messages_pending``."""
        found = counts_of(&self.counters.messages, self.link.queue.messages)
        return {"bytes_received": self.counters.bytes_received, "bytes_sent": self.counters.bytes_sent, **found}
