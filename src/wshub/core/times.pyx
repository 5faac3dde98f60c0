# cython: language_level=3
"""Histograms of how long handshakes, handlers and pings take. A hub has them once ``Hub.measure_times`` was called."""

from wshub.core.stats_types import Histogram

# In seconds. Handlers of a few lines are in the first buckets, pings of distant clients and slow databases in the last.
cdef double[BUCKETS - 1] BOUNDS = [
    0.00001, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10
]

cdef tuple BOUNDS_OF_ALL = tuple([BOUNDS[place] for place in range(BUCKETS - 1)])


cdef class TimeHistogram:
    """Counts durations in buckets."""

    cdef void add(self, double seconds) noexcept:
        """Count a duration. A clock that was set back gives a negative one, which counts as 0."""
        cdef int place = 0
        if seconds < 0:
            seconds = 0
        while place < BUCKETS - 1 and seconds > BOUNDS[place]:
            place += 1
        self.counts[place] += 1
        self.total += seconds

    def snapshot(self):
        """Return the Histogram."""
        counts = tuple([self.counts[place] for place in range(BUCKETS)])
        return Histogram(bounds=BOUNDS_OF_ALL, counts=counts, sum=self.total)


cdef class Times:
    """The histograms of one hub."""

    def __cinit__(self):
        self.handshakes = TimeHistogram()
        self.handlers = TimeHistogram()
        self.pings = TimeHistogram()
