# cython: language_level=3
"""What a connection and its hub know of each other, and both of rooms and handlers."""


cdef class HandlerTable:
    def __init__(self, handler, endpoint=False):
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
