cdef class Queued:
    """The result of the methods that queue something."""


cdef Queued QUEUED  # the only one
