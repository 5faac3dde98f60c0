"""Histograms of how long handshakes, handlers and pings take. A hub has them once ``Hub.measure_times`` was called."""

from libc.stdint cimport uint64_t


cdef enum:
    BUCKETS = 18  # one for each bound, and one for what takes longer


cdef class TimeHistogram:
    cdef uint64_t counts[BUCKETS]  # each duration counts in one bucket
    cdef double total              # seconds, of all durations

    cdef void add(self, double seconds) noexcept


cdef class Times:
    cdef TimeHistogram handshakes
    cdef TimeHistogram handlers
    cdef TimeHistogram pings
