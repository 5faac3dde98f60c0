"""The stream of another worker, as records. workers_receiving.pyx says more."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.links.link cimport Link, Receiver


# Why received records wait.
cdef enum:
    BUDGET_SPENT = 1   # until the next iteration of the loop
    HELD = 2           # until the subclass unblocks them
    NO_LINK = 4        # until there is a link


cdef class RecordReceiver(Receiver):
    cdef readonly bint ended    # this side has ended the connection, or it was lost
    cdef object loop
    cdef Link link              # None before there is one, and once it is lost
    cdef uint8_t *unread        # owned; or NULL
    cdef size_t unread_start    # of the bytes that were not handled yet
    cdef size_t unread_end
    cdef size_t unread_capacity
    cdef size_t longest         # bytes of the longest record that is allowed
    cdef uint8_t blocks         # why records wait
    cdef bint handles_unread    # a record of `unread` is being handled: its memory must stay
    cdef bint has_heard         # something has arrived since the last take_heard()

    cdef void record_received(self, uint8_t kind, const uint8_t *body, size_t length) noexcept
    cdef void fail(self, str reason) noexcept
    cdef int keep(self, const uint8_t *data, size_t length) noexcept
    cdef int reserve(self, size_t length) noexcept
    cdef void free_unread(self) noexcept
    cdef void handle_unread(self) noexcept
    cdef void handle_all_unread(self) noexcept
    cdef void unblock(self, uint8_t block) noexcept
    cdef size_t handle(self, const uint8_t *data, size_t length) noexcept
    cdef void wait_for_next_iteration(self) noexcept
