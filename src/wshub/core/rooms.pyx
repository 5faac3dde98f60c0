# cython: language_level=3
"""Rooms: the named groups of connections that a message can be sent to.

A room exists while it has a member. Its settings stay with the hub, for the next room of that name. The hub has a dict
of its rooms, each room a dict of its members, and each connection a dict of its rooms. A connection that is closing is
a member of no room, but keeps its dict, so that ``on_close`` sees the names.

The connections of a user are a room too, in a table of its own: the application reaches it by the user's name only.
"""

from cpython.unicode cimport PyUnicode_FromObject

from wshub.core.delivery_options cimport INHERITED, policy_from_name
from wshub.core.connection_state cimport IS_CLOSING, ConnectionCore
from wshub.core.hub_state cimport HubBase
from wshub.core.node_numbers cimport forget_numbers
from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.frame_buffer cimport delivery_counters_new, delivery_counters_release

from wshub.brokers.interface import room_channel, user_channel


# The key of the user's room in a connection's dict of rooms. No name of a room is equal to it.
cdef object USER = object()


cdef str room_name_from(object name):
    """room_name() for an object that is no exact str."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a room must be a str, not {type(name).__name__}")
    return PyUnicode_FromObject(name)


cdef str user_name_from(object user):
    """user_name() for an object that is no exact str."""
    if not isinstance(user, str):
        raise TypeError(f"a user is named by a str, not {type(user).__name__}: convert an id with str()")
    return PyUnicode_FromObject(user)


cdef class Room:
    """The connections that a message to a room reaches."""

    def __cinit__(self, name, dict table not None, channel):
        self.name = name
        self.table = table
        self.channel = channel
        self.members = {}
        self.policy = INHERITED
        self.delivery_counters = delivery_counters_new()
        if self.delivery_counters == NULL:
            raise MemoryError

    def __dealloc__(self):
        delivery_counters_release(self.delivery_counters)
        forget_numbers(&self.last_numbers)

    @property
    def has_members(self):
        """Whether the hub has a room of this name: this one, or one that was opened after it."""
        return self.name in self.table


cdef Room find_room(HubBase hub, object name):
    """Return the room with that name, or None if it has no member."""
    return hub.room_table.get(room_name(name))


# Members

cdef bint join_room(ConnectionCore connection, str name) except -1:
    """Make a connection a member of a room. Return False if the connection is closing and cannot join."""
    cdef Room room
    if connection.status >= IS_CLOSING:
        return False
    if connection.room_table is None:
        connection.room_table = {}
    elif name in connection.room_table:
        return True
    room = connection.hub.room_table.get(name)
    if room is None:
        room = open_room(connection.hub, name)
    return add_member(connection, name, room)


cdef bint add_member(ConnectionCore connection, object key, Room room) except -1:
    """Make a connection a member, under a key of its dict of rooms. Return False if the connection is closing.

    It leaves the room that it has had under that key.
    """
    cdef HubBase hub = connection.hub
    cdef Room former
    cdef bint is_first
    # The garbage collector may run code, which may drop the room, open another of its name, or close the connection.
    while True:
        room = room.table.setdefault(room.name, room)
        if room.members is not room.walked:
            break
        room.members = dict(room.members)
    if connection.status >= IS_CLOSING:
        drop_if_empty(hub, room)
        return False
    is_first = not room.members
    former = connection.room_table.get(key)
    room.members[connection.connection_id] = connection
    connection.room_table[key] = room
    hub.window_changes += room.window is not None
    if former is not None and former is not room:
        remove_member(connection, former)
    if is_first:
        note_change(hub, room)
    if room.has_presence and hub.presences is not None:
        hub.presences.joined(room.name, connection.connection_id, user_of(connection))
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
    if room.has_presence and connection.hub.presences is not None:
        connection.hub.presences.left(room.name, connection.connection_id)
    connection.hub.window_changes += room.window is not None
    drop_if_empty(connection.hub, room)


cdef object names_of_rooms(ConnectionCore connection):
    """Return the names of the connection's rooms as a frozenset, without that of its user."""
    cdef object names
    if connection.room_table is None:
        return frozenset()
    names = frozenset(connection.room_table)
    return names - {USER} if USER in names else names


