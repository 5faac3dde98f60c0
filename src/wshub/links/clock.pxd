"""Reads a clock without a call of Python where that makes no difference."""

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef inline double read_clock(object clock, bint is_monotonic) noexcept:
    """Return the time of a clock in seconds.

    `is_monotonic` says that the clock is ``time.monotonic``. Then the system's clock is read. Compare such times with
    one another only: on some platforms the two clocks start at different moments.
    """
    cdef timespec now
    if is_monotonic and clock_gettime(CLOCK_MONOTONIC, &now) == 0:
        return now.tv_sec + now.tv_nsec * 1e-9
    return clock()
