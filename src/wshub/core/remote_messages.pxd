"""Messages between the hubs that a broker joins. remote_messages.pyx says how they travel."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from wshub.brokers.envelope cimport Envelope
from wshub.brokers.envelope_receiver cimport EnvelopeReceiver
from wshub.core.connection_state cimport ConnectionCore
from wshub.core.delivery_options cimport Delivery
from wshub.core.hub_state cimport HubBase
from wshub.core.node_numbers cimport NodeNumbers
from wshub.core.rooms cimport Room
from wshub.protocol.message cimport Payload


# Why an envelope reached no connection: indices of RemoteMessages.ignored.
cdef enum:
    OWN          # this node has sent it
    LATE         # a later one of its node has arrived before
    NO_RECEIVER  # no connection is in the room any more, or of the user
    DUPLICATE    # of a history that the node has had it from before
    WITHOUT_POSITION  # for a room with history, from a program that does not know that it has one
    UNREADABLE   # of another version, truncated, with an unknown critical flag, or with invalid UTF-8
    FAILED       # there was no memory
    REASONS      # the number of reasons
    TAKEN = REASONS  # it has reached one


cdef class RemoteMessages(EnvelopeReceiver):
    cdef HubBase hub
    cdef uint64_t node           # the id of this node
    cdef uint64_t sent           # envelopes that were made
    cdef uint32_t last_number    # of the envelopes of this node
    cdef uint64_t received
    cdef NodeNumbers last_numbers  # owned: of the messages of other nodes to all connections
    cdef uint64_t delivered      # envelopes that reached a room, a user or all connections of this hub
    cdef uint64_t ignored[REASONS]
    cdef bint measures_lag       # the next envelope of another node sets `lag`
    cdef public object broker_send      # that of the broker; None once there is none
    cdef bint has_logged_failure
    cdef bint has_logged_without_position
    cdef public uint64_t rejected_count  # envelopes that the broker has not taken
    cdef double lag              # seconds that an envelope took, by the clocks of both nodes; NaN: not known

    cdef bint send_envelope(self, str channel, bytes envelope) except -1
    cdef void note_lag(self, const Envelope *envelope) noexcept
    cdef int take(self, const Envelope *envelope) except -1
    cdef int take_stored(self, const uint8_t *data, size_t length) except -1
    cdef int fan_out(self, const Envelope *envelope) except -1
    cdef int deliver(self, const Envelope *envelope, Room room) except -1
    cdef int resolve_delivery(self, Delivery *delivery, const Envelope *envelope, Room room) noexcept


cdef bytes envelope_of(
    RemoteMessages messages, uint8_t kind, str name, const Payload *payload, object compress, object slow_consumer,
    object key, ConnectionCore excluded, str publisher
)
