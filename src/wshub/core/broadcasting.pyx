# cython: language_level=3
"""One message to many connections: of a room, of a user or all, here and on the other nodes."""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint8_t, uint64_t

from wshub.brokers.envelope cimport HUB_MESSAGE, ROOM_MESSAGE
from wshub.core.connection_state cimport ConnectionCore
from wshub.core.conflation_keys cimport HUB_KEYS, check_conflation_key, intern_key
from wshub.core.delivery_options cimport (
    CLOSE_CONNECTION,
    INHERITED,
    LATEST,
    Delivery,
    resolve_delivery_options,
)
from wshub.core.fan_out cimport send_to_all, send_to_room
from wshub.core.hub_state cimport HubBase
from wshub.core.remote_messages cimport RemoteMessages, envelope_of
from wshub.core.rooms cimport Room
from wshub.protocol.frame_buffer cimport FrameBuffer, frame_payload, frame_release
from wshub.protocol.message cimport Message, Payload, frame_with_metadata_from_data, payload_of_frame
from wshub.protocol.opcodes cimport BINARY_OPCODE

from functools import partial

from wshub.brokers.interface import ALL_NODES, ROOM_CHANNELS, USER_CHANNELS


cdef Py_ssize_t send_to_many(
    HubBase hub, uint8_t kind, str name, object message, ConnectionCore excluded, object compress, object slow_consumer,
    object key, list envelopes
) except -1:
    """Queue a message for a room, a user or all connections. Return the number of connections.

    `kind` is that of the envelope. The message goes to the other nodes too. If there is a list of envelopes, the list
    gets the channel and the envelope, and the broker gets nothing.
    """
    cdef FrameBuffer *frame
    cdef Delivery delivery
    cdef Room found = None
    cdef Py_ssize_t count = 0
    cdef uint64_t number
    check_conflation_key(key)
    resolve_delivery_options(&delivery, &hub.delivery_defaults, compress, slow_consumer, INHERITED)
    if hub.closed or (hub.loop is None and not hub.bind_to_send()):
        Message(message)
        return 0
    if PyThread_get_thread_ident() != hub.thread_id and not hub.loop.is_closed():
        return send_from_loop(hub, kind, name, Message(message), excluded, compress, slow_consumer, key)
    if kind != HUB_MESSAGE:
        found = rooms_of_kind(hub, kind).get(name)
    if found is None:
        number = intern_key(hub.conflation_keys, HUB_KEYS, key)
    else:
        if slow_consumer is None:
            resolve_delivery_options(&delivery, &hub.delivery_defaults, compress, None, found.policy)
        if key is None and delivery.policy == LATEST:
            number = found.conflation_key
        else:
            number = intern_key(hub.conflation_keys, found.conflation_key, key)
    frame = frame_with_metadata_from_data(
        message, number, found.delivery_counters if found is not None else NULL, delivery.policy != CLOSE_CONNECTION
    )
    if kind == HUB_MESSAGE:
        count = send_to_all(hub, frame, excluded, &delivery)
    elif found is not None:
        count = send_to_room(hub, found, frame, excluded, &delivery)
    if hub.cluster is None and hub._watches is None:
        frame_release(frame)
        return count
    try:
        if hub._watches is not None and kind == ROOM_MESSAGE:
            show(hub, name, frame)
        if hub.cluster is not None:
            pass_on(hub, kind, name, found, frame, compress, slow_consumer, key, envelopes)
    finally:
        frame_release(frame)
    return count


cdef dict rooms_of_kind(HubBase hub, uint8_t kind):
    return hub.room_table if kind == ROOM_MESSAGE else hub.user_table


cdef object show(HubBase hub, str name, FrameBuffer *frame):
    """Give a message to the watches of its room."""
    cdef list found = hub._watches.of_room(name)
    if found:
        payload = (<const char *>frame_payload(frame))[:frame.length]
        hub._watches.sent(found, name, payload, frame.opcode == BINARY_OPCODE)


cdef object pass_on(
    HubBase hub, uint8_t kind, str name, Room found, FrameBuffer *frame, object compress, object slow_consumer,
    object key, list envelopes
):
    """Give a message to the broker, or its channel and its envelope to a list."""
    cdef RemoteMessages cluster = hub.cluster
    cdef Payload payload
    if kind == HUB_MESSAGE:
        channel = ALL_NODES
    elif found is not None:
        channel = found.channel
    elif kind == ROOM_MESSAGE:
        channel = ROOM_CHANNELS + name
    elif name:
        channel = USER_CHANNELS + name
    else:
        # Anonymous clients are no user.
        return
    payload = payload_of_frame(frame)
    envelope = envelope_of(cluster, kind, name, &payload, compress, slow_consumer, key, None, None)
    if envelopes is None:
        cluster.send_envelope(channel, envelope)
    else:
        envelopes += (channel, envelope)


cdef bint hand_to_loop(HubBase hub, object call) except -1:
    """Have the loop make a call that comes from another thread. Return False if the loop has closed."""
    try:
        hub.loop.call_soon_threadsafe(call)
    except RuntimeError:
        if not hub.loop.is_closed():
            raise
        # It closed a moment ago, and its connections are gone.
        return False
    return True


cdef Py_ssize_t send_from_loop(
    HubBase hub, uint8_t kind, str name, object message, ConnectionCore excluded, object compress, object slow_consumer,
    object key
) except -1:
    """Have the loop send a message. Return the number of connections that it is for at this moment."""
    cdef Room found
    if not hand_to_loop(hub, partial(send_now, hub, kind, name, message, excluded, compress, slow_consumer, key)):
        return 0
    if kind == HUB_MESSAGE:
        return len(hub.connection_table)
    found = rooms_of_kind(hub, kind).get(name)
    return len(found.members) if found is not None else 0


def send_now(
    HubBase hub, uint8_t kind, str name, message, ConnectionCore excluded, compress, slow_consumer, key
):
    """Do what send_to_many() does, on the thread of the loop."""
    send_to_many(hub, kind, name, message, excluded, compress, slow_consumer, key, None)
