# cython: language_level=3
"""What a connection and its hub know of each other, and both of rooms and handlers."""

from libc.stddef cimport size_t
from libc.stdint cimport SIZE_MAX

from wshub.hub.shared_window cimport SharedWindow


cdef class HandlerTable:
    def __init__(self, handler, endpoint=False, receives=False):
        self.receives = endpoint or receives
        self.handler = handler
        self.on_open = handler.on_open
        self.on_message = handler.on_message
        self.on_close = handler.on_close
        self.on_error = handler.on_error
        self.on_ping = handler.on_ping
        self.on_pong = handler.on_pong
        self.endpoint = endpoint


cdef class Room:
    """The connections that a message to a room reaches."""

    def __init__(self, name):
        self.name = name
        self.members = {}


cdef class HubBase:
    cdef object forget(self, object key):
        """The connection with that id is closed. Nothing of the hub refers to it from here on."""

    cdef size_t threshold(self, object compress) except? 1:
        """From how many octets on a message is compressed, for what the application says of it: True, False or None."""
        if compress is None:
            return self.compression_threshold
        return 1 if compress else SIZE_MAX

    cdef Room open_room(self, str name):
        """Makes a room that nobody is in yet, with the settings that it was given."""
        cdef Room room = Room(name)
        config = self.room_configs.get(name)
        if config is not None:
            room.window = self.window_of(config)
        self.room_table[name] = room
        return room

    cdef SharedWindow window_of(self, object config):
        """The window that a room with that RoomConfig begins with, or None."""
        if config.compression != "shared":
            return None
        window = SharedWindow(self.pool, config.restart_interval)
        self.restart(window)
        return window

    cdef void restart(self, SharedWindow window) noexcept:
        """Nobody is in step with the window from here on, until the first message."""
        self.last_generation += 1
        self.window_changes += 1
        window.restart(self.last_generation)
