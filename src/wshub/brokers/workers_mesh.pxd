"""The peers of a node, and what they are sent. workers_mesh.pyx says more."""

from libc.stdint cimport uint64_t

from wshub.brokers.envelope_receiver cimport EnvelopeReceiver
from wshub.brokers.workers_interest cimport Interest
from wshub.links.link cimport LinkCounters
from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class Mesh:
    cdef readonly bint is_open      # between start() and close()
    cdef Interest interest
    cdef LinkCounters counters
    cdef EnvelopeReceiver receiver
    cdef set peers                  # those that are up
    cdef object loop
    cdef size_t max_pending
    cdef uint64_t dropped_full
    cdef uint64_t dropped_lost      # the counters know of those that had been queued
    cdef uint64_t dropped_large
    cdef uint64_t dropped_memory

    cdef bint send_matching(self, str channel, bytes envelope, list receivers, set subscribed) except -1
    cdef FrameBuffer *build(self, unsigned char kind, bytes body) noexcept
    cdef bint write(self, object peer, FrameBuffer *frame) noexcept
    cdef int write_change(self, unsigned char kind, str channel) except -1
