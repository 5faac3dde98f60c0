"""The sender of envelopes to a Redis engine. redis_sender.pyx describes it."""

from libc.stddef cimport size_t

from wshub.brokers.redis_reader cimport RedisReader
from wshub.links.byte_stream cimport ByteStream


cdef class EnvelopeSender:
    cdef object names            # ChannelNames
    cdef dict heads              # that of `names`
    cdef size_t max_pending
    cdef ByteStream stream       # None while there is no connection
    cdef RedisReader reader
    cdef readonly object dropped
    cdef readonly str why_dropped

    cdef bint take(self, bytes head, bytes envelope, object on_answer, bint is_stored) except -1
    cdef bint may_send(self, bytes envelope) except -1
    cdef void write_command(self, bytes head, bytes envelope) noexcept
    cdef bint drop(self, str reason, str why) except -1
