from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.tls.bio_pair cimport BioPair


cdef enum:
    # Bytes that one read receives, with the start of a record that was there before.
    RECEIVE_SIZE = 65536


cdef class TlsBuffers:
    cdef EpollLinks links
    cdef BioPair pair
    cdef uint8_t *input      # owned: records, as they arrive
    cdef uint8_t *plain      # owned: what they hold; in use until the receiver returns
    cdef uint8_t *scratch    # owned: short frames are copied together here before they are sealed


cdef class EpollTlsOutput(EpollLink):
    cdef TlsBuffers tls          # of the reactor
    cdef readonly object session  # encrypts and decrypts; None before the first byte, and after close_notify
    cdef object on_established   # called once with None, or with the exception that the handshake failed with; or None
    cdef readonly bytes ciphertext  # records that the kernel has not taken; or None
    cdef size_t sealed           # bytes of the queue that are in `ciphertext`: their frames stay until it has left
    cdef int64_t ciphertext_sent   # bytes that the kernel has taken, ever
    cdef uint8_t established     # the handshake is over

    cdef bint seal(self) noexcept
    cdef bint send_ciphertext(self) noexcept
    cdef bint send_output(self) noexcept
    cdef bytes end_step(self)
    cdef void fail(self, bytes alert) noexcept
    cdef void tell_established(self, object error) noexcept
