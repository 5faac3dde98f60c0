# cython: language_level=3
"""Rooms: the named groups of connections that a message can be sent to.

A room exists while it has a member. Its settings stay with the hub, for the next room of that name. The hub has a dict
of its rooms, each room a dict of its members, and each connection a dict of its rooms. A connection that is closing is
a member of no room, but keeps its dict, so that ``on_close`` sees the names.
"""

from cpython.unicode cimport PyUnicode_FromObject

from wshub.core.delivery_options cimport INHERITED, policy_from_name
from wshub.core.connection_state cimport IS_CLOSING, ConnectionCore
from wshub.core.hub_state cimport HubBase
from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.frame_buffer cimport delivery_counters_new, delivery_counters_release


cdef str room_name_from(object name):
    """room_name() for an object that is no exact str."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a room must be a str, not {type(name).__name__}")
    return PyUnicode_FromObject(name)


cdef class Room:
    """The connections that a message to a room reaches."""

    def __cinit__(self, name):
        self.name = name
        self.members = {}
        self.policy = INHERITED
        self.delivery_counters = delivery_counters_new()
        if self.delivery_counters == NULL:
            raise MemoryError

    def __dealloc__(self):
        delivery_counters_release(self.delivery_counters)


cdef Room find_room(HubBase hub, object name):
    """Return the room with that name, or None if it has no member."""
    return hub.room_table.get(room_name(name))


# Members

cdef bint join_room(ConnectionCore connection, str name) except -1:
    """Make a connection a member of a room. Return False if the connection is closing and cannot join."""
    cdef HubBase hub = connection.hub
    cdef Room room
    if connection.status >= IS_CLOSING:
        return False
    if connection.room_table is None:
        connection.room_table = {}
    elif name in connection.room_table:
        return True
    room = hub.room_table.get(name)
    if room is None:
        room = open_room(hub, name)
    if room.members is room.walked:
        room.members = dict(room.members)
    if connection.status >= IS_CLOSING:
        # The garbage collector has run code that closed the connection.
        drop_if_empty(hub, room)
        return False
    room.members[connection.connection_id] = connection
    hub.window_changes += room.window is not None
    connection.room_table[name] = room
    return True


cdef object leave_room(ConnectionCore connection, str name):
    """End a connection's membership in a room, if it is a member and not closing."""
    cdef Room room
    if connection.room_table is None or connection.status >= IS_CLOSING:
        return
    room = connection.room_table.pop(name, None)
    if room is None:
        return
    remove_member(connection, room)
    if room.window is not None:
        desync(connection, room.window)


cdef void leave_all_rooms(ConnectionCore connection) noexcept:
    """End all memberships of a connection that is closing. Its dict of rooms stays as it is."""
    cdef Room room
    if connection.room_table is None:
        return
    for room in connection.room_table.values():
        remove_member(connection, room)


cdef object remove_member(ConnectionCore connection, Room room):
    room.members.pop(connection.connection_id, None)
    connection.hub.window_changes += room.window is not None
    drop_if_empty(connection.hub, room)


cdef Room open_room(HubBase hub, str name):
    """Make a room without members, with the settings for that name."""
    cdef Room room = Room(name)
    room.conflation_key = hub.conflation_keys.next_number()
    config = hub.room_configs.get(name)
    if config is not None:
        apply_settings(hub, room, config)
    # The garbage collector may have run code that opened the room too.
    return hub.room_table.setdefault(name, room)


cdef object drop_if_empty(HubBase hub, Room room):
    """Remove a room without members from the hub, unless the hub has another room of that name by now."""
    if not room.members and hub.room_table.get(room.name) is room:
        del hub.room_table[room.name]


# Settings

cdef object configure_room(HubBase hub, str name, object config):
    """Set the RoomConfig of a room, now and each time that it is opened."""
    cdef Room room = hub.room_table.get(name)
    cdef ConnectionCore connection
    hub.room_configs[name] = config
    if room is None:
        return
    if room.window is not None:
        # The room gets another window.
        for connection in room.members.values():
            desync(connection, room.window)
    apply_settings(hub, room, config)


cdef object apply_settings(HubBase hub, Room room, object config):
    """Take the settings from a RoomConfig. No member may be in sync with the room's former window."""
    room.policy = policy_from_name(config.slow_consumer)
    room.window = new_window(hub, config)


cdef SharedWindow new_window(HubBase hub, object config):
    """Return the window that a room with that RoomConfig begins with, or None."""
    if config.compression != "shared":
        return None
    window = SharedWindow(hub.pool, config.restart_interval)
    restart_window(hub, window)
    return window


cdef void restart_window(HubBase hub, SharedWindow window) noexcept:
    """Begin a new history of a window. No member is in sync with it before the next message."""
    hub.last_generation += 1
    hub.window_changes += 1
    window.restart(hub.last_generation)
