from libc.stdint cimport uint8_t, uint64_t

from wshub.brokers.envelope cimport EPOCH_LENGTH, MARK_LENGTH, StoredHead


cdef class HistoryCursor:
    cdef readonly str name           # of the room
    cdef readonly uint64_t offset    # of the last message that members have been sent
    cdef readonly str epoch          # of that message; empty: not known
    cdef uint8_t letters[EPOCH_LENGTH]  # of the epoch
    cdef bint has_mark               # `mark_bytes` are known
    cdef uint8_t mark_bytes[MARK_LENGTH]  # of the envelope at `offset`
    cdef public bint passes_on       # what follows goes to the members at once

    cdef bint follows(self, const StoredHead *head) noexcept
    cdef void advance(self, const StoredHead *head, const uint8_t *mark) noexcept
