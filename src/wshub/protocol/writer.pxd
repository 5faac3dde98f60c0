from libc.stdint cimport uint8_t

from wshub.protocol.frame_buffer cimport FrameBuffer


cdef class FrameWriter:
    cdef readonly object role
    cdef object random_bytes      # called with a number of bytes
    cdef bytes keys               # masking keys that are not used yet, from `next_key` on
    cdef Py_ssize_t next_key
    cdef bint masks
    cdef const uint8_t *take_key(self) except NULL
    cdef FrameBuffer *outgoing(self, FrameBuffer *frame) except NULL
    cdef bytes encode(self, FrameBuffer *frame)
