"""The records that workers send to one another.

A record is its length (4 bytes, little-endian), a byte for its kind, and a body. The length counts the kind and the
body. A receiver ignores records of an unknown kind.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wshub.brokers.little_endian cimport write_number
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_new, frame_payload


cdef enum:
    HELLO = 1         # JSON: the version, and the node that sends it; the first record in each direction
    SNAPSHOT = 2      # no body: SUBSCRIBE records follow that name every channel of the node
    SUBSCRIBE = 3     # channels that the node has subscribed to: each a length of 4 bytes, and UTF-8
    UNSUBSCRIBE = 4   # channels that it has unsubscribed from, likewise
    ENVELOPE = 5
    PING = 6          # 8 bytes: a number
    PONG = 7          # the number of a ping; it answers every ping before that one too
    GAP = 8           # 8 bytes: the number of envelopes that were dropped in this place
    GOODBYE = 9       # no body: the node leaves, and this is its last record
    SNAPSHOT_END = 10  # no body: the node has subscribed to no channel that was not named since SNAPSHOT
    HISTORY = 11      # what workers say about histories: workers_history_records.py
    PRESENCE = 12     # what they say about presences: workers_presence_records.py
    MATCHING = 13     # an envelope of a room, behind the channel of a pattern that matches: a length of 4 bytes, UTF-8

cdef enum:
    LENGTH_SIZE = 4
    HEADER_SIZE = 5
    NUMBER_SIZE = 8
    # Bytes of the longest envelope: a message of 64 MiB, and its header, name and key.
    MAX_ENVELOPE = (64 << 20) + (1 << 20)
    # Bytes of the longest record before a peer has said HELLO.
    MAX_HELLO = 65536
    # Bytes after which a snapshot begins another record.
    SNAPSHOT_RECORD = 65536


cdef inline FrameBuffer *record_new(uint8_t kind, const void *body, size_t length, uint8_t opcode) noexcept:
    """Return a frame whose bytes are a record. The caller owns it; NULL if there is no memory.

    `opcode` is RAW, or that of a message if the link is to count the record as one.
    """
    cdef FrameBuffer *frame = frame_new(opcode, HEADER_SIZE + length)
    cdef uint8_t *start
    if frame == NULL:
        return NULL
    start = frame_payload(frame)
    write_number(start, LENGTH_SIZE, 1 + length)
    start[LENGTH_SIZE] = kind
    if length > 0:
        memcpy(start + HEADER_SIZE, body, length)
    frame.length = HEADER_SIZE + length
    return frame


cdef inline FrameBuffer *number_record_new(uint8_t kind, uint64_t number) noexcept:
    """Return a record whose body is a number, as record_new() does."""
    cdef uint8_t body[NUMBER_SIZE]
    write_number(body, NUMBER_SIZE, number)
    return record_new(kind, body, NUMBER_SIZE, RAW)
