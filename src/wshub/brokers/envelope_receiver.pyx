# cython: language_level=3
"""Native receivers of envelopes: a hub takes them from a native broker without an object for each."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

import logging

logger = logging.getLogger("wshub.broker")


cdef class EnvelopeReceiver:
    """Takes envelopes. A subclass overrides ``envelope_received``."""

    cdef void envelope_received(self, const uint8_t *data, size_t length) noexcept:
        """Take an envelope. `data` is valid until this returns."""

    def receive(self, bytes envelope not None):
        """Take an envelope that has arrived."""
        self.envelope_received(<const uint8_t *><const char *>envelope, len(envelope))


cdef class CallingReceiver(EnvelopeReceiver):
    """Passes envelopes on to the ``receive()`` of an object that is not native."""

    cdef void envelope_received(self, const uint8_t *data, size_t length) noexcept:
        try:
            self.events.receive(PyBytes_FromStringAndSize(<const char *>data, length))
        except Exception:
            logger.exception("an envelope could not be taken")


cdef EnvelopeReceiver receiver_of(object events):
    """Return the events themselves if they take envelopes natively, or else an object that passes them on."""
    cdef CallingReceiver receiver
    if isinstance(events, EnvelopeReceiver):
        return events
    receiver = CallingReceiver()
    receiver.events = events
    return receiver
