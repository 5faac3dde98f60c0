# cython: language_level=3
"""Sequence numbers of envelopes, with which a node rejects duplicates and late ones.

Engines of a cluster that are primary and replica of one another pass messages on. So after a failover, a message may
arrive from the new primary that has arrived from the old one before, or that later ones have overtaken. The sender puts
a head of 20 bytes in front of each envelope. All numbers are little-endian.

- Byte 0 is 0xA1: no envelope, and no text, begins with it. Byte 1 is 0.
- Bytes 2 and 3: the partition of the channel.
- Bytes 4 to 11: the stream, which is random for each session of a sender.
- Bytes 12 to 19: the number of the envelope within the stream and the partition, from 1.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver, receiver_of
from wshub.brokers.little_endian cimport read_number, write_number

import logging
import secrets

logger = logging.getLogger("wshub.broker")

cdef enum:
    # Sequences of one generation. With two generations, those that are in use stay, and memory is bounded.
    GENERATION = 16384
    WINDOW_BITS = 64


cdef class SequenceNumbers:
    """Numbers the envelopes of one session.

    Args:
        partitions: their number.
    """

    def __init__(self, int partitions):
        self.stream = secrets.token_bytes(8)
        self.numbers = [0] * partitions

    def add_head(self, int partition, bytes envelope not None):
        """Return an envelope with a head in front. Its number is the next one of the partition."""
        cdef uint64_t number = self.numbers[partition] + 1
        cdef size_t length = len(envelope)
        cdef bytes numbered = PyBytes_FromStringAndSize(NULL, SEQUENCE_HEAD_LENGTH + length)
        cdef uint8_t *head = <uint8_t *>PyBytes_AS_STRING(numbered)
        head[0] = SEQUENCE_MARK
        head[1] = 0
        write_number(head + KEY_POSITION, 2, partition)
        memcpy(head + KEY_POSITION + 2, <const char *>self.stream, 8)
        write_number(head + NUMBER_POSITION, 8, number)
        memcpy(head + SEQUENCE_HEAD_LENGTH, <const char *>envelope, length)
        self.numbers[partition] = number
        return numbered


cdef class InOrderReceiver(EnvelopeReceiver):
    """Passes envelopes on without their heads: each once, and those of one stream and partition in order.

    Envelopes without a head, such as stored ones and those of other programs, are passed on as they are.

    Args:
        events: take the envelopes.
        is_late: called with a partition when an envelope is rejected that had not arrived before.
    """

    def __init__(self, events, is_late):
        self.receiver = receiver_of(events)
        self.is_late = is_late
        self.recent = {}
        self.older = {}

    cdef void envelope_received(self, const uint8_t *data, size_t length) noexcept:
        if length < SEQUENCE_HEAD_LENGTH or data[0] != SEQUENCE_MARK:
            self.receiver.envelope_received(data, length)
            return
        try:
            if not self.accept(data):
                self.rejected += 1
                return
        except Exception:
            # Without memory for the sequence, order cannot be told: the envelope is dropped.
            logger.exception("an envelope could not be taken")
            return
        self.receiver.envelope_received(data + SEQUENCE_HEAD_LENGTH, length - SEQUENCE_HEAD_LENGTH)

    cdef bint accept(self, const uint8_t *data) except -1:
        """Return whether an envelope is newer than all that have arrived of its sequence."""
        cdef uint64_t number = read_number(data + NUMBER_POSITION, 8)
        cdef Sequence sequence = self.sequence_of(
            PyBytes_FromStringAndSize(<const char *>data + KEY_POSITION, KEY_LENGTH)
        )
        cdef uint64_t distance
        if number > sequence.newest:
            distance = number - sequence.newest
            sequence.window = (sequence.window << distance if distance < WINDOW_BITS else 0) | 1
            sequence.newest = number
            return True
        distance = sequence.newest - number
        if distance < WINDOW_BITS:
            if sequence.window >> distance & 1:
                return False
            sequence.window |= <uint64_t>1 << distance
        self.is_late(read_number(data + KEY_POSITION, 2))
        return False

    cdef Sequence sequence_of(self, bytes key):
        cdef Sequence sequence = <Sequence>self.recent.get(key)
        if sequence is None:
            sequence = <Sequence>self.older.get(key)
            if sequence is None:
                sequence = Sequence()
            if len(self.recent) >= GENERATION:
                self.older = self.recent
                self.recent = {}
            self.recent[key] = sequence
        return sequence
