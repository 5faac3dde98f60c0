"""The envelope: what one hub sends to another. envelope.pyx describes its layout."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


# The kinds of envelopes. 0 is none of them.
cdef enum:
    ROOM_MESSAGE = 1  # for the members of the room `name`
    HUB_MESSAGE = 2   # for all connections
    USER_MESSAGE = 3  # for the connections of the user `name`
    CONTROL = 4       # for the hub: a command as JSON

# Flags. A receiver ignores an unknown flag, but drops an envelope with one of CRITICAL_FLAGS.
cdef enum:
    IS_BINARY = 1
    COMPRESS = 2          # compress it; COMPRESS and COMPRESS_NOT are never both set
    COMPRESS_NOT = 4      # do not compress it; with neither flag, the receiving hub's settings apply
    POLICY_SHIFT = 3      # three bits: 0 is the receiving hub's policy, else 1 + a Policy
    POLICY_MASK = 7 << 3
    HAS_KEY = 64
    HAS_EXCLUDED = 128    # a connection of the sending node does not get it
    HAS_PUBLISHER = 256   # the user who has published it
    CRITICAL_FLAGS = 0xF000

# Why parse_envelope() takes no envelope.
cdef enum:
    ENVELOPE_TRUNCATED = -1
    ENVELOPE_UNKNOWN = -2  # another version, an unknown kind or a critical flag

cdef struct Envelope:
    uint8_t kind
    uint16_t flags
    uint64_t node      # that sent it; 0: a program without a hub
    uint32_t number    # counts the envelopes of the node
    uint64_t sent_at   # microseconds since 1970, by the clock of the node
    # These point into the memory that was parsed.
    const char *name
    size_t name_length
    const char *key
    size_t key_length
    uint64_t excluded  # the id of the connection that does not get it
    const char *publisher
    size_t publisher_length
    const uint8_t *payload
    size_t payload_length

# In front of an envelope that is stored.
cdef struct StoredHead:
    uint64_t offset
    uint64_t previous       # the offset before it
    const uint8_t *epoch    # EPOCH_LENGTH bytes, within the memory that was parsed

cdef enum:
    STORED_VERSION = 0xC1   # the first byte of a head
    EPOCH_LENGTH = 8
    STORED_HEAD_LENGTH = 25

# The mark of an envelope, which no other one has: the id of its node, and its number.
cdef enum:
    MARK_POSITION = 4
    MARK_LENGTH = 12


cdef int parse_envelope(const uint8_t *data, size_t length, Envelope *envelope) noexcept
cdef bytes build_envelope(const Envelope *envelope)
cdef bytes with_number(bytes envelope, uint32_t number)
cdef int parse_stored_head(const uint8_t *data, size_t length, StoredHead *head) noexcept
