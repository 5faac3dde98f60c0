# cython: language_level=3
"""The envelope: what one hub sends to another through a broker.

All numbers are little-endian.

- Byte 0: 0xB1, which is 0xB0 and the version 1. UTF-8 text never begins with this.
- Byte 1: the kind.
- Bytes 2 and 3: the flags.
- Bytes 4 to 11: the id of the node that sent it. 0 stands for a program without a hub.
- Bytes 12 to 15: the number of the envelope. Each node counts its own.
- Bytes 16 to 23: the time of sending, in microseconds since 1970. Only lag is measured by it.
- Bytes 24 to 27: the length of the name of the room or the user.
- The name, as UTF-8.
- With HAS_KEY: 4 bytes of length, then the conflation key as UTF-8.
- With HAS_EXCLUDED: 8 bytes, the id of a connection of the node, which does not get the message.
- With HAS_PUBLISHER: 4 bytes of length, then the name of the user who has published it, as UTF-8.
- The payload, to the end.

A broker that stores envelopes puts a head in front of each one that it sends:

- Byte 0: 0xC1. Neither an envelope nor UTF-8 begins with this.
- Bytes 1 to 8: the offset.
- Bytes 9 to 16: the offset of the envelope before it.
- Bytes 17 to 24: the epoch, eight ASCII letters.

Bytes 4 to 15 of an envelope are its mark: no other one has the same node and number. A node compares the mark of the
envelope that it has received at an offset with that of the history. If they differ, the engine has lost messages.

Only payloads travel. Each hub frames and compresses a message once for its own connections, because settings and
negotiated windows differ.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

from wshub.brokers.little_endian cimport read_number, write_number

from typing import NamedTuple

from wshub.errors import InvalidMessageError

cdef enum:
    VERSION = 0xB1
    HEADER_LENGTH = 28
    NUMBER_POSITION = 12
    LENGTH_SIZE = 4
    CONNECTION_ID_SIZE = 8

cdef size_t LONGEST_TEXT = 0xFFFFFFFF

cdef tuple KINDS = ("", "room", "all", "user", "control")
cdef tuple POLICIES = (None, "close", "drop_newest", "drop_oldest", "latest")


cdef int parse_envelope(const uint8_t *data, size_t length, Envelope *envelope) noexcept:
    """Fill in the envelope. Return 0, or why it cannot be taken: ENVELOPE_TRUNCATED or ENVELOPE_UNKNOWN.

    Nothing is said about UTF-8. `data` must stay for as long as the envelope is used.
    """
    cdef size_t position = HEADER_LENGTH
    if length < 1:
        return ENVELOPE_TRUNCATED
    if data[0] != VERSION:
        return ENVELOPE_UNKNOWN
    if length < HEADER_LENGTH:
        return ENVELOPE_TRUNCATED
    envelope.kind = data[1]
    envelope.flags = <uint16_t>read_number(data + 2, 2)
    if not ROOM_MESSAGE <= envelope.kind <= CONTROL or envelope.flags & CRITICAL_FLAGS:
        return ENVELOPE_UNKNOWN
    envelope.node = read_number(data + 4, 8)
    envelope.number = <uint32_t>read_number(data + NUMBER_POSITION, 4)
    envelope.sent_at = read_number(data + 16, 8)
    envelope.name_length = <size_t>read_number(data + 24, 4)
    if envelope.name_length > length - position:
        return ENVELOPE_TRUNCATED
    envelope.name = <const char *>data + position
    position += envelope.name_length
    envelope.key = NULL
    envelope.key_length = 0
    if envelope.flags & HAS_KEY:
        if parse_text(data, length, &position, &envelope.key, &envelope.key_length) < 0:
            return ENVELOPE_TRUNCATED
    envelope.excluded = 0
    if envelope.flags & HAS_EXCLUDED:
        if length - position < CONNECTION_ID_SIZE:
            return ENVELOPE_TRUNCATED
        envelope.excluded = read_number(data + position, CONNECTION_ID_SIZE)
        position += CONNECTION_ID_SIZE
    envelope.publisher = NULL
    envelope.publisher_length = 0
    if envelope.flags & HAS_PUBLISHER:
        if parse_text(data, length, &position, &envelope.publisher, &envelope.publisher_length) < 0:
            return ENVELOPE_TRUNCATED
    envelope.payload = data + position
    envelope.payload_length = length - position
    return 0


cdef int parse_text(
    const uint8_t *data, size_t length, size_t *position, const char **text, size_t *text_length
) noexcept:
    """Take a text with its length at `position`, which moves behind it. Return 0 or ENVELOPE_TRUNCATED."""
    if length - position[0] < LENGTH_SIZE:
        return ENVELOPE_TRUNCATED
    text_length[0] = <size_t>read_number(data + position[0], LENGTH_SIZE)
    position[0] += LENGTH_SIZE
    if text_length[0] > length - position[0]:
        return ENVELOPE_TRUNCATED
    text[0] = <const char *>data + position[0]
    position[0] += text_length[0]
    return 0


cdef int parse_stored_head(const uint8_t *data, size_t length, StoredHead *head) noexcept:
    """Fill in the head. Return 0 or ENVELOPE_TRUNCATED. `data` begins with STORED_VERSION."""
    if length < STORED_HEAD_LENGTH:
        return ENVELOPE_TRUNCATED
    head.offset = read_number(data + 1, 8)
    head.previous = read_number(data + 9, 8)
    head.epoch = data + 17
    return 0


cdef uint8_t *put_text(uint8_t *place, const char *text, size_t length) noexcept:
    """Write a text with its length. An empty one may be NULL. Return the place behind it."""
    write_number(place, LENGTH_SIZE, length)
    if length > 0:
        memcpy(place + LENGTH_SIZE, text, length)
    return place + LENGTH_SIZE + length


cdef bytes build_envelope(const Envelope *envelope):
    """Return the bytes of an envelope. It has what its flags say. Raise InvalidMessageError for too long a name."""
    cdef size_t length = HEADER_LENGTH + envelope.name_length + envelope.payload_length
    cdef bytes built
    cdef uint8_t *data
    cdef uint8_t *place
    if envelope.name_length > LONGEST_TEXT or envelope.key_length > LONGEST_TEXT:
        raise InvalidMessageError("the name of a room and a key are at most 4 GiB each")
    if envelope.publisher_length > LONGEST_TEXT:
        raise InvalidMessageError("the name of a user is at most 4 GiB")
    if envelope.flags & HAS_KEY:
        length += LENGTH_SIZE + envelope.key_length
    if envelope.flags & HAS_EXCLUDED:
        length += CONNECTION_ID_SIZE
    if envelope.flags & HAS_PUBLISHER:
        length += LENGTH_SIZE + envelope.publisher_length
    built = PyBytes_FromStringAndSize(NULL, length)
    data = <uint8_t *>PyBytes_AS_STRING(built)
    data[0] = VERSION
    data[1] = envelope.kind
    write_number(data + 2, 2, envelope.flags)
    write_number(data + 4, 8, envelope.node)
    write_number(data + NUMBER_POSITION, 4, envelope.number)
    write_number(data + 16, 8, envelope.sent_at)
    place = put_text(data + HEADER_LENGTH - LENGTH_SIZE, envelope.name, envelope.name_length)
    if envelope.flags & HAS_KEY:
        place = put_text(place, envelope.key, envelope.key_length)
    if envelope.flags & HAS_EXCLUDED:
        write_number(place, CONNECTION_ID_SIZE, envelope.excluded)
        place += CONNECTION_ID_SIZE
    if envelope.flags & HAS_PUBLISHER:
        place = put_text(place, envelope.publisher, envelope.publisher_length)
    if envelope.payload_length > 0:
        memcpy(place, envelope.payload, envelope.payload_length)
    return built


cdef bytes with_number(bytes envelope, uint32_t number):
    """Return a valid envelope with another number."""
    cdef bytes changed = PyBytes_FromStringAndSize(PyBytes_AS_STRING(envelope), len(envelope))
    write_number(<uint8_t *>PyBytes_AS_STRING(changed) + NUMBER_POSITION, 4, number)
    return changed


class DecodedEnvelope(NamedTuple):
    """An envelope as Python values, for programs without a hub and for tests.

    ``kind`` is ``room``, ``all``, ``user`` or ``control``. ``name`` is that of the room or the user, or empty. ``node``
    is the id of the node that sent it, 0 for a program without a hub, and ``number`` counts the envelopes of that node.
    ``sent_at`` is in microseconds since 1970, by the node's clock. ``excluded`` is the id of a connection of the node.
    ``publisher`` is the user who has published it. The rest is as in ``Connection.send``.
    """

    kind: str
    name: str
    payload: bytes
    is_binary: bool
    node: int
    number: int
    sent_at: int
    compress: bool | None
    slow_consumer: str | None
    key: str | None
    excluded: int | None = None
    publisher: str | None = None


def encode_envelope(
    str kind, str name, bytes payload, *, bint is_binary=False, uint64_t node=0, uint32_t number=0, uint64_t sent_at=0,
    compress=None, slow_consumer=None, str key=None, excluded=None, str publisher=None
):
    """Return the bytes of an envelope. The arguments are the fields of DecodedEnvelope.

    Raises:
        ValueError: ``kind`` or ``slow_consumer`` is unknown.
    """
    cdef Envelope envelope
    cdef bytes encoded_name = name.encode("utf-8", "surrogatepass")
    cdef bytes encoded_key = key.encode("utf-8", "surrogatepass") if key is not None else b""
    cdef bytes encoded_publisher = publisher.encode("utf-8", "surrogatepass") if publisher is not None else b""
    if kind not in KINDS[1:]:
        raise ValueError(f"the kind of an envelope is one of {KINDS[1:]}, not {kind!r}")
    if slow_consumer not in POLICIES:
        raise ValueError(f"slow_consumer must be one of {POLICIES[1:]}, not {slow_consumer!r}")
    envelope.kind = KINDS.index(kind)
    envelope.flags = POLICIES.index(slow_consumer) << POLICY_SHIFT
    if is_binary:
        envelope.flags |= IS_BINARY
    if compress is not None:
        envelope.flags |= COMPRESS if compress else COMPRESS_NOT
    if key is not None:
        envelope.flags |= HAS_KEY
    if excluded is not None:
        envelope.flags |= HAS_EXCLUDED
    if publisher is not None:
        envelope.flags |= HAS_PUBLISHER
    envelope.node = node
    envelope.number = number
    envelope.sent_at = sent_at
    envelope.name = <const char *>encoded_name
    envelope.name_length = len(encoded_name)
    envelope.key = <const char *>encoded_key
    envelope.key_length = len(encoded_key)
    envelope.excluded = excluded if excluded is not None else 0
    envelope.publisher = <const char *>encoded_publisher
    envelope.publisher_length = len(encoded_publisher)
    envelope.payload = <const uint8_t *><const char *>payload
    envelope.payload_length = len(payload)
    return build_envelope(&envelope)


def decode_envelope(bytes data not None):
    """Return the DecodedEnvelope of some bytes.

    Raises:
        ValueError: they are no envelope, or one of another version, kind or with an unknown critical flag.
    """
    cdef Envelope envelope
    cdef int result = parse_envelope(<const uint8_t *><const char *>data, len(data), &envelope)
    cdef unsigned int policy
    if result == ENVELOPE_TRUNCATED:
        raise ValueError("the envelope is truncated")
    if result < 0:
        raise ValueError("the envelope is of another version or kind")
    policy = (envelope.flags & POLICY_MASK) >> POLICY_SHIFT
    if policy >= len(POLICIES):
        raise ValueError("the envelope has an unknown policy for slow consumers")
    compress = None
    if envelope.flags & (COMPRESS | COMPRESS_NOT):
        compress = envelope.flags & COMPRESS != 0
    key = None
    if envelope.flags & HAS_KEY:
        key = PyUnicode_DecodeUTF8(envelope.key, envelope.key_length, "surrogatepass")
    publisher = None
    if envelope.flags & HAS_PUBLISHER:
        publisher = PyUnicode_DecodeUTF8(envelope.publisher, envelope.publisher_length, "surrogatepass")
    return DecodedEnvelope(
        kind=KINDS[envelope.kind],
        name=PyUnicode_DecodeUTF8(envelope.name, envelope.name_length, "surrogatepass"),
        payload=PyBytes_FromStringAndSize(<const char *>envelope.payload, envelope.payload_length),
        is_binary=envelope.flags & IS_BINARY != 0,
        node=envelope.node,
        number=envelope.number,
        sent_at=envelope.sent_at,
        compress=compress,
        slow_consumer=POLICIES[policy],
        key=key,
        excluded=envelope.excluded if envelope.flags & HAS_EXCLUDED else None,
        publisher=publisher,
    )


def mark_of(bytes envelope not None):
    """Return the mark of an envelope: bytes that no other one has. Shorter bytes are no envelope, and have no mark."""
    if len(envelope) < MARK_POSITION + MARK_LENGTH:
        return b""
    return envelope[MARK_POSITION:MARK_POSITION + MARK_LENGTH]


class DecodedHead(NamedTuple):
    """The head of a stored envelope: its offset, that of the envelope before it, and the epoch."""

    offset: int
    previous: int
    epoch: str


def encode_stored(bytes envelope not None, *, uint64_t offset, uint64_t previous, str epoch not None):
    """Return an envelope with a head in front, as a ``HistoryBroker`` gives it to ``BrokerEvents.receive``.

    Raises:
        ValueError: the epoch is not eight ASCII letters.
    """
    cdef bytes letters = epoch.encode()
    cdef bytes built
    cdef uint8_t *data
    if len(letters) != EPOCH_LENGTH or not letters.isalpha():
        raise ValueError(f"an epoch is {EPOCH_LENGTH} ASCII letters, not {epoch!r}")
    built = PyBytes_FromStringAndSize(NULL, STORED_HEAD_LENGTH + len(envelope))
    data = <uint8_t *>PyBytes_AS_STRING(built)
    data[0] = STORED_VERSION
    write_number(data + 1, 8, offset)
    write_number(data + 9, 8, previous)
    memcpy(data + 17, PyBytes_AS_STRING(letters), EPOCH_LENGTH)
    memcpy(data + STORED_HEAD_LENGTH, PyBytes_AS_STRING(envelope), len(envelope))
    return built


def decode_stored(bytes data not None):
    """Return the DecodedHead of a stored envelope, and the envelope.

    Raises:
        ValueError: there is no head.
    """
    cdef StoredHead head
    cdef const uint8_t *start = <const uint8_t *><const char *>data
    if not data or start[0] != STORED_VERSION or parse_stored_head(start, len(data), &head) < 0:
        raise ValueError("the envelope has no head of a stored one")
    letters = <bytes>head.epoch[:EPOCH_LENGTH]
    if not letters.isalpha():
        raise ValueError("the epoch is not ASCII letters")
    return DecodedHead(head.offset, head.previous, letters.decode()), data[STORED_HEAD_LENGTH:]