cdef Room open_room(HubBase hub, str name):
    """Make a room without members, with the settings for that name. The hub has it once it has a member."""
    cdef Room room = Room(name, hub.room_table, room_channel(name) if hub.cluster is not None else None)
    room.conflation_key = hub.conflation_keys.next_number()
    config = hub.room_configs.find(name) if hub.has_room_configs else None
    if config is not None:
        apply_settings(hub, room, config)
    return room


cdef object drop_if_empty(HubBase hub, Room room):
    """Remove a room without members from the hub, unless the hub has another room of that name by now."""
    if not room.members and room.table.get(room.name) is room:
        del room.table[room.name]
        note_change(hub, room)


cdef void note_change(HubBase hub, Room room) noexcept:
    """Have the hub's cluster subscribe to the room's messages, or unsubscribe; and its history begin or end."""
    if room.has_history and hub.histories is not None:
        # It may have messages arrive for clients that come back, too.
        hub.histories.members_changed(room.name)
    elif hub.cluster is not None:
        hub.cluster.members_changed(room)


# Users

cdef str user_of(ConnectionCore connection):
    """Return the user of a connection; None if it has none."""
    cdef Room room
    if connection.room_table is None:
        return None
    room = connection.room_table.get(USER)
    return room.name if room is not None else None


cdef object set_user(ConnectionCore connection, str user):
    """Make a connection that of a user; of no user for None or an empty name. A closing connection keeps its user."""
    cdef HubBase hub = connection.hub
    cdef Room room
    if connection.status >= IS_CLOSING:
        return
    if connection.room_table is None:
        if not user:
            return
        connection.room_table = {}
    if not user:
        room = connection.room_table.pop(USER, None)
        if room is not None:
            remove_member(connection, room)
            note_user(connection)
        return
    room = hub.user_table.get(user)
    if room is None:
        room = open_user(hub, user)
    add_member(connection, USER, room)
    note_user(connection)


cdef object note_user(ConnectionCore connection):
    """Tell the presences of the connection's rooms that its user has changed."""
    cdef HubBase hub = connection.hub
    cdef Room room
    if hub.presences is None:
        return
    for room in list(connection.room_table.values()):
        if room.has_presence:
            hub.presences.user_changed(room.name, connection.connection_id, user_of(connection))


cdef Room open_user(HubBase hub, str user):
    """Make the room of a user, without members."""
    cdef Room room = Room(user, hub.user_table, user_channel(user) if hub.cluster is not None else None)
    room.conflation_key = hub.conflation_keys.next_number()
    return room


# Settings

cdef object configure_rooms(HubBase hub, str pattern, object config):
    """Set the RoomConfig of the rooms that match a pattern, now and each time that one is opened."""
    cdef Room room
    hub.room_configs.set(pattern, config)
    hub.has_room_configs = True
    hub.history_senders.clear()
    if config.history is not None:
        hub._keeps_histories = True
    if config.presence is not None:
        hub._keeps_presences = True
    for room in list(hub.room_table.values()):
        # A more specific pattern may have other settings for the room.
        if hub.room_configs.pattern_of(room.name) == pattern:
            had_history = room.has_history
            had_presence = room.has_presence
            change_settings(hub, room, config)
            if hub.presences is not None and room.has_presence != had_presence:
                note_members(hub, room)
            if hub.histories is not None and (had_history or room.has_history):
                hub.histories.settings_changed(room.name)
    for name in list(hub.history_cursors):
        # Clients come back to the room, which has no member.
        if name not in hub.room_table and hub.room_configs.pattern_of(name) == pattern:
            hub.histories.settings_changed(name)


cdef object note_members(HubBase hub, Room room):
    """Tell the presences of the members that the room has already. They leave if the room has no presence now."""
    cdef ConnectionCore connection
    for connection in list(room.members.values()):
        if room.has_presence:
            hub.presences.joined(room.name, connection.connection_id, user_of(connection))
        else:
            hub.presences.left(room.name, connection.connection_id)


cdef object change_settings(HubBase hub, Room room, object config):
    """Give an open room other settings."""
    cdef ConnectionCore connection
    if room.window is not None:
        # The room gets another window.
        for connection in room.members.values():
            desync(connection, room.window)
    apply_settings(hub, room, config)


cdef object apply_settings(HubBase hub, Room room, object config):
    """Take the settings from a RoomConfig. No member may be in sync with the room's former window."""
    room.policy = policy_from_name(config.slow_consumer)
    room.window = new_window(hub, config)
    room.has_history = config.history is not None
    room.has_presence = config.presence is not None


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
