"""The numbers of the last envelopes of nodes on one channel. node_numbers.pyx says what they are for."""

from libc.stdint cimport uint32_t, uint64_t


cdef struct NodeNumber:
    uint64_t node   # 0: the entry is free
    uint32_t number


cdef struct NodeNumbers:
    # All zeros for none. forget_numbers() frees the entries.
    NodeNumber *entries  # owned
    uint32_t size        # 0, or a power of two
    uint32_t used


cdef bint advance_number(NodeNumbers *numbers, uint64_t node, uint32_t number) noexcept
cdef void forget_numbers(NodeNumbers *numbers) noexcept
