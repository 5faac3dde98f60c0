# cython: language_level=3
"""Messages between the hubs that a broker joins.

A message leaves as an envelope with its payload and its options. Each hub that gets it frames and compresses it once,
and fans it out to its own connections, as if it had been sent there.
"""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.math cimport NAN, isnan
from libc.stdint cimport SIZE_MAX, int64_t, uint16_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from wshub.brokers.envelope cimport (
    COMPRESS,
    COMPRESS_NOT,
    CONTROL,
    HAS_EXCLUDED,
    HAS_KEY,
    HAS_PUBLISHER,
    HUB_MESSAGE,
    IS_BINARY,
    MARK_POSITION,
    POLICY_MASK,
    POLICY_SHIFT,
    ROOM_MESSAGE,
    STORED_HEAD_LENGTH,
    STORED_VERSION,
    StoredHead,
    build_envelope,
    parse_envelope,
    parse_stored_head,
    with_number,
)
from wshub.core.conflation_keys cimport HUB_KEYS, intern_key
from wshub.core.connection_state cimport ConnectionCore
from wshub.core.delivery_options cimport CLOSE_CONNECTION, INHERITED, LATEST, policy_from_name
from wshub.core.fan_out cimport send_to_all, send_to_room
from wshub.core.history_cursor cimport HistoryCursor
from wshub.core.node_numbers cimport advance_number, forget_numbers
from wshub.protocol.frame_buffer cimport DeliveryCounters, FrameBuffer, frame_release, frame_with_metadata
from wshub.protocol.message cimport Payload, frame_from_bytes, payload_from_data
from wshub.protocol.opcodes cimport BINARY_OPCODE, TEXT_OPCODE
from wshub.protocol.parser cimport Utf8State

import logging

from wshub.core.cluster_types import IgnoredEnvelopes

cdef extern from "utf8.h" nogil:
    int utf8_validate "wshub_utf8_validate"(Utf8State *state, const uint8_t *text, size_t length) noexcept

logger = logging.getLogger("wshub.broker")


cdef inline uint64_t wall_clock() noexcept:
    """Return the microseconds since 1970."""
    cdef timespec now
    if clock_gettime(CLOCK_REALTIME, &now) != 0:
        return 0
    return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000


cdef bint is_utf8(const uint8_t *text, size_t length) noexcept:
    cdef Utf8State state
    state.missing = 0
    return utf8_validate(&state, text, length) >= 0 and not state.missing


cdef object encode_name(object text):
    """Return what owns the UTF-8 of a name: the str itself, or bytes if it has a lone surrogate."""
    cdef Py_ssize_t size
    try:
        PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


cdef const char *encoded_name(object owner, size_t *length) except NULL:
    """Return the UTF-8 that the result of encode_name() owns."""
    cdef Py_ssize_t size
    cdef const char *encoded
    if isinstance(owner, bytes):
        length[0] = len(<bytes>owner)
        return <const char *><bytes>owner
    encoded = PyUnicode_AsUTF8AndSize(owner, &size)
    length[0] = size
    return encoded


cdef bytes envelope_of(
    RemoteMessages messages, uint8_t kind, str name, const Payload *payload, object compress, object slow_consumer,
    object key, ConnectionCore excluded, str publisher
):
    """Return the envelope of a message. The options are those of the call, not those of a room or the hub."""
    cdef Envelope envelope
    cdef uint8_t policy = policy_from_name(slow_consumer)
    envelope.kind = kind
    envelope.flags = 0 if policy == INHERITED else <uint16_t>((policy + 1) << POLICY_SHIFT)
    if payload.opcode == BINARY_OPCODE:
        envelope.flags |= IS_BINARY
    if compress is not None:
        envelope.flags |= COMPRESS if compress else COMPRESS_NOT
    envelope.node = messages.node
    envelope.number = messages.last_number + 1
    envelope.sent_at = wall_clock()
    envelope.name = NULL
    envelope.name_length = 0
    if name is not None:
        name_owner = encode_name(name)
        envelope.name = encoded_name(name_owner, &envelope.name_length)
    envelope.key = NULL
    envelope.key_length = 0
    if key is not None:
        envelope.flags |= HAS_KEY
        key_owner = encode_name(key)
        envelope.key = encoded_name(key_owner, &envelope.key_length)
    if excluded is not None:
        envelope.flags |= HAS_EXCLUDED
        envelope.excluded = excluded.connection_id
    envelope.publisher = NULL
    envelope.publisher_length = 0
    if publisher is not None:
        envelope.flags |= HAS_PUBLISHER
        publisher_owner = encode_name(publisher)
        envelope.publisher = encoded_name(publisher_owner, &envelope.publisher_length)
    envelope.payload = payload.data
    envelope.payload_length = payload.length
    built = build_envelope(&envelope)
    messages.sent += 1
    messages.last_number = envelope.number
    return built


