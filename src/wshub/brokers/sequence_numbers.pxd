"""Sequence numbers of envelopes. sequence_numbers.pyx describes them."""

from libc.stdint cimport uint8_t, uint64_t

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver

cdef enum:
    SEQUENCE_MARK = 0xA1
    SEQUENCE_HEAD_LENGTH = 20
    # The partition and the stream in the head.
    KEY_POSITION = 2
    KEY_LENGTH = 10
    NUMBER_POSITION = 12


cdef class Sequence:
    """The envelopes of one stream and partition that have arrived."""

    cdef uint64_t newest
    # Bit n is set if the envelope numbered `newest` - n has arrived.
    cdef uint64_t window


cdef class SequenceNumbers:
    cdef bytes stream
    cdef list numbers            # the last number of each partition


cdef class InOrderReceiver(EnvelopeReceiver):
    cdef EnvelopeReceiver receiver
    cdef object is_late
    # By partition and stream: those used since the last change of generations, and those used before it.
    cdef dict recent
    cdef dict older
    cdef readonly uint64_t rejected  # envelopes that were duplicates, or late

    cdef bint accept(self, const uint8_t *data) except -1
    cdef Sequence sequence_of(self, bytes key)
