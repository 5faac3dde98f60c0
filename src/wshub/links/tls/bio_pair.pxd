from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef enum:
    # Results of BioPair.read() and BioPair.handshake(), beside the number of bytes that were read.
    CLOSED = 0        # the peer has sent close_notify
    WANTS_READ = -1   # nothing more can be done before more records arrive
    FAILED = -2       # the connection must end; BioPair.failure says why


cdef class Window:
    """Memory that a function of ``ssl`` reads or writes: a buffer object whose place changes with each call."""

    cdef uint8_t *start      # borrowed, for the time of one call
    cdef Py_ssize_t length


cdef class BioPair:
    cdef object incoming     # ssl.MemoryBIO: records that have arrived
    cdef object outgoing     # ssl.MemoryBIO: records that are to be sent
    cdef Window window
    cdef object failure      # the exception that made the last call fail; None if it did not
    cdef bint busy           # a function of `ssl` runs, and may call code of the application
    cdef bint needs_discard  # a step has failed, and there was no memory to empty the pair
    cdef object read_bio     # the functions, looked up once
    cdef object write_bio
    cdef object session_type
    cdef object read_session
    cdef object write_session

    cdef bint feed(self, const uint8_t *records, size_t length) noexcept
    cdef Py_ssize_t read(self, object session, uint8_t *target, size_t space) noexcept
    cdef bint write(self, object session, const uint8_t *data, size_t length) noexcept
    cdef Py_ssize_t handshake(self, object session) noexcept
    cdef Py_ssize_t outcome_of_exception(self) noexcept
    cdef void send_close(self, object session) noexcept
    cdef bytes take_output(self)
    cdef bint begin_step(self) noexcept
    cdef bint discard(self) noexcept
    cdef size_t input_left(self) noexcept
    cdef void check_empty(self) noexcept
