"""The connection to another worker. workers_peer.pyx says what it does."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver
from wshub.brokers.workers_interest cimport Interest
from wshub.brokers.workers_receiving cimport RecordReceiver
from wshub.links.link cimport LinkCounters
from wshub.protocol.frame_buffer cimport FrameBuffer


# Whether an envelope was queued for a peer.
cdef enum EnvelopeOutcome:
    ENVELOPE_QUEUED
    ENVELOPE_FULL      # dropped: too many bytes wait for the peer
    ENVELOPE_LOST      # dropped: the connection has ended
    ENVELOPE_MEMORY    # dropped: there was no memory

cdef class Peer(RecordReceiver):
    cdef readonly bint initiated    # this node has connected to the other, not the other way round
    cdef readonly bint is_up        # both have said HELLO: envelopes may be sent
    cdef readonly bint has_left     # it has said GOODBYE
    cdef public str node_id         # of the other worker, from its socket's name or its HELLO; empty before
    cdef public object node         # its NodeInfo, from its HELLO on; or None
    cdef public object hello        # what its HELLO said, or None
    cdef public double silent       # seconds for which nothing has arrived
    cdef public double probed_at    # when the last probe was sent, by the hub's clock
    cdef public uint64_t probe      # its number; 0 once it was answered
    cdef public double probe_ms     # milliseconds that the last answered probe took; negative before the first

    cdef object owner               # workers_session.PeerOwner; None once the connection is lost
    cdef LinkCounters counters
    cdef Interest interest
    cdef EnvelopeReceiver receiver
    cdef size_t max_pending
    cdef int64_t snapshot_end       # the link's `bytes_written` at which the last snapshot has left

    cdef set named                  # channels that the snapshot which arrives has named so far; or None
    cdef public uint64_t announced  # number of the PING behind the first snapshot; 0 once it was answered

    # Output that waits for space
    cdef bint is_dropping           # until half of the queue has left
    cdef uint64_t dropped           # envelopes since the last GAP record
    cdef bint snapshot_due
    cdef uint64_t ping_due          # the number of a PING that is to be sent; or 0
    cdef uint64_t pong_due
    cdef object departures          # deque of pairs: the `bytes_written` to reach, and a future

    cdef EnvelopeOutcome write_envelope(self, FrameBuffer *frame) noexcept
    cdef int write_change(self, FrameBuffer *frame) noexcept
    cdef bint write_body(self, uint8_t kind, bytes body, bint always) except -1
    cdef bint has_space(self, size_t length) noexcept
    cdef int write_record(self, uint8_t kind, const void *body, size_t length) noexcept
    cdef int write_frame(self, FrameBuffer *frame) noexcept
    cdef void write_number_record(self, uint8_t kind, uint64_t number) noexcept
    cdef void write_number_frame(self, uint8_t kind, uint64_t number) noexcept
    cdef void begin_dropping(self) noexcept
    cdef void end_dropping(self) noexcept
    cdef int write_snapshot(self) except -1
    cdef void settle_departures(self) noexcept

    cdef int matching_received(self, const uint8_t *body, size_t length) except -1
    cdef int handle_control(self, uint8_t kind, const uint8_t *body, size_t length) except -1
