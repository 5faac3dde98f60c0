# cython: language_level=3
"""The pair of memory BIOs that all TLS connections of a reactor share.

A connection uses the pair for one step: records that arrived, or bytes to send. Both BIOs are empty before the step and
after it, so no byte of one connection can reach another. ``check_empty()`` holds that, in builds for debugging.

The functions of ``ssl`` release the GIL, and they may run code of the application: a callback of the SSLContext, a
signal handler, a finalizer. While ``busy`` is set, that code must not use the pair.
"""

from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

import ssl

cdef extern from "Python.h":
    object PyObject_Vectorcall(object function, PyObject **arguments, size_t count, PyObject *keywords)
    bint PyErr_ExceptionMatches(object kind) noexcept
    void PyErr_Clear() noexcept
    void Py_FatalError(const char *message) noexcept

cdef extern from "calls.h":
    Py_ssize_t call "wshub_call"(object function, PyObject **arguments, size_t count) noexcept
    Py_ssize_t call_method "wshub_call_method"(object thing, object name) noexcept
    object take_exception "wshub_take_exception"()

cdef extern from *:
    """
    #ifdef WSHUB_CHECKS
    #define wshub_checks 1
    #else
    #define wshub_checks 0
    #endif
    """
    const bint CHECKS "wshub_checks"

cdef enum:
    DISCARDED_AT_ONCE = 256

cdef object ZERO = 0
cdef object WantRead = ssl.SSLWantReadError
cdef object ZeroReturn = ssl.SSLZeroReturnError

# If a class of the application overrides one of these, its own method is called.
cdef tuple OVERRIDABLE = ("read", "write", "do_handshake", "unwrap")


