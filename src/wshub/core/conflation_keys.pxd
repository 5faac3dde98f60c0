from libc.stdint cimport uint64_t


# The namespaces of keys that belong to no room. A room's namespace is the number of its own key.
cdef enum:
    PRIVATE_KEYS  # messages to one connection
    HUB_KEYS      # messages to all connections


cdef class ConflationKeys:
    cdef uint64_t last          # the highest number given out; 0 means that a message has no key
    cdef dict numbers           # (namespace, name): number
    cdef Py_ssize_t characters  # of all these names

    cdef uint64_t next_number(self) noexcept
    cdef uint64_t number_of_name(self, uint64_t namespace, object name) except? 0xFFFFFFFFFFFFFFFF
    cdef object clear(self)


cdef int check_conflation_key(object key) except -1


cdef inline uint64_t intern_key(ConflationKeys keys, uint64_t namespace, object name) except? 0xFFFFFFFFFFFFFFFF:
    """Return the number that stands for a conflation key; 0 if there is no key."""
    if name is None:
        return 0
    return keys.number_of_name(namespace, name)
