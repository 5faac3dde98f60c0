"""The queue of those who wait for replies of a Redis engine. redis_due_replies.pyx describes it."""

from cpython.object cimport PyObject
from libc.stddef cimport size_t


cdef enum DueKind:
    NOTHING_DUE
    COUNTED_REPLY
    STORED_REPLY
    KEPT_REPLY
    CALLED_REPLY


ctypedef struct DueReply:
    DueKind kind
    PyObject *head      # owned: bytes, or NULL if it is not a STORED_REPLY
    PyObject *envelope  # the same


cdef class DueReplies:
    cdef DueReply *entries   # owned: a ring, or NULL
    cdef size_t size         # of the ring: a power of two, or 0
    cdef size_t first        # the place of the first one
    cdef size_t count
    cdef object objects      # a deque: the tuples and functions of the KEPT_REPLY and CALLED_REPLY ones, in order
    cdef object next_object  # its popleft()

    cdef int add_counted(self) except -1
    cdef int add_stored(self, bytes head, bytes envelope) except -1
    cdef int add_object(self, DueKind kind, object waiting) except -1
    cdef DueKind first_kind(self) noexcept
    cdef void skip(self) noexcept
    cdef tuple take_stored(self)
    cdef object take_object(self)
    cdef int add(self, DueKind kind, PyObject *head, PyObject *envelope) except -1
    cdef int grow(self) except -1
