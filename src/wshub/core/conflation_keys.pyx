# cython: language_level=3
"""Conflation keys: under the policy "latest", a message replaces the queued message with the same key.

An application names a key by a string. A queued message carries a number in its place. Two keys are the same if they
have the same name and the same namespace: a connection, a room, or the hub.
"""

from cpython.unicode cimport PyUnicode_FromObject
from libc.stdint cimport uint64_t

from wshub.errors import MisuseError

# The most names, and characters of names, to remember. After that all names are forgotten, and get new numbers. A
# message that is queued under an old number is no longer replaced, which does no other harm.
cdef enum:
    MAX_KEYS = 65536
    MAX_CHARACTERS = 1 << 22


cdef int check_conflation_key(object key) except -1:
    """Raise MisuseError if a value cannot be the key of a message."""
    if key is not None and not isinstance(key, str):
        raise MisuseError(f"key must be a str or None, not {type(key).__name__}")
    return 0


cdef class ConflationKeys:
    """The numbers that stand for the conflation keys of a hub."""

    def __cinit__(self):
        self.last = HUB_KEYS
        self.numbers = {}

    cdef uint64_t next_number(self) noexcept:
        """Return a number that no other key, and no room, has had."""
        self.last += 1
        return self.last

    cdef uint64_t number_of_name(self, uint64_t namespace, object name) except? 0xFFFFFFFFFFFFFFFF:
        """Return the number of a key, the same each time until the names are forgotten."""
        # An exact str: an object of a subclass may hold more than the name.
        cdef str exact = PyUnicode_FromObject(name)
        cdef tuple place = (namespace, exact)
        number = self.numbers.get(place)
        if number is None:
            if len(self.numbers) >= MAX_KEYS or self.characters + len(exact) > MAX_CHARACTERS:
                self.clear()
            self.numbers[place] = number = self.next_number()
            self.characters += len(exact)
        return number

    cdef object clear(self):
        """Forget all names. Numbers are not used again."""
        self.numbers.clear()
        self.characters = 0
