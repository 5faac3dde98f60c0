# cython: language_level=3
"""Messages to rooms with history: they are stored first, and go to the members when they come back with an offset."""

from cpython.pythread cimport PyThread_get_thread_ident

from wshub.brokers.envelope cimport ROOM_MESSAGE
from wshub.brokers.stored_sender cimport StoredSender
from wshub.core.broadcasting cimport hand_to_loop
from wshub.core.connection_state cimport ConnectionCore
from wshub.core.conflation_keys cimport check_conflation_key
from wshub.core.hub_state cimport HubBase
from wshub.core.named_connections cimport connection_of, publisher_name
from wshub.core.remote_messages cimport RemoteMessages, envelope_of
from wshub.core.rooms cimport Room, room_name
from wshub.protocol.message cimport Message, Payload, payload_from_data

from functools import partial


cdef bint keeps_history(HubBase hub, str name) except -1:
    """Whether the messages to a room are kept."""
    cdef Room room
    # They are cleared whenever settings change.
    if name in hub.history_senders:
        return True
    room = hub.room_table.get(name)
    if room is not None:
        return room.has_history
    config = hub.room_configs.find(name)
    return config is not None and config.history is not None


cdef bytes history_envelope(
    HubBase hub, str name, object message, ConnectionCore excluded, object compress, object slow_consumer, object key,
    str publisher
):
    """Return the envelope of a message to a room with history."""
    cdef RemoteMessages messages = hub.history_messages
    cdef Payload payload
    check_conflation_key(key)
    message = payload_from_data(message, &payload)
    return envelope_of(messages, ROOM_MESSAGE, name, &payload, compress, slow_consumer, key, excluded, publisher)


cdef Py_ssize_t send_to_history(
    HubBase hub, str name, object message, ConnectionCore excluded, object compress, object slow_consumer, object key,
    str publisher
) except -1:
    """Have a message stored. Return the number of members of the room, which get it once it is."""
    cdef Room room
    if hub.closed or (hub.loop is None and not hub.bind_to_send()):
        Message(message)
        return 0
    if PyThread_get_thread_ident() != hub.thread_id and not hub.loop.is_closed():
        message = Message(message)
        later = partial(send_later, hub, name, message, excluded, compress, slow_consumer, key, publisher)
        if not hand_to_loop(hub, later):
            return 0
    else:
        store(hub, name, history_envelope(hub, name, message, excluded, compress, slow_consumer, key, publisher))
    room = hub.room_table.get(name)
    if room is None:
        return 0
    return len(room.members) - (excluded is not None and excluded.connection_id in room.members)


cdef object store(HubBase hub, str name, bytes envelope):
    """Have an envelope stored and sent. If it is dropped, that is counted."""
    cdef RemoteMessages messages = hub.history_messages
    cdef StoredSender sender
    cdef bint taken = False
    try:
        sender = hub.history_senders.get(name)
        if sender is None:
            sender = hub.histories.sender_of(name)
        taken = sender.send(envelope)
    except Exception:
        messages.log_failure()
    messages.rejected_count += not taken


def send_later(HubBase hub, str name, message, ConnectionCore excluded, compress, slow_consumer, key, str publisher):
    """Do what send_to_history() does, on the thread of the loop."""
    send_to_history(hub, name, message, excluded, compress, slow_consumer, key, publisher)


def is_kept(HubBase hub not None, room not None):
    """Whether a hub keeps the messages to a room."""
    return hub._keeps_histories and keeps_history(hub, room_name(room))


def make_history_envelope(
    HubBase hub not None, room not None, message, exclude, compress, slow_consumer, key, publisher
):
    """Return the envelope of a message to a room with history. The arguments are those of ``Hub.publish``."""
    cdef ConnectionCore excluded = connection_of(hub, exclude)
    return history_envelope(
        hub, room_name(room), message, excluded, compress, slow_consumer, key, publisher_name(publisher)
    )
