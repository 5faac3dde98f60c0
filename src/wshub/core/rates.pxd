from libc.stdint cimport uint8_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.core.hub_state cimport Rate


# The response to a connection that exceeds a rate.
cdef enum Response:
    GO_ON
    DELAY        # stop reading until the rates allow more
    FAIL_1008
    ABORT_AT_ONCE


cdef Response response_to(uint8_t status, int kind, bint closes_at_rate) noexcept
cdef bint refill_buckets(double *left, const Rate *rates, double elapsed) noexcept

cdef void refill(ConnectionCore connection, double elapsed) noexcept
cdef void exceed(ConnectionCore connection, int kind) noexcept


cdef inline void spend(ConnectionCore connection, int kind, double amount) noexcept:
    """Take from the bucket of a rate. An empty bucket delays the connection or ends it."""
    connection.left[kind] -= amount
    if connection.left[kind] < 0:
        exceed(connection, kind)
