"""Backpressure: the policies for a message to a slow consumer, a client that does not read."""

from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX, uint8_t


# The policies for a message to a connection whose send queue is full.
cdef enum Policy:
    CLOSE_CONNECTION
    DROP_NEWEST
    DROP_OLDEST
    LATEST
    INHERITED  # of a room: use the hub's policy


cdef struct Delivery:
    # How a message is sent; the same for all its receivers.
    size_t threshold  # compress from this many bytes on
    uint8_t policy    # a Policy, not INHERITED


cdef uint8_t policy_from_name(object name) except? 255


cdef inline int resolve_delivery_options(
    Delivery *delivery, const Delivery *defaults, object compress, object slow_consumer, uint8_t room_policy
) except -1:
    """Fill in how to send a message: by the call's options, then by the room's policy, then by the hub's defaults."""
    cdef uint8_t policy = room_policy if slow_consumer is None else policy_from_name(slow_consumer)
    if compress is None:
        delivery.threshold = defaults.threshold
    else:
        delivery.threshold = 1 if compress else SIZE_MAX
    delivery.policy = defaults.policy if policy == INHERITED else policy
    return 0
