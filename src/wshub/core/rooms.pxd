from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport uint8_t, uint64_t

from wshub.core.connection_state cimport ConnectionCore
from wshub.core.hub_state cimport HubBase
from wshub.core.node_numbers cimport NodeNumbers
from wshub.core.shared_window cimport SharedWindow
from wshub.protocol.frame_buffer cimport DeliveryCounters


cdef class Room:
    cdef readonly str name
    cdef dict table                # of the hub, which has the room by its name: room_table or user_table
    cdef readonly str channel      # of the broker, for messages to the room from other nodes; None without a broker
    cdef dict members              # id: Connection
    cdef dict walked               # the members that a message is being queued for: do not add to that dict; or None
    cdef SharedWindow window       # or None
    cdef DeliveryCounters *delivery_counters              # owns a reference; counts what is sent to the room
    cdef NodeNumbers last_numbers  # owned: of the messages from other nodes
    cdef uint64_t conflation_key   # of its messages without a key; also the namespace of the keys of the others
    cdef uint8_t policy            # for slow consumers; may be INHERITED
    cdef bint has_presence         # the hub's presences know its members
    cdef bint has_history          # messages are stored, and go to the members when they come back


cdef str room_name_from(object name)
cdef str user_name_from(object user)


cdef inline str room_name(object name):
    """Return the name of a room as an exact str, whose hash no subclass can change. Raise TypeError if it is no str."""
    if PyUnicode_CheckExact(name):
        return <str>name
    return room_name_from(name)


cdef inline str user_name(object user):
    """Return the name of a user as an exact str, or None. Raise TypeError if it is neither."""
    if user is None or PyUnicode_CheckExact(user):
        return user
    return user_name_from(user)


cdef inline void sync_to(ConnectionCore connection, uint64_t generation) noexcept:
    """Record that the peer is in sync with the shared window of this generation. Generation 0 means with none."""
    if connection.generation != generation:
        connection.generation = generation
        connection.hub.window_changes += 1


cdef inline void desync(ConnectionCore connection, SharedWindow window) noexcept:
    """Record that the peer misses a message that was compressed with this window."""
    if connection.generation == window.generation:
        sync_to(connection, 0)


cdef Room find_room(HubBase hub, object name)
cdef bint join_room(ConnectionCore connection, str name) except -1
cdef object leave_room(ConnectionCore connection, str name)
cdef void leave_all_rooms(ConnectionCore connection) noexcept
cdef object names_of_rooms(ConnectionCore connection)
cdef str user_of(ConnectionCore connection)
cdef object set_user(ConnectionCore connection, str user)
cdef object note_members(HubBase hub, Room room)
cdef object configure_rooms(HubBase hub, str pattern, object config)
cdef void restart_window(HubBase hub, SharedWindow window) noexcept
