from libc.stdint cimport uint8_t, uint64_t

from wshub.brokers.envelope cimport EPOCH_LENGTH, StoredHead


cdef class HistoryCursor:
    cdef readonly str name           # of the room
    cdef readonly uint64_t offset    # of the last message that members have been sent
    cdef readonly str epoch          # of that message; empty: not known
    cdef uint8_t letters[EPOCH_LENGTH]  # of the epoch
    cdef public bint passes_on       # what follows goes to the members at once

    cdef bint follows(self, const StoredHead *head) noexcept
