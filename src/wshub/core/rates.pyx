# cython: language_level=3
"""Rates: one token bucket of a connection for each kind of work, which each sweep refills.

response_to() and refill_buckets() decide. They depend on their arguments alone.

    State                     excess="delay"   excess="close":
    OPEN                      DELAY            FAIL_1008.
    CLOSING, too many bytes   ABORT_AT_ONCE    ABORT_AT_ONCE.
    CLOSING, another rate     GO_ON            GO_ON.
"""

from wshub.core.closing cimport fail, wake_receiver
from wshub.core.connection_state cimport IS_CLOSING, IS_OPEN, RATE_SPENT, unblock_later
from wshub.core.hub_state cimport BYTES, RATES

# The words for an excess of each rate in the log and in the close reason, in the order of the rates.
cdef tuple EXCESSES = ("more bytes", "more messages", "more pings or pongs", "more handler time")


cdef Response response_to(uint8_t status, int kind, bint closes_at_rate) noexcept:
    """Decide about a connection in this state whose bucket of this kind is empty."""
    if status == IS_OPEN:
        return FAIL_1008 if closes_at_rate else DELAY
    if status == IS_CLOSING and kind == BYTES:
        # The client goes on sending although the close frame was sent.
        return ABORT_AT_ONCE
    return GO_ON


cdef bint refill_buckets(double *left, const Rate *rates, double elapsed) noexcept:
    """Add to each bucket what its rate allows in this many seconds. Returns whether none is below zero."""
    cdef bint allows_more = True
    cdef int kind
    for kind in range(RATES):
        left[kind] = min(left[kind] + rates[kind].per_second * elapsed, rates[kind].at_most)
        allows_more = allows_more and left[kind] >= 0
    return allows_more


cdef void refill(ConnectionCore connection, double elapsed) noexcept:
    """Refill the buckets, and read a delayed connection again once no bucket is below zero."""
    if elapsed <= 0:
        return
    if refill_buckets(connection.left, connection.hub.rates, elapsed) and connection.blocks & RATE_SPENT:
        unblock_later(connection, RATE_SPENT)


cdef void exceed(ConnectionCore connection, int kind) noexcept:
    """Respond to an empty bucket."""
    cdef Response response = response_to(connection.status, kind, connection.hub.closes_at_rate)
    if response == GO_ON:
        return
    if response == ABORT_AT_ONCE:
        connection.input_ended = True
        wake_receiver(connection)
        connection.link.abort(False)
        return
    connection.hub.rates_exceeded += 1
    if connection.hub.rates_exceeded == 1:
        connection.hub.limit_log.warn(
            "rates", "%r sends %s than its rates allow (HubConfig.rates)", connection, EXCESSES[kind]
        )
    if response == FAIL_1008:
        fail(connection, 1008, f"{EXCESSES[kind]} than allowed")
    else:
        connection.blocks |= RATE_SPENT
        connection.link.pause()
