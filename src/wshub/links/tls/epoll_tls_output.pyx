# cython: language_level=3
"""How the TLS links of the epoll reactor send: frames are put side by side into records.

A message counts as delivered when the kernel has taken every record that was sealed together with its last byte. Until
then its frame stays in the queue, in its place.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EINTR, ENOMEM, EPROTO, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.link cimport (
    AT_REST,
    STALLED,
    TAKING,
    Link,
    Progress,
    queue_advance,
    queue_copy,
    queue_discard_after,
    queue_first,
    queue_is_empty,
    queue_pin,
)
from wshub.links.linux_sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, send, shutdown, ssize_t
from wshub.links.tls.bio_pair cimport BioPair
from wshub.protocol.frame_buffer cimport (
    DELIVERED,
    DROPPED_SLOW,
    FrameBuffer,
    frame_release,
    frame_retain,
    frame_wire,
    frame_wire_length,
)

import logging
import ssl

from wshub.links.failures import raise_from_loop

logger = logging.getLogger("wshub.server")

cdef enum:
    # Plain bytes of one record.
    RECORD = 16384
    # Plain bytes that are sealed, and given to the kernel, in one go. The link keeps the ciphertext that is not taken.
    BLOCK = 2 * RECORD
    # Answers to key updates that may wait for a peer that does not read.
    KEPT_OUTPUT = 131072


cdef class TlsBuffers:
    """The shared pair and the buffers of a reactor."""

    def __cinit__(self, EpollLinks links not None):
        self.links = links
        self.pair = BioPair()
        self.input = <uint8_t *>PyMem_RawMalloc(RECEIVE_SIZE)
        self.plain = <uint8_t *>PyMem_RawMalloc(RECEIVE_SIZE)
        self.scratch = <uint8_t *>PyMem_RawMalloc(BLOCK)
        if self.input == NULL or self.plain == NULL or self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_RawFree(self.input)
        PyMem_RawFree(self.plain)
        PyMem_RawFree(self.scratch)

    @property
    def pending(self):
        """The bytes in the shared pair: 0 between two steps."""
        return self.pair.pending


@cython.trashcan(True)
cdef class EpollTlsOutput(EpollLink):
    """The sending side of a TLS link."""

    cdef void send_queue(self) noexcept:
        cdef EpollLinks links = self.links
        cdef BioPair pair = self.tls.pair
        if pair.busy:
            # Code of the application runs in the middle of a step.
            if not self.dirty:
                links.mark_dirty(self)
            return
        while True:
            if self.ciphertext is not None and not self.send_ciphertext():
                return
            if queue_is_empty(&self.queue) or not self.established:
                break
            if not self.seal():
                return
        if not self.established:
            return
        if self.finishing:
            if self.session is not None:
                session, self.session = self.session, None
                pair.send_close(session)
                raise_from_loop(links.loop, pair.failure)
                if not self.send_output() or self.ciphertext is not None:
                    return
            if self.ended:
                links.on_lost(self, 0)
                return
            if not self.shut_down:
                self.shut_down = True
                shutdown(self.descriptor, SHUT_WR)
        if self.drain_requested:
            links.enqueue(links.pending_notifications, self)

    cdef bint seal(self) noexcept:
        """Encrypt the next bytes of the queue into `ciphertext`. Return False if the link has ended."""
        cdef BioPair pair = self.tls.pair
        cdef FrameBuffer *first = queue_first(&self.queue)
        cdef size_t rest = frame_wire_length(first) - self.queue.sent
        cdef size_t length
        cdef const uint8_t *start
        cdef bint sealed
        if rest >= RECORD:
            # A large frame is not copied. The rest of its last record comes with the frames behind it.
            start = frame_wire(first) + self.queue.sent
            length = min(rest, <size_t>BLOCK)
            if length < self.queue.queued_bytes:
                length -= length % RECORD
        else:
            start = self.tls.scratch
            length = queue_copy(&self.queue, self.tls.scratch, BLOCK)
        # Code of the application may run from here on, and drop what is queued.
        self.sealed = length
        queue_pin(&self.queue, length)
        frame_retain(first)
        sealed = pair.write(self.session, start, length)
        frame_release(first)
        if not sealed or self.closed:
            self.fail(self.end_step())
            return False
        try:
            self.ciphertext = pair.take_output()
        except MemoryError:
            pair.discard()
            self.links.on_lost(self, ENOMEM)
            return False
        pair.check_empty()
        return True

    cdef bint send_ciphertext(self) noexcept:
        """Send the records that wait. Return False if some are left, or the link has ended."""
        cdef EpollLinks links = self.links
        cdef size_t length = len(self.ciphertext)
        cdef ssize_t sent
        while True:
            sent = send(self.descriptor, <const char *>self.ciphertext, length, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent >= 0 or errno != EINTR:
                break
        if sent < 0:
            links.on_send_error(self, errno)
            return False
        links.bytes_sent += sent
        self.ciphertext_sent += sent
        if <size_t>sent < length:
            try:
                self.ciphertext = self.ciphertext[sent:]
            except MemoryError:
                links.on_lost(self, ENOMEM)
                return False
            links.on_would_block(self)
            return False
        self.ciphertext = None
        if self.sealed:
            length = self.sealed
            self.sealed = 0
            self.bytes_written += length
            self.counters.bytes_sent += length
            self.counters.messages.outcomes[DELIVERED] += queue_advance(&self.queue, length)
        return True

    cdef bint send_output(self) noexcept:
        """Send what OpenSSL itself has to say, behind the records that wait. Return False if the link has ended."""
        cdef BioPair pair = self.tls.pair
        cdef bytes output
        try:
            output = pair.take_output()
            if self.closed:
                return False
            if output:
                self.ciphertext = output if self.ciphertext is None else self.ciphertext + output
        except MemoryError:
            pair.discard()
            self.links.on_lost(self, ENOMEM)
            return False
        if self.ciphertext is None:
            return True
        if len(self.ciphertext) > KEPT_OUTPUT:
            self.links.on_lost(self, EPROTO)
        elif not self.blocked:
            self.send_ciphertext()
        return not self.closed

    cdef void drop_unsent(self) noexcept:
        if self.sealed:
            self.counters.messages.outcomes[DROPPED_SLOW] += queue_discard_after(
                &self.queue, self.sealed, DROPPED_SLOW
            )
        else:
            Link.drop_unsent(self)

    cdef void drop_queue(self) noexcept:
        self.ciphertext = None
        self.sealed = 0
        Link.drop_queue(self)

    cdef Progress poll_progress(self) noexcept:
        # The kernel counts bytes of records, so `bytes_acked` does too.
        cdef int64_t before = self.bytes_acked
        if self.closed:
            return AT_REST
        if before < self.ciphertext_sent:
            self.bytes_acked = self.ciphertext_sent - self.bytes_unacked()
            if self.bytes_acked > before:
                return TAKING
        return STALLED if self.blocked else AT_REST

    # Failures

    cdef bytes end_step(self):
        """Empty the pair after a failure. Return the alert for the peer, or None."""
        cdef BioPair pair = self.tls.pair
        cdef bytes alert = None
        try:
            alert = pair.take_output()
        except MemoryError:
            pass
        pair.discard()
        return alert

    cdef void fail(self, bytes alert) noexcept:
        """End the link because TLS has failed. The peer is told if it can be told at once."""
        cdef BioPair pair = self.tls.pair
        failure, pair.failure = pair.failure or ssl.SSLError("the peer has sent what is no record"), None
        if self.closed:
            return
        if not raise_from_loop(self.links.loop, failure) and not self.established:
            logger.debug("a TLS handshake has failed: %s", failure)
        if alert and self.ciphertext is None and not self.blocked:
            send(self.descriptor, <const char *>alert, len(alert), MSG_NOSIGNAL | MSG_DONTWAIT)
        self.tell_established(failure)
        self.links.on_lost(self, EPROTO)

    cdef void tell_established(self, object error) noexcept:
        """Call `on_established` once. If the handshake or this call has failed, the receiver is never called."""
        callback, self.on_established = self.on_established, None
        if callback is None:
            return
        if error is not None:
            self.receiver = None
        try:
            callback(error)
        except BaseException as failure:
            if not raise_from_loop(self.links.loop, failure):
                logger.exception("the end of a TLS handshake could not be handled")
            # Nobody knows of the link.
            self.receiver = None
            self.links.on_lost(self, 0)
