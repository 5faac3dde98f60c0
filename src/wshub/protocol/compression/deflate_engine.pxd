from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef extern from "deflate_engine.h" nogil:
    ctypedef struct DeflateEngine "wshub_deflate_engine":
        void *(*create)(int level) noexcept
        void (*destroy)(void *state) noexcept
        size_t (*deflate)(
            void *state, const uint8_t *plain, size_t length, int window_bits, uint8_t *out, size_t space
        ) noexcept

    const char *ENGINE_NAME "WSHUB_DEFLATE_ENGINE"
