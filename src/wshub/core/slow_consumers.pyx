# cython: language_level=3
"""Slow consumers: what happens to a message for a connection whose client does not read as fast as it is sent to.

The policies are in delivery_options.pxd. The links drop and replace queued messages (links/droppable_frames.h).
"""

from wshub.core.closing cimport abort_out_of_memory, fail, fail_drain_waiters
from wshub.core.connection_state cimport IS_OPEN, is_full
from wshub.core.delivery_options cimport CLOSE_CONNECTION, DROP_NEWEST, LATEST
from wshub.core.rooms cimport sync_to
from wshub.protocol.frame_buffer cimport DROPPED_NEWEST, DROPPED_SLOW


cdef int queue_at_limit(ConnectionCore connection, FrameBuffer *frame, uint8_t policy) noexcept:
    """queue() for a connection whose queue is full, or whose link is blocked under the policy "latest"."""
    if policy == LATEST and frame.conflation_key != 0 and connection.link.blocked and connection.link.replace(frame):
        return 1
    if is_full(connection):
        # The kernel may take a burst of this loop iteration. Only bytes that it refuses count as too many.
        connection.link.flush_now()
    if is_full(connection):
        connection.hub.had_no_space = True
        if policy == CLOSE_CONNECTION:
            connection.link.reject(frame, DROPPED_SLOW)
            return -1
        connection.is_dropping = True
        if policy == DROP_NEWEST or not connection.link.make_space(connection.hub.max_send_buffer):
            connection.link.reject(frame, DROPPED_NEWEST)
            # No later message may refer to one that the peer does not get.
            connection.context_stale = True
            sync_to(connection, 0)
            return 0
    if connection.link.write(frame) < 0:
        abort_out_of_memory(connection)
        return 0
    return 1


cdef void fail_slow_consumer(ConnectionCore connection) noexcept:
    """Fail a connection whose queue is full. The queued messages are dropped, so that the close frame comes first."""
    if connection.status != IS_OPEN:
        return
    connection.link.drop_unsent()
    fail(connection, 1013, "too much is waiting to be sent")
    fail_drain_waiters(connection)