cdef class Window:
    """Memory that a function of ``ssl`` reads or writes: a buffer object whose place changes with each call."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.obj = self
        view.buf = self.start
        view.len = self.length
        view.itemsize = 1
        view.readonly = False
        view.ndim = 1
        # Bytes in one row need no description.
        view.format = NULL
        view.shape = &view.len if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL


cdef class BioPair:
    """One pair of memory BIOs, and the functions of ``ssl`` that use it. No method but ``take_output()`` raises."""

    def __cinit__(self):
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.window = Window.__new__(Window)
        self.read_bio = ssl.MemoryBIO.read
        self.write_bio = ssl.MemoryBIO.write

    def wrap(self, context, *, bint server_side, server_hostname=None):
        """Return the SSLObject of a new connection, and the object whose methods it calls.

        That object is found through a private attribute. A class of the application's that overrides a method, or an
        implementation without the attribute, keeps its own methods.
        """
        wrapped = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )
        session = getattr(wrapped, "_sslobj", None)
        kind = type(wrapped)
        if session is None or any([getattr(kind, name) is not getattr(ssl.SSLObject, name) for name in OVERRIDABLE]):
            return wrapped, OwnMethods(wrapped)
        if self.session_type is None:
            self.session_type = type(session)
            self.read_session = self.session_type.read
            self.write_session = self.session_type.write
        return wrapped, session

    cdef bint feed(self, const uint8_t *records, size_t length) noexcept:
        """Put whole records into the pair. Return False, with `failure`, if there is no memory."""
        cdef PyObject *arguments[2]
        cdef Py_ssize_t result
        if not self.begin_step():
            return False
        arguments[0] = <PyObject *>self.incoming
        arguments[1] = <PyObject *>self.window
        self.window.start = <uint8_t *>records
        self.window.length = length
        self.busy = True
        result = call(self.write_bio, arguments, 2)
        self.busy = False
        if result < 0:
            self.failure = take_exception()
            return False
        return True

    cdef Py_ssize_t read(self, object session, uint8_t *target, size_t space) noexcept:
        """Decrypt the next record into `target`, which has space for it. Return its length, or what the enum names."""
        cdef PyObject *arguments[3]
        cdef Py_ssize_t length
        arguments[0] = <PyObject *>session
        # With a buffer, a size of 0 asks for as much as fits.
        arguments[1] = <PyObject *>ZERO
        arguments[2] = <PyObject *>self.window
        self.window.start = target
        self.window.length = space
        self.busy = True
        length = call(self.read_session if type(session) is self.session_type else type(session).read, arguments, 3)
        self.busy = False
        return length if length >= 0 else self.outcome_of_exception()

    cdef bint write(self, object session, const uint8_t *data, size_t length) noexcept:
        """Encrypt the bytes. Return False, with `failure`, if the connection must end."""
        cdef PyObject *arguments[2]
        cdef Py_ssize_t written
        if not self.begin_step():
            return False
        arguments[0] = <PyObject *>session
        arguments[1] = <PyObject *>self.window
        self.window.start = <uint8_t *>data
        self.window.length = length
        self.busy = True
        written = call(self.write_session if type(session) is self.session_type else type(session).write, arguments, 2)
        self.busy = False
        if written < 0:
            self.failure = take_exception()
        return written == <Py_ssize_t>length

    cdef Py_ssize_t handshake(self, object session) noexcept:
        """Take a step of the handshake. Return 1 when it is done, WANTS_READ or FAILED."""
        cdef Py_ssize_t result
        if self.needs_discard and not self.begin_step():
            return FAILED
        self.busy = True
        result = call_method(session, "do_handshake")
        self.busy = False
        return 1 if result >= 0 else self.outcome_of_exception()

    cdef Py_ssize_t outcome_of_exception(self) noexcept:
        """Clear the exception of a call. Return what the enum names, and keep the exception if it is a failure."""
        if PyErr_ExceptionMatches(WantRead):
            PyErr_Clear()
            return WANTS_READ
        if PyErr_ExceptionMatches(ZeroReturn):
            PyErr_Clear()
            return CLOSED
        self.failure = take_exception()
        return FAILED

    cdef void send_close(self, object session) noexcept:
        """Put close_notify into the output, if it can be made."""
        cdef Py_ssize_t result
        if not self.begin_step():
            return
        self.busy = True
        result = call_method(session, "shutdown")
        self.busy = False
        if result >= 0:
            return
        if PyErr_ExceptionMatches(Exception):
            # The peer's close_notify has not arrived, or the connection has failed.
            PyErr_Clear()
        else:
            self.failure = take_exception()

    cdef bytes take_output(self):
        """Return the records that are to be sent. Raise MemoryError."""
        cdef PyObject *arguments[1]
        if self.needs_discard:
            # They belong to the connection whose step failed.
            if not self.discard():
                raise MemoryError
            return b""
        arguments[0] = <PyObject *>self.outgoing
        return PyObject_Vectorcall(self.read_bio, arguments, 1, NULL)

    cdef bint begin_step(self) noexcept:
        """Return False, with `failure`, if the pair is not empty, and cannot be emptied."""
        self.failure = None
        if self.needs_discard and not self.discard():
            self.failure = MemoryError()
            return False
        return True

    cdef bint discard(self) noexcept:
        """Empty both BIOs after a step that has failed. Return False if there is no memory for that yet."""
        self.needs_discard = True
        for bio in (self.incoming, self.outgoing):
            try:
                while bio.pending:
                    # A small piece needs the least memory.
                    bio.read(DISCARDED_AT_ONCE)
            except MemoryError:
                return False
        self.needs_discard = False
        return True

    cdef size_t input_left(self) noexcept:
        """Return how many bytes of the input were not used."""
        return self.incoming.pending

    @property
    def pending(self):
        """The number of bytes in both BIOs: 0 between two steps."""
        return self.incoming.pending + self.outgoing.pending

    cdef void check_empty(self) noexcept:
        """End the process if a step has left bytes in the pair, in a build for debugging."""
        if CHECKS and not self.needs_discard and self.pending:
            Py_FatalError("a step of a TLS connection has left bytes in the shared pair")


class OwnMethods:
    """The methods of an SSLObject whose class is the application's own, as a session has them."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    def read(self, size, buffer):
        return self._wrapped.read(size, buffer)

    def write(self, data):
        return self._wrapped.write(data)

    def do_handshake(self):
        self._wrapped.do_handshake()

    def shutdown(self):
        self._wrapped.unwrap()

    def version(self):
        return self._wrapped.version()


def ssl_object_of(session):
    """Return an SSLObject for a session that ``BioPair.wrap()`` has returned. Its own one may be gone."""
    if isinstance(session, OwnMethods):
        return session._wrapped
    found = ssl.SSLObject.__new__(ssl.SSLObject)
    found._sslobj = session
    return found
