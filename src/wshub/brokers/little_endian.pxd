"""Little-endian numbers in the bytes that nodes send to one another. No alignment is needed."""

from libc.stdint cimport uint8_t, uint64_t


cdef inline uint64_t read_number(const uint8_t *data, int size) noexcept:
    """Return the number in so many bytes, 8 at most."""
    cdef uint64_t number = 0
    cdef int index
    for index in range(size):
        number |= <uint64_t>data[index] << (8 * index)
    return number


cdef inline void write_number(uint8_t *data, int size, uint64_t number) noexcept:
    """Write the low bytes of a number, 8 at most."""
    cdef int index
    for index in range(size):
        data[index] = <uint8_t>(number >> (8 * index))