cdef class RemoteMessages(EnvelopeReceiver):
    """Gives envelopes to the broker, and takes those that other nodes have sent.

    Args:
        hub: whose connections get the messages.
        node: the id of this node, a number.
        broker_send: the broker's ``send``.
    """

    def __dealloc__(self):
        forget_numbers(&self.last_numbers)

    def __init__(self, HubBase hub not None, node, broker_send):
        self.hub = hub
        self.broker_send = broker_send
        self.node = node
        self.lag = NAN
        self.measures_lag = True

    def send(self, str channel not None, bytes envelope not None):
        """Give an envelope to the broker. Return whether the broker has taken it. Nothing is raised."""
        return self.send_envelope(channel, envelope)

    cdef bint send_envelope(self, str channel, bytes envelope) except -1:
        """Do what send() does."""
        cdef bint taken = False
        if self.broker_send is not None and not self.hub.loop.is_closed():
            try:
                taken = self.broker_send(channel, envelope)
            except Exception:
                self.log_failure()
        self.rejected_count += not taken
        return taken

    def log_failure(self):
        """Log the exception of a method of the broker, unless one was logged before."""
        if not self.has_logged_failure:
            self.has_logged_failure = True
            logger.exception("the broker has failed; further failures are not logged")

    @property
    def own_number(self):
        """The id of this node, as envelopes have it."""
        return self.node

    @property
    def has_broker(self):
        """Whether envelopes go to the broker."""
        return self.broker_send is not None

    cdef void envelope_received(self, const uint8_t *data, size_t length) noexcept:
        cdef Envelope envelope
        cdef int outcome
        cdef bint is_stored = length > 0 and data[0] == STORED_VERSION
        self.received += 1
        if not is_stored:
            if parse_envelope(data, length, &envelope) < 0:
                self.ignored[UNREADABLE] += 1
                return
            if envelope.node == self.node:
                self.ignored[OWN] += 1
                return
            if envelope.kind != CONTROL:
                self.note_lag(&envelope)
        try:
            outcome = self.take_stored(data, length) if is_stored else self.take(&envelope)
            if outcome == TAKEN:
                self.delivered += 1
            else:
                self.ignored[outcome] += 1
        except ValueError:
            self.ignored[UNREADABLE] += 1
        except MemoryError:
            self.ignored[FAILED] += 1
        except Exception:
            self.ignored[FAILED] += 1
            logger.exception("a message of another node could not be handled")

    cdef void note_lag(self, const Envelope *envelope) noexcept:
        """Measure how long a message has taken, if that is due."""
        if self.measures_lag and envelope.sent_at:
            self.measures_lag = False
            self.lag = (<int64_t>(wall_clock() - envelope.sent_at)) * 1e-6

    cdef int take(self, const Envelope *envelope) except -1:
        """Return TAKEN, or why the envelope reaches no connection. Raise ValueError if it is not valid."""
        if envelope.kind == CONTROL:
            self.control_received(envelope.node, envelope.payload[:envelope.payload_length])
            return TAKEN
        return self.fan_out(envelope)

    cdef int fan_out(self, const Envelope *envelope) except -1:
        """Send the message to a room, a user or all connections. Return as take() does."""
        cdef HubBase hub = self.hub
        cdef Room room = None
        cdef dict table
        if envelope.kind != HUB_MESSAGE:
            table = hub.room_table if envelope.kind == ROOM_MESSAGE else hub.user_table
            room = table.get(PyUnicode_DecodeUTF8(envelope.name, envelope.name_length, "surrogatepass"))
            if room is None:
                return NO_RECEIVER
        # A program without a hub has neither an id nor numbers.
        if envelope.node and not advance_number(
            &room.last_numbers if room is not None else &self.last_numbers, envelope.node, envelope.number
        ):
            return LATE
        if room is not None and room.has_history:
            # Without a position it would be a message that the history does not have.
            self.log_without_position(room.name)
            return WITHOUT_POSITION
        return self.deliver(envelope, room)

    cdef int deliver(self, const Envelope *envelope, Room room) except -1:
        """Send the message to the members of a room, or to all connections. Return TAKEN."""
        cdef HubBase hub = self.hub
        cdef FrameBuffer *frame
        cdef FrameBuffer *framed
        cdef Delivery delivery
        cdef DeliveryCounters *counters
        cdef ConnectionCore excluded = None
        cdef uint64_t number
        cdef uint8_t opcode
        if not envelope.flags & IS_BINARY and not is_utf8(envelope.payload, envelope.payload_length):
            raise ValueError("invalid UTF-8")
        if self.resolve_delivery(&delivery, envelope, room) < 0:
            raise ValueError("unknown policy")
        number = conflation_number(hub, envelope, room, &delivery)
        counters = room.delivery_counters if room is not None else NULL
        opcode = BINARY_OPCODE if envelope.flags & IS_BINARY else TEXT_OPCODE
        frame = frame_from_bytes(envelope.payload, envelope.payload_length, opcode)
        framed = frame_with_metadata(frame, 1, number, counters, delivery.policy != CLOSE_CONNECTION)
        if framed == NULL:
            frame_release(frame)
            raise MemoryError
        if envelope.flags & HAS_EXCLUDED and envelope.node == self.node:
            excluded = hub.connection_table.get(envelope.excluded)
        if room is None:
            send_to_all(hub, framed, excluded, &delivery)
        else:
            send_to_room(hub, room, framed, excluded, &delivery)
        frame_release(framed)
        return TAKEN

    cdef int take_stored(self, const uint8_t *data, size_t length) except -1:
        """Take an envelope with the head of a stored one. Return as take() does."""
        cdef HubBase hub = self.hub
        cdef StoredHead head
        cdef Envelope envelope
        cdef HistoryCursor cursor
        cdef Room room
        cdef const uint8_t *mark = data + STORED_HEAD_LENGTH + MARK_POSITION
        if parse_stored_head(data, length, &head) < 0:
            return UNREADABLE
        if parse_envelope(data + STORED_HEAD_LENGTH, length - STORED_HEAD_LENGTH, &envelope) < 0:
            return UNREADABLE
        if envelope.kind != ROOM_MESSAGE:
            return UNREADABLE
        self.note_lag(&envelope)
        name = PyUnicode_DecodeUTF8(envelope.name, envelope.name_length, "surrogatepass")
        cursor = hub.history_cursors.get(name)
        if cursor is None:
            return NO_RECEIVER
        if not cursor.passes_on or not cursor.follows(&head):
            return TAKEN if cursor.take(data[:length]) else DUPLICATE
        room = hub.room_table.get(name)
        try:
            if room is not None:
                self.deliver(&envelope, room)
        except MemoryError:
            # The next message finds that this one is missing, and has the history read again.
            raise
        except Exception:
            cursor.advance(&head, mark)
            raise
        cursor.advance(&head, mark)
        return TAKEN if room is not None else NO_RECEIVER

    def deliver_stored(self, str name not None, bytes envelope not None, data=None):
        """Send an envelope of a history to the members of its room.

        Args:
            name: of the room.
            envelope: without a head.
            data: what members receive instead of its payload: a str, bytes or another buffer, or a Message.

        Raises:
            ValueError: it is no envelope.
            TypeError, InvalidMessageError: as ``Connection.send``, for ``data``.
        """
        cdef Envelope parsed
        cdef Payload payload
        cdef Room room = self.hub.room_table.get(name)
        if parse_envelope(<const uint8_t *><const char *>envelope, len(envelope), &parsed) < 0:
            raise ValueError("the history has something else than an envelope")
        if room is None:
            return
        if data is not None:
            data = payload_from_data(data, &payload)
            parsed.flags = <uint16_t>(parsed.flags & ~IS_BINARY)
            if payload.opcode == BINARY_OPCODE:
                parsed.flags |= IS_BINARY
            parsed.payload = payload.data
            parsed.payload_length = payload.length
        self.deliver(&parsed, room)

    def log_without_position(self, room):
        """Log a message to a room with history that was published without it, unless one was logged before."""
        if not self.has_logged_without_position:
            self.has_logged_without_position = True
            logger.error(
                "a message to the room %r was published without its history, and is dropped: configure the room in the "
                "program that publishes as in this one",
                room,
            )

    cdef int resolve_delivery(self, Delivery *delivery, const Envelope *envelope, Room room) noexcept:
        """Fill in how to send the message. Return -1 if its policy for slow consumers is unknown."""
        cdef unsigned int policy = (envelope.flags & POLICY_MASK) >> POLICY_SHIFT
        delivery.threshold = self.hub.delivery_defaults.threshold
        if envelope.flags & COMPRESS:
            delivery.threshold = 1
        elif envelope.flags & COMPRESS_NOT:
            delivery.threshold = SIZE_MAX
        if policy > INHERITED:
            return -1
        if policy:
            delivery.policy = <uint8_t>(policy - 1)
        elif room is not None and room.policy != INHERITED:
            delivery.policy = room.policy
        else:
            delivery.policy = self.hub.delivery_defaults.policy
        return 0

    def control_received(self, uint64_t node, bytes body):
        """Take a command of another node. A subclass overrides this."""

    @property
    def received_count(self):
        """The number of envelopes that have arrived."""
        return self.received

    @property
    def delivered_count(self):
        """The number of envelopes that were for this node."""
        return self.delivered

    @property
    def ignored_counts(self):
        """The IgnoredEnvelopes."""
        return IgnoredEnvelopes(
            own=self.ignored[OWN],
            late=self.ignored[LATE],
            duplicate=self.ignored[DUPLICATE],
            without_position=self.ignored[WITHOUT_POSITION],
            no_receiver=self.ignored[NO_RECEIVER],
            unreadable=self.ignored[UNREADABLE],
            failed=self.ignored[FAILED],
        )

    @property
    def lag_seconds(self):
        """Seconds that a message took on its way, by the clocks of both nodes; None before there was one.

        If the clocks differ, it is wrong by their difference, and may be negative.
        """
        return None if isnan(self.lag) else self.lag

    @property
    def sent_count(self):
        """The number of envelopes that this node has made."""
        return self.sent

    def measure_lag(self):
        """Have the next envelope of another node measured."""
        self.measures_lag = True

    def next_number(self):
        """Return the number of the next envelope, which counts as made."""
        self.sent += 1
        self.last_number += 1
        return self.last_number

    def renumbered(self, bytes envelope not None):
        """Return an envelope that has waited as one that is made now. Others may have been sent meanwhile."""
        self.last_number += 1
        return with_number(envelope, self.last_number)


cdef uint64_t conflation_number(
    HubBase hub, const Envelope *envelope, Room room, const Delivery *delivery
) except? 0xFFFFFFFFFFFFFFFF:
    """Return the number that stands for the message's key here."""
    key = None
    if envelope.flags & HAS_KEY:
        key = PyUnicode_DecodeUTF8(envelope.key, envelope.key_length, "surrogatepass")
    if room is None:
        return intern_key(hub.conflation_keys, HUB_KEYS, key)
    if key is None and delivery.policy == LATEST:
        return room.conflation_key
    return intern_key(hub.conflation_keys, room.conflation_key, key)
