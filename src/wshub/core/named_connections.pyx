# cython: language_level=3
"""The connections and users that the arguments of a hub's methods name."""

from cpython.number cimport PyIndex_Check, PyNumber_Index

from wshub.core.connection cimport Connection
from wshub.core.hub_state cimport HubBase
from wshub.core.rooms cimport user_name, user_of

from wshub.errors import MisuseError


cdef object check_connection_id(str name, str what, object value):
    """Return the id of a connection as an int. Raise MisuseError if Python does not take the value for an integer."""
    if isinstance(value, bool) or not PyIndex_Check(value):
        raise MisuseError(f"{name} must be {what}, not {value!r}")
    return PyNumber_Index(value)


cdef Connection connection_of(HubBase hub, object exclude):
    """Return the connection of this hub for a Connection or an id, or None."""
    if exclude is None:
        return None
    if isinstance(exclude, Connection):
        return exclude if (<Connection>exclude).hub is hub else None
    connection_id = check_connection_id("exclude", "a Connection or the id of one, an int", exclude)
    return hub.connection_table.get(connection_id)


cdef str publisher_name(object publisher):
    """Return the name of the user who publishes a message; None if that is not known."""
    if isinstance(publisher, Connection):
        return user_of(<Connection>publisher)
    return user_name(publisher)
