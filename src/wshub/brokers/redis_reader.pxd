"""The reader of a Redis connection. redis_reader.pyx describes it."""

from libc.stdint cimport uint8_t, uint64_t

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver
from wshub.brokers.redis_due_replies cimport DueReplies


cdef class RedisReader:
    cdef object parser
    cdef object feed_parser
    cdef object get_reply
    cdef object has_data
    cdef bint is_between_replies  # hiredis has no bytes of a reply that is not complete
    cdef bytes unfinished        # the beginning of a short reply, which hiredis has not got
    cdef object pushed
    cdef object settled
    cdef object refused
    cdef object call_refused
    cdef DueReplies replies
    cdef EnvelopeReceiver receiver
    cdef public bytes probe_channel
    cdef public bytes earlier_probe_channel  # empty unless `probe_channel` was changed
    cdef bint ended
    cdef bint is_unsettled       # `pushed` was called since `settled` was
    cdef readonly uint64_t envelopes_received
    cdef readonly uint64_t envelopes_sent  # envelopes whose reply is only counted

    cdef int await_reply(self, object waiting) except -1
    cdef int await_stored(self, bytes head, bytes envelope) except -1
    cdef Py_ssize_t skip_counted(self, const uint8_t *data, Py_ssize_t length) noexcept
    cdef int take_replies(self) except -1
    cdef int take_push(self, list items) except -1
    cdef int take_reply(self, reply) except -1
    cdef int settle(self) except -1
