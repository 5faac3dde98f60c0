# cython: language_level=3
"""The numbers of the last envelopes of nodes on one channel, so that none is taken after a later one.

A node numbers its envelopes in the order in which it sends them. When its connection to an engine stalls, it makes
another one, and its next envelopes overtake those that are still on their way through the first one.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t
from libc.string cimport memset

cdef enum:
    SMALLEST_SIZE = 4
    # With more nodes, all are forgotten: then an envelope that is late may pass.
    LARGEST_SIZE = 1024


cdef bint advance_number(NodeNumbers *numbers, uint64_t node, uint32_t number) noexcept:
    """Take the number of an envelope that has arrived. Return False if a later one of its node has arrived before.

    A node is any number but 0. Numbers are modulo 2**32. It needs the GIL.
    """
    cdef NodeNumber *entry = find_entry(numbers, node)
    if entry != NULL and entry.node == node:
        if <int32_t>(number - entry.number) <= 0:
            return False
        entry.number = number
        return True
    if 4 * (numbers.used + 1) > 3 * numbers.size:
        if not grow(numbers):
            # There is no memory: a late envelope is better than none.
            return True
        entry = find_entry(numbers, node)
    entry.node = node
    entry.number = number
    numbers.used += 1
    return True


cdef void forget_numbers(NodeNumbers *numbers) noexcept:
    """Free the entries."""
    PyMem_Free(numbers.entries)
    memset(numbers, 0, sizeof(NodeNumbers))


cdef NodeNumber *find_entry(NodeNumbers *numbers, uint64_t node) noexcept:
    """Return the entry of a node, or the free one in which it belongs; NULL if there are no entries."""
    cdef uint32_t place
    if numbers.size == 0:
        return NULL
    # Ids of nodes are random, so their low bits spread them.
    place = <uint32_t>node & (numbers.size - 1)
    while numbers.entries[place].node != node and numbers.entries[place].node != 0:
        place = (place + 1) & (numbers.size - 1)
    return &numbers.entries[place]


cdef bint grow(NodeNumbers *numbers) noexcept:
    """Make space for another node. Return False if there is no memory."""
    cdef NodeNumbers larger
    cdef NodeNumber *entry
    cdef uint32_t place
    if numbers.size == LARGEST_SIZE:
        memset(numbers.entries, 0, LARGEST_SIZE * sizeof(NodeNumber))
        numbers.used = 0
        return True
    larger.size = 2 * numbers.size if numbers.size else SMALLEST_SIZE
    larger.used = numbers.used
    larger.entries = <NodeNumber *>PyMem_Malloc(larger.size * sizeof(NodeNumber))
    if larger.entries == NULL:
        return False
    memset(larger.entries, 0, larger.size * sizeof(NodeNumber))
    for place in range(numbers.size):
        if numbers.entries[place].node:
            entry = find_entry(&larger, numbers.entries[place].node)
            entry[0] = numbers.entries[place]
    forget_numbers(numbers)
    numbers[0] = larger
    return True
