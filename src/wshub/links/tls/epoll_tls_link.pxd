from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t

from wshub.links.tls.epoll_tls_output cimport EpollTlsOutput, TlsBuffers


cdef extern from "records.h" nogil:
    ctypedef struct Records "wshub_records":
        size_t length
        size_t records
        size_t needed
        bint handshake
        bint invalid

    Records find_records "wshub_find_records"(const uint8_t *data, size_t length, size_t most) noexcept


cdef class EpollTls(TlsBuffers):
    """The pair and the buffers of a reactor, and the handshakes that wait for a step."""

    cdef object waiting      # deque of the links that wait for a step of their handshake

    cdef EpollTlsLink add(self, int descriptor, object settings, bint is_client, object server_hostname)
    cdef void wait_for_step(self, EpollTlsLink link) noexcept
    cdef int take_steps(self) except -1


cdef class EpollTlsLink(EpollTlsOutput):
    cdef object settings         # a ServerTls, or the SSLContext of a client
    cdef object server_hostname  # of a client: the name that the certificate must have
    cdef object ssl_object       # the SSLObject, for the callbacks of its context; or None
    cdef uint8_t *partial        # owned: the start of a record that has not arrived whole; or NULL
    cdef readonly uint32_t partial_length
    cdef uint32_t partial_size   # of the whole record, as far as it is known
    cdef uint32_t handshake_bytes  # received in the handshake
    cdef uint8_t is_client
    cdef uint8_t is_tls13
    cdef uint8_t waits_for_step  # in the deque of links that wait
    cdef uint8_t close_seen      # close_notify has arrived; `ended` says that the receiver was told
    cdef uint8_t reads_little    # the last read had very many records

    cdef Py_ssize_t receive(self) noexcept
    cdef size_t discard_received(self) noexcept
    cdef void on_end_of_stream(self) noexcept
    cdef bint keep_rest(self, const uint8_t *data, size_t length) noexcept
    cdef void drop_partial(self) noexcept
    cdef void decrypt(self, const uint8_t *data, size_t length) noexcept
    cdef void deliver(self, size_t length) noexcept
    cdef void notify_close(self) noexcept
    cdef bint handshake_step(self) noexcept
    cdef bint start_session(self) noexcept
    cdef bint answer_http(self, size_t length) noexcept
    cdef void finish_handshake(self) noexcept
