# cython: language_level=3
"""The state that the connections of a hub share."""

cdef class HubBase:
    """The state of a hub that its connections use."""

    cdef object forget(self, object connection_id, object address_bucket):
        """Remove the connection with that id, which is closed, from the hub."""

    cdef bint bind_to_send(self) except -1:
        """Bind a hub that has no loop to the running loop, if it has a broker. Return whether it has a loop now."""
        return False
