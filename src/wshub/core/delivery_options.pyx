# cython: language_level=3
"""The names of the policies for slow consumers."""

from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_FromObject
from libc.stdint cimport uint8_t

from wshub.errors import MisuseError

cdef dict POLICIES = {
    "close": CLOSE_CONNECTION,
    "drop_newest": DROP_NEWEST,
    "drop_oldest": DROP_OLDEST,
    "latest": LATEST,
}


cdef uint8_t policy_from_name(object name) except? 255:
    """Return the Policy with that name; INHERITED for None. Raise MisuseError for any other name."""
    if name is None:
        return INHERITED
    if not PyUnicode_CheckExact(name) and isinstance(name, str):
        name = PyUnicode_FromObject(name)
    try:
        return POLICIES[name]
    except (KeyError, TypeError):
        raise MisuseError(
            f'slow_consumer must be "close", "drop_newest", "drop_oldest" or "latest", not {name!r}'
        ) from None
