# cython: language_level=3
"""The state that the connections of a hub share."""

cdef class HubBase:
    """The state of a hub that its connections use."""

    cdef object forget(self, object key, object address_key):
        """Remove the connection with that id, which is closed, from the hub."""
