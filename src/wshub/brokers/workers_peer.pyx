# cython: language_level=3
"""The connection to another worker: it handles the records that arrive, and queues those that leave.

At most `max_pending` bytes wait to be sent, and the last snapshot. If an envelope finds no space, it and those after it
are dropped until half of the queue has left. Then a GAP record takes their place. A record that changes what the other
worker knows is never lost. If there is no space for it, a snapshot of the same facts follows the GAP record.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver
from wshub.brokers.little_endian cimport read_number
from wshub.brokers.workers_interest cimport Interest, decode_channels
from wshub.brokers.workers_record cimport (
    ENVELOPE,
    GAP,
    GOODBYE,
    HEADER_SIZE,
    HELLO,
    HISTORY,
    LENGTH_SIZE,
    MATCHING,
    MAX_ENVELOPE,
    NUMBER_SIZE,
    PING,
    PONG,
    PRESENCE,
    SNAPSHOT,
    SNAPSHOT_END,
    SUBSCRIBE,
    UNSUBSCRIBE,
    number_record_new,
    record_new,
)
from wshub.brokers.workers_receiving cimport HELD, NO_LINK, RecordReceiver
from wshub.links.link cimport Link, LinkCounters, queue_charge, queue_is_empty
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_release, frame_wire_length

import logging
from collections import deque

logger = logging.getLogger("wshub.broker")


cdef class Peer(RecordReceiver):
    """Another worker, through one connection.

    Args:
        owner: is called with what has happened. workers_session.py says how.
        loop: the event loop of the connection.
        interest: the channels of this node and of all its peers.
        receiver: takes the envelopes.
        counters: where bytes and envelopes are counted.
        max_pending: bytes that may wait to be sent.
        initiated: whether this node has connected to the other.
    """

    def __init__(
        self, owner, loop, Interest interest not None, EnvelopeReceiver receiver not None,
        LinkCounters counters not None, size_t max_pending, *, bint initiated,
    ):
        self.owner = owner
        self.loop = loop
        self.interest = interest
        self.receiver = receiver
        self.counters = counters
        self.max_pending = max_pending
        self.initiated = initiated
        self.probe_ms = -1
        self.node_id = ""
        self.departures = deque()

    # What the owner calls

    def attach(self, Link link not None):
        """Use the link. Records that have arrived already are handled now."""
        if self.owner is None:
            return
        if self.ended:
            self.link = link
            link.abort(False)
            return
        self.link = link
        link.read_to_end()
        self.unblock(NO_LINK)

    def say_hello(self, bytes body not None):
        """Send HELLO, the first record."""
        self.write_record(HELLO, <const char *>body, len(body))

    def open(self):
        """Send what this node has subscribed to, and envelopes from now on. Both have said HELLO."""
        self.is_up = True
        self.longest = MAX_ENVELOPE + 1
        self.write_snapshot()

    def hold(self):
        """Handle no more records until ``release()``. Call it from within ``hello_received``."""
        self.blocks |= HELD
        self.link.pause()

    def release(self):
        """Handle the records that wait."""
        self.unblock(HELD)

    def ping(self, uint64_t number):
        """Send a PING. Its PONG says that every record that was queued before has been handled."""
        self.write_number_record(PING, number)

    def send_history(self, bytes body not None, *, bint always=False):
        """Queue a HISTORY record. Return False if it is not sent: there is no space, or no connection.

        Args:
            body: of the record.
            always: queue it even if there is no space. The number of such records must be bounded.
        """
        return self.write_body(HISTORY, body, always)

    def send_presence(self, bytes body not None, *, bint always=False):
        """Queue a PRESENCE record, as ``send_history`` does."""
        return self.write_body(PRESENCE, body, always)

    def leave(self):
        """Send GOODBYE and all that waits, then end the connection."""
        if self.ended or self.link is None:
            self.end()
            return
        if self.is_up:
            # The other learns that envelopes were dropped before it learns that this node leaves.
            if self.is_dropping:
                self.end_dropping()
            self.write_record(GOODBYE, NULL, 0)
        self.ended = True
        self.link.abort(True)

    def refuse(self):
        """Send what waits, which is no more than HELLO, and end the connection."""
        self.ended = True
        if self.link is not None:
            self.link.abort(True)

    def end(self):
        """End the connection at once. ``peer_lost`` is called in a later iteration of the loop."""
        self.ended = True
        if self.link is not None:
            self.link.abort(False)

    def drop(self):
        """Note that there will be no link: the connection could not be made."""
        if self.link is None:
            self.connection_lost(0)

    def retry(self):
        """Go on after there was no space or no memory, if nothing else has noticed that there is. A sweep calls it."""
        if self.is_dropping and self.link is not None and not self.link.closed:
            if self.link.queue.queued_bytes <= self.max_pending / 2:
                self.end_dropping()

    def take_heard(self):
        """Return whether something has arrived since the last call."""
        cdef bint has_heard = self.has_heard
        self.has_heard = False
        return has_heard

    @property
    def pending_bytes(self):
        """Bytes that wait to be sent."""
        return self.link.queue.queued_bytes if self.link is not None else 0

    def departure(self):
        """Return a future: True once all that waits now has left, or False if the connection is lost before."""
        future = self.loop.create_future()
        if self.link is None or self.link.closed:
            future.set_result(False)
        elif queue_is_empty(&self.link.queue):
            future.set_result(True)
        else:
            self.departures.append((self.link.end_of_queue(), future))
            self.link.notify_when_left(self.link.end_of_queue())
        return future

    # Output

    cdef EnvelopeOutcome write_envelope(self, FrameBuffer *frame) noexcept:
        """Queue an ENVELOPE record, unless it must be dropped."""
        if self.ended or self.link.closed:
            return ENVELOPE_LOST
        if self.is_dropping or not self.has_space(frame_wire_length(frame)):
            self.begin_dropping()
            self.dropped += 1
            return ENVELOPE_FULL
        if self.link.write(frame) < 0:
            self.begin_dropping()
            self.dropped += 1
            return ENVELOPE_MEMORY
        return ENVELOPE_QUEUED

    cdef int write_change(self, FrameBuffer *frame) noexcept:
        """Queue a SUBSCRIBE or UNSUBSCRIBE record, or have a snapshot follow."""
        if self.ended or self.link.closed:
            return 0
        if self.is_dropping or not self.has_space(frame_wire_length(frame)):
            self.begin_dropping()
            self.snapshot_due = True
            return 0
        return self.write_frame(frame)

    cdef bint write_body(self, uint8_t kind, bytes body, bint always) except -1:
        """Queue a record about histories or presences. Return False if it is not sent."""
        if not self.is_up or self.ended or self.link is None or self.link.closed:
            return False
        if not always and (self.is_dropping or not self.has_space(HEADER_SIZE + len(body))):
            return False
        return self.write_record(kind, <const char *>body, len(body)) == 0

    cdef bint has_space(self, size_t length) noexcept:
        """Return whether that many bytes may be queued. An empty queue takes any record."""
        cdef size_t waiting = queue_charge(&self.link.queue)
        cdef int64_t snapshot = self.snapshot_end - self.link.bytes_written
        if waiting == 0 or waiting + length <= self.max_pending:
            return True
        return snapshot > 0 and waiting + length <= self.max_pending + <size_t>snapshot

    cdef int write_record(self, uint8_t kind, const void *body, size_t length) noexcept:
        """Queue a record of which there is only a bounded number. Return -1 if the connection has ended for it."""
        cdef FrameBuffer *frame
        cdef int result
        if self.ended or self.link is None or self.link.closed:
            return 0
        frame = record_new(kind, body, length, RAW)
        if frame == NULL:
            self.fail("there is no memory for a record")
            return -1
        result = self.write_frame(frame)
        frame_release(frame)
        return result

    cdef int write_frame(self, FrameBuffer *frame) noexcept:
        """Queue a record that must not be missing. Return -1 if the connection has ended for it."""
        if self.link.write(frame) < 0:
            self.fail("there is no memory for a record")
            return -1
        return 0

    cdef void write_number_record(self, uint8_t kind, uint64_t number) noexcept:
        """Queue a PING or PONG record, or have it follow once there is space. Only the highest number counts."""
        if self.ended or self.link is None or self.link.closed:
            return
        if self.is_dropping or not self.has_space(HEADER_SIZE + NUMBER_SIZE):
            self.begin_dropping()
            if kind == PING:
                self.ping_due = number
            else:
                self.pong_due = number
            return
        self.write_number_frame(kind, number)

    cdef void write_number_frame(self, uint8_t kind, uint64_t number) noexcept:
        cdef FrameBuffer *frame = number_record_new(kind, number)
        if frame == NULL:
            self.fail("there is no memory for a record")
            return
        self.write_frame(frame)
        frame_release(frame)

    cdef void begin_dropping(self) noexcept:
        """Drop envelopes until half of the queue has left."""
        if self.is_dropping:
            return
        self.is_dropping = True
        self.link.notify_when_left(self.link.bytes_written + <int64_t>(self.link.queue.queued_bytes / 2))

    cdef void end_dropping(self) noexcept:
        """Send the records that had no space. They say what was dropped, and how things are now."""
        cdef uint64_t dropped = self.dropped
        cdef uint64_t ping = self.ping_due
        cdef uint64_t pong = self.pong_due
        self.is_dropping = False
        self.dropped = self.ping_due = self.pong_due = 0
        if dropped > 0:
            self.write_number_frame(GAP, dropped)
        if self.snapshot_due:
            self.snapshot_due = False
            try:
                self.write_snapshot()
            except MemoryError:
                self.fail("there is no memory for a snapshot")
        # They come last: a PONG answers for every record before its PING.
        if ping > 0:
            self.write_number_frame(PING, ping)
        if pong > 0:
            self.write_number_frame(PONG, pong)

    cdef int write_snapshot(self) except -1:
        """Queue the channels that this node has subscribed to."""
        cdef bytes body
        self.write_record(SNAPSHOT, NULL, 0)
        for body in self.interest.snapshot():
            self.write_record(SUBSCRIBE, <const char *>body, len(body))
        self.write_record(SNAPSHOT_END, NULL, 0)
        if self.link is not None:
            self.snapshot_end = self.link.end_of_queue()
        return 0

    cdef void drained(self) noexcept:
        if self.is_dropping and self.link.queue.queued_bytes <= self.max_pending / 2:
            self.end_dropping()
        self.settle_departures()
        if self.is_dropping and not self.link.closed and not queue_is_empty(&self.link.queue):
            self.link.notify_when_left(self.link.bytes_written + <int64_t>(self.link.queue.queued_bytes / 2))

    cdef void settle_departures(self) noexcept:
        """Complete the futures of departure() whose bytes have left, and wait for the next one."""
        cdef bint is_lost = self.link is None or self.link.closed
        cdef int64_t written = 0 if is_lost else self.link.bytes_written
        cdef bint is_empty = is_lost or queue_is_empty(&self.link.queue)
        while self.departures:
            target, future = self.departures[0]
            if not is_empty and target > written:
                self.link.notify_when_left(target)
                return
            self.departures.popleft()
            if not future.done() and not self.loop.is_closed():
                future.set_result(not is_lost)

    # Input

    cdef void record_received(self, uint8_t kind, const uint8_t *body, size_t length) noexcept:
        if kind == ENVELOPE and self.is_up:
            self.counters.messages_received += 1
            self.receiver.envelope_received(body, length)
            return
        try:
            self.handle_control(kind, body, length)
        except ValueError as error:
            self.fail(str(error))
        except Exception:
            logger.exception("a record of a worker could not be handled")
            self.fail("a record could not be handled")

    cdef int handle_control(self, uint8_t kind, const uint8_t *body, size_t length) except -1:
        """Handle a record that is no envelope. Raise ValueError if it is malformed, or not allowed at this time."""
        if (kind == HELLO) != (self.hello is None) or (kind == ENVELOPE and not self.is_up):
            raise ValueError(f"a record of kind {kind} is out of order")
        if kind == HELLO:
            self.owner.hello_received(self, body[:length])
        elif kind == SUBSCRIBE:
            for channel in decode_channels(body, length):
                self.interest.add(channel, self)
                if self.named is not None:
                    self.named.add(channel)
        elif kind == UNSUBSCRIBE:
            for channel in decode_channels(body, length):
                self.interest.remove(channel, self)
        elif kind == SNAPSHOT:
            # Channels stay subscribed meanwhile: an envelope that is sent now must not be missed.
            self.named = set()
        elif kind == SNAPSHOT_END:
            if self.named is None:
                raise ValueError("the end of a snapshot that has not begun")
            self.interest.keep_only(self.named, self)
            self.named = None
        elif kind == PING or kind == PONG or kind == GAP:
            if length != NUMBER_SIZE:
                raise ValueError(f"a record of kind {kind} has {length} bytes")
            number = read_number(body, NUMBER_SIZE)
            if kind == PING:
                self.write_number_record(PONG, number)
            elif kind == PONG:
                self.owner.pong_received(self, number)
            else:
                self.owner.gap_received(self, number)
        elif kind == HISTORY:
            if not self.is_up:
                raise ValueError("a record of a history is out of order")
            self.owner.history_received(self, body[:length])
        elif kind == PRESENCE:
            if not self.is_up:
                raise ValueError("a record of a presence is out of order")
            self.owner.presence_received(self, body[:length])
        elif kind == MATCHING:
            if not self.is_up:
                raise ValueError("an envelope for a pattern is out of order")
            self.matching_received(body, length)
        elif kind == GOODBYE:
            self.has_left = True
            self.owner.peer_left(self)
        return 0

    cdef int matching_received(self, const uint8_t *body, size_t length) except -1:
        """Have the owner take an envelope of a room that a pattern matches."""
        cdef size_t end
        if length < LENGTH_SIZE:
            raise ValueError("the length of a pattern is truncated")
        end = LENGTH_SIZE + <size_t>read_number(body, LENGTH_SIZE)
        if end > length:
            raise ValueError("a pattern is truncated")
        self.counters.messages_received += 1
        self.owner.matching_received(self, body[LENGTH_SIZE:end].decode("utf-8", "surrogatepass"), body[end:length])
        return 0

    cdef void connection_lost(self, int error) noexcept:
        owner = self.owner
        if owner is None:
            return
        self.link = None
        if self.is_up and not self.ended and self.unread_end > self.unread_start:
            # A transport may report the end before the records that it brought have had their turn.
            self.blocks = 0
            self.handle_all_unread()
        self.ended = True
        self.owner = None
        self.free_unread()
        self.settle_departures()
        try:
            owner.peer_lost(self, error)
        except Exception:
            logger.exception("the end of a connection to a worker could not be handled")

    cdef void fail(self, str reason) noexcept:
        """End the connection, and say why. `peer_lost` follows."""
        if self.ended:
            return
        try:
            if self.owner is not None:
                self.owner.peer_failed(self, reason)
        except Exception:
            logger.exception("the failure of a worker could not be handled")
        self.ended = True
        if self.link is not None:
            self.link.abort(False)
