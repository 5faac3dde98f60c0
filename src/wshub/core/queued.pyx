# cython: language_level=3
"""The result of ``send`` and of the other methods that queue."""

cimport cython


@cython.final
cdef class Queued:
    """The result of ``send`` and of the other methods that queue: always the same object.

    The call has queued already. ``await`` on the object does nothing and gives None. The object is false, as None is.
    """

    def __await__(self):
        return iter(())

    def __bool__(self):
        return False

    def __repr__(self):
        return "<Queued>"


cdef Queued QUEUED = Queued()
