# cython: language_level=3
"""The queue of those who wait for replies of a Redis engine, in the order of the commands."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_INCREF, Py_XDECREF

from collections import deque

cdef enum:
    SMALLEST_SIZE = 64


cdef class DueReplies:
    """A queue with an item for each reply that is due:

    - ``COUNTED_REPLY``: an envelope. The reply is only counted.
    - ``STORED_REPLY``: an envelope to be stored. The reply is only counted, but a refused call is needed again.
    - ``KEPT_REPLY``: a tuple. The reply is only counted, but the tuple has what is needed if it is an error.
    - ``CALLED_REPLY``: a function that takes the reply.

    Many envelopes may wait, so most are kept without a Python object for each. The ring refers to nothing but bytes,
    which are in no reference cycle: the garbage collector need not see them.
    """

    def __cinit__(self):
        self.objects = deque()
        self.next_object = self.objects.popleft

    def __dealloc__(self):
        # The collector may have taken the objects already.
        cdef size_t place
        for place in range(self.count):
            release_bytes(self.entries[(self.first + place) & (self.size - 1)])
        PyMem_Free(self.entries)

    cdef int add_counted(self) except -1:
        """Append an envelope. Raise MemoryError, and change nothing, if there is no memory."""
        return self.add(COUNTED_REPLY, NULL, NULL)

    cdef int add_stored(self, bytes head, bytes envelope) except -1:
        """Append a call: an envelope, and the command in front of it. Raise as add_counted()."""
        return self.add(STORED_REPLY, <PyObject *>head, <PyObject *>envelope)

    cdef int add_object(self, DueKind kind, object waiting) except -1:
        """Append a tuple, for KEPT_REPLY, or a function, for CALLED_REPLY. Raise as add_counted()."""
        self.add(kind, NULL, NULL)
        try:
            self.objects.append(waiting)
        except MemoryError:
            self.count -= 1
            raise
        return 0

    cdef DueKind first_kind(self) noexcept:
        """Return what the next reply is for, or NOTHING_DUE."""
        return self.entries[self.first].kind if self.count > 0 else NOTHING_DUE

    cdef void skip(self) noexcept:
        """Remove the first one."""
        cdef DueReply reply = self.entries[self.first]
        self.first = (self.first + 1) & (self.size - 1)
        self.count -= 1
        if reply.kind == KEPT_REPLY or reply.kind == CALLED_REPLY:
            self.next_object()
        release_bytes(reply)

    cdef tuple take_stored(self):
        """Remove the first one, a call. Return its command and its envelope."""
        cdef DueReply *reply = &self.entries[self.first]
        call = <bytes>reply.head, <bytes>reply.envelope
        self.skip()
        return call

    cdef object take_object(self):
        """Remove the first one, a tuple or a function, and return it."""
        waiting = self.objects[0]
        self.skip()
        return waiting

    cdef int add(self, DueKind kind, PyObject *head, PyObject *envelope) except -1:
        cdef DueReply *reply
        if self.count == self.size:
            self.grow()
        reply = &self.entries[(self.first + self.count) & (self.size - 1)]
        reply.kind = kind
        reply.head = head
        reply.envelope = envelope
        if head != NULL:
            Py_INCREF(<object>head)
            Py_INCREF(<object>envelope)
        self.count += 1
        return 0

    cdef int grow(self) except -1:
        """Double the ring, which is full."""
        cdef size_t size = max(2 * self.size, <size_t>SMALLEST_SIZE)
        cdef size_t place
        cdef DueReply *entries
        if size > <size_t>PY_SSIZE_T_MAX // sizeof(DueReply):
            raise MemoryError
        entries = <DueReply *>PyMem_Malloc(size * sizeof(DueReply))
        if entries == NULL:
            raise MemoryError
        for place in range(self.count):
            entries[place] = self.entries[(self.first + place) & (self.size - 1)]
        PyMem_Free(self.entries)
        self.entries = entries
        self.size = size
        self.first = 0
        return 0


cdef void release_bytes(DueReply reply) noexcept:
    """Give back the references of an item that leaves the ring."""
    Py_XDECREF(reply.head)
    Py_XDECREF(reply.envelope)
