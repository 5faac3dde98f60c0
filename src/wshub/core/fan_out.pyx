# cython: language_level=3
"""Fan-out: one frame into the queues of many connections.

The message is framed once, and compressed once for all clients with the same window. In a room with a shared window,
the clients that are in sync with it get a form that refers to the room's earlier messages: see shared_window.pyx.
"""

from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from libc.stdint cimport SIZE_MAX, uint64_t

from wshub.core.delivery_options cimport Delivery
from wshub.core.closing cimport abort_out_of_memory
from wshub.core.connection_state cimport IS_OPEN, ConnectionCore
from wshub.core.hub_state cimport HubBase
from wshub.core.rooms cimport Room, desync, restart_window
from wshub.core.sending cimport must_be_independent, queue, queue_compressed, queue_message
from wshub.core.slow_consumers cimport fail_slow_consumer
from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.compression.deflate cimport LONGEST_DEFLATED
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_release


cdef int send_to_all(HubBase hub, FrameBuffer *frame, ConnectionCore excluded, const Delivery *delivery) noexcept:
    """Queue a frame for every connection of a hub but one. Return the number of connections that it was queued for."""
    cdef dict walked = hub.walked
    cdef int count
    hub.walked = hub.connection_table
    count = fan_out(hub, hub.walked, frame, excluded, delivery, None, NULL)
    hub.walked = walked
    return count


cdef int send_to_room(
    HubBase hub, Room room, FrameBuffer *frame, ConnectionCore excluded, const Delivery *delivery
) noexcept:
    """Queue a frame for every member of a room but one. Return the number of members that it was queued for."""
    cdef FrameBuffer *shared = NULL
    cdef dict walked = room.walked
    cdef int count
    # While another message to the room is fanned out, some members do not have that message yet. So no message that is
    # compressed now may refer to it.
    if room.window is not None and delivery.threshold != SIZE_MAX and walked is None:
        if excluded is not None:
            # Desync before shared_form(): if that restarts the window, its generation changes.
            desync(excluded, room.window)
        shared = shared_form(hub, room, frame)
    room.walked = room.members
    count = fan_out(hub, room.walked, frame, excluded, delivery, room.window, shared)
    room.walked = walked
    frame_release(shared)
    return count


cdef int fan_out(
    HubBase hub, dict members, FrameBuffer *frame, ConnectionCore excluded, const Delivery *delivery,
    SharedWindow window, FrameBuffer *shared
) noexcept:
    """Queue a frame for every member.

    The event loop and the garbage collector may run code during the iteration. That code may remove members from the
    dict, which leaves the others in their places. To add a member, it copies the dict first: `walked` names the dict
    that must not grow.

    `shared` is the form for the members that are in sync with `window`; it is NULL if there is none. The next
    compressed message refers to it. So each of these members but `excluded` gets the form, or is desynced or closed.
    """
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t position = 0
    cdef int queued, count = 0
    cdef ConnectionCore connection
    cdef list full = None
    while PyDict_Next(members, &position, &key, &value):
        if value == <PyObject *>excluded:
            continue
        if shared != NULL:
            queued = queue_shared(<ConnectionCore>value, window, shared, frame, delivery)
        else:
            queued = queue_message(<ConnectionCore>value, frame, delivery)
        if queued > 0:
            count += 1
        elif queued < 0:
            try:
                if full is None:
                    full = []
                full.append(<ConnectionCore>value)
            except MemoryError:
                abort_out_of_memory(<ConnectionCore>value)
    if full is not None:
        for connection in full:
            fail_slow_consumer(connection)
    hub.counters.bytes_fanned_out += <uint64_t>count * frame.length
    return count


# Rooms with a shared window

cdef FrameBuffer *shared_form(HubBase hub, Room room, FrameBuffer *frame) noexcept:
    """Return the message compressed with the room's shared window, for members that are in sync or can get in sync.

    The caller owns it. NULL if no member can share the window, the message is empty or longer than LONGEST_DEFLATED, or
    there is no memory. Then send the message as to any room.
    """
    cdef SharedWindow window = room.window
    cdef FrameBuffer *shared
    if window.counted_at != hub.window_changes:
        count_members(room.members, window)
        window.counted_at = hub.window_changes
    if not window.able or not 0 < frame.length <= LONGEST_DEFLATED:
        return NULL
    if window.is_due():
        restart_window(hub, window)
    shared = window.compress(frame)
    if shared == NULL:
        restart_window(hub, window)
    return shared


cdef void count_members(dict members, SharedWindow window) noexcept:
    """Count the members that can be in sync with a window, and the members that are in sync."""
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t position = 0
    window.able = 0
    window.in_sync = 0
    while PyDict_Next(members, &position, &key, &value):
        if can_share(<ConnectionCore>value, window):
            window.able += 1
            window.in_sync += (<ConnectionCore>value).generation == window.generation


cdef bint can_share(ConnectionCore connection, SharedWindow window) noexcept:
    """Whether the negotiated parameters let the client decompress with a shared window."""
    if not connection.server_context_takeover or connection.window_bits < window.window_bits:
        return False
    return connection.status == IS_OPEN


cdef int queue_shared(
    ConnectionCore connection, SharedWindow window, FrameBuffer *shared, FrameBuffer *frame, const Delivery *delivery
) noexcept:
    """Queue a message to a room with a window, in the form that suits the client. Return what queue() returns."""
    if connection.status == IS_OPEN and must_be_independent(connection, delivery):
        desync(connection, window)
    elif connection.generation == window.generation:
        return queue(connection, shared, delivery.policy)
    elif can_share(connection, window):
        if window.messages == 1:
            return queue_compressed(connection, shared, window.generation, delivery.policy)
        window.missed += 1
    return queue_message(connection, frame, delivery)
