"""Native receivers of envelopes. envelope_receiver.pyx says what they do."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef class EnvelopeReceiver:
    cdef void envelope_received(self, const uint8_t *data, size_t length) noexcept


cdef class CallingReceiver(EnvelopeReceiver):
    cdef object events  # BrokerEvents


cdef EnvelopeReceiver receiver_of(object events)
