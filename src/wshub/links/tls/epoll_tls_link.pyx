# cython: language_level=3
"""The links of the epoll reactor that encrypt, through Python's ``ssl``.

A connection keeps little between two steps: the state of OpenSSL, the start of a record that has not arrived whole, and
the records that the kernel did not take. It shares the pair of BIOs and the buffers with all others. This module
receives, and takes the steps of handshakes; epoll_tls_output.pyx sends.
"""

cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ENOMEM, EPROTO, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from wshub.links.epoll_link cimport EpollLink, EpollLinks
from wshub.links.link cimport Receiver, queue_is_empty
from wshub.links.linux_sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, close, recv, send, shutdown, ssize_t
from wshub.links.tls.bio_pair cimport CLOSED, WANTS_READ, BioPair
from wshub.links.tls.epoll_tls_output cimport RECEIVE_SIZE, EpollTlsOutput, TlsBuffers

import logging
import os
import ssl
from collections import deque

from wshub.links.failures import raise_from_loop
from wshub.links.tls.bio_pair import ssl_object_of

logger = logging.getLogger("wshub.server")

cdef enum:
    # Records that are given to OpenSSL in one go.
    SLICE = 64
    # A read that has more records than this, of less than TINY bytes on average, makes the next reads small.
    MANY_RECORDS = 256
    TINY = 128
    LITTLE = 4096
    # Records without data that one read may bring over TLS 1.3: a key update takes as long as twenty messages.
    EMPTY_RECORDS = 32
    # Bytes that a handshake may take. Certificates of a client are the largest part.
    HANDSHAKE_BYTES = 262144
    # Steps of handshakes in one run, and reads for them. A step with a signature takes most of a millisecond.
    HANDSHAKE_STEPS = 8
    HANDSHAKE_READS = 64

cdef bytes EXPLANATION = b"This port speaks TLS: use https:// or wss://\n"
cdef bytes NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s" % (len(EXPLANATION), EXPLANATION)
)
cdef frozenset METHODS = frozenset([b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC"])


cdef class EpollTls(TlsBuffers):
    """The pair and the buffers of a reactor, and the handshakes that wait for a step."""

    def __cinit__(self, EpollLinks links not None):
        self.waiting = deque()

    cdef EpollTlsLink add(self, int descriptor, object settings, bint is_client, object server_hostname):
        """Make a link of a connected socket. It owns the descriptor, also if this raises OSError or MemoryError."""
        cdef EpollTlsLink link
        try:
            link = EpollTlsLink.__new__(EpollTlsLink)
        except BaseException:
            close(descriptor)
            raise
        link.tls = self
        link.encrypted = True
        link.settings = settings
        link.is_client = is_client
        link.server_hostname = server_hostname
        self.links.watch(link, descriptor)
        return link

    cdef void wait_for_step(self, EpollTlsLink link) noexcept:
        """Have the link take a step of its handshake, after those that wait already."""
        if link.waits_for_step:
            return
        try:
            self.waiting.append(link)
            link.waits_for_step = True
        except MemoryError:
            self.links.needs_rescan = True

    cdef int take_steps(self) except -1:
        """Take the steps that one run has time for."""
        cdef EpollTlsLink link
        cdef int steps = 0
        cdef int reads = 0
        while self.waiting and steps < HANDSHAKE_STEPS and reads < HANDSHAKE_READS:
            link = self.waiting.popleft()
            link.waits_for_step = False
            if link.closed or link.paused:
                continue
            reads += 1
            steps += link.handshake_step()
            if not link.closed and link.has_data and not link.paused:
                if link.established:
                    self.links.read_later(link)
                else:
                    self.wait_for_step(link)
        return 0


@cython.trashcan(True)
cdef class EpollTlsLink(EpollTlsOutput):
    """One TLS connection of an epoll reactor, of the server's or the client's side."""

    def __dealloc__(self):
        PyMem_RawFree(self.partial)

    cdef void abort(self, bint after_flush) noexcept:
        # Before the end of the handshake nothing can be sent.
        EpollLink.abort(self, after_flush and (self.established or self.closed))

    cdef int detach(self) noexcept:
        """Return -1: the descriptor is of no use without the keys."""
        return -1

    cdef void forget(self) noexcept:
        self.drop_partial()
        self.session = None
        if self.on_established is not None:
            self.tell_established(OSError(self.error or ECONNRESET, os.strerror(self.error or ECONNRESET)))

    # Receiving

    cdef size_t receive_records(self) noexcept:
        cdef Py_ssize_t length
        if not self.established:
            (<EpollTls>self.tls).wait_for_step(self)
            return 0
        if self.close_seen and not self.ended:
            self.notify_close()
            if self.closed:
                return 0
        if self.finishing or self.ended:
            return self.discard_received()
        length = self.receive()
        if length > 0:
            self.decrypt(self.tls.input, length)
        if self.has_data and not self.paused and not self.closed:
            self.links.read_later(self)
        return max(length, 0)

    cdef Py_ssize_t receive(self) noexcept:
        """Receive once. Return how many bytes of records are in the buffer, 0 for none yet, or -1 at the end."""
        cdef uint8_t *target = self.tls.input + self.partial_length
        cdef size_t space = RECEIVE_SIZE - self.partial_length
        cdef ssize_t received
        if self.reads_little and space > LITTLE:
            space = LITTLE
        while True:
            received = recv(self.descriptor, target, space, 0)
            if received >= 0 or errno != EINTR:
                break
        if received <= 0:
            self.has_data = False
            if received == 0:
                self.on_end_of_stream()
            elif errno != EAGAIN:
                self.links.on_lost(self, errno)
            else:
                return 0
            return -1
        self.has_data = <size_t>received == space or self.hung_up
        if self.partial_length + received < self.partial_size:
            memcpy(self.partial + self.partial_length, target, received)
            self.partial_length += received
            return 0
        if self.partial != NULL:
            memcpy(self.tls.input, self.partial, self.partial_length)
            received += self.partial_length
            self.drop_partial()
        return received

    cdef size_t discard_received(self) noexcept:
        """Receive once, and discard it: the receiver wants no more, or the peer has said that there is no more."""
        cdef ssize_t received = recv(self.descriptor, self.tls.input, RECEIVE_SIZE, 0)
        if received <= 0:
            if received == 0 or errno != EINTR:
                self.has_data = False
            if received == 0:
                self.on_end_of_stream()
            elif errno != EAGAIN and errno != EINTR:
                self.links.on_lost(self, errno)
            received = 0
        elif received < RECEIVE_SIZE:
            self.has_data = self.hung_up
        if self.has_data and not self.paused and not self.closed:
            self.links.read_later(self)
        return received

    cdef void on_end_of_stream(self) noexcept:
        """Handle the end of the TCP stream. Without close_notify before it, the stream may have been cut."""
        if self.finishing:
            self.ended = True
            if not self.dirty:
                self.links.mark_dirty(self)
        elif not self.ended:
            self.links.on_lost(self, ECONNRESET)

    cdef bint keep_rest(self, const uint8_t *data, size_t length) noexcept:
        """Keep the start of a record until the rest arrives. Return False if there is no memory."""
        cdef size_t size
        if length == 0:
            return True
        size = find_records(data, length, 1).needed
        if size <= length:
            # The caller has taken all whole records.
            self.links.on_lost(self, EPROTO)
            return False
        self.partial = <uint8_t *>PyMem_RawMalloc(size)
        if self.partial == NULL:
            self.links.on_lost(self, ENOMEM)
            return False
        memcpy(self.partial, data, length)
        self.partial_length = length
        self.partial_size = size
        return True

    cdef void drop_partial(self) noexcept:
        PyMem_RawFree(self.partial)
        self.partial = NULL
        self.partial_length = self.partial_size = 0

    cdef void decrypt(self, const uint8_t *data, size_t length) noexcept:
        """Decrypt the whole records in `data`, keep the rest, and give the receiver what they hold."""
        cdef TlsBuffers tls = self.tls
        cdef BioPair pair = tls.pair
        cdef Records found
        cdef size_t used = 0
        cdef size_t filled = 0
        cdef size_t records = 0
        cdef size_t empty = 0
        cdef size_t reads
        cdef Py_ssize_t result = WANTS_READ
        cdef bint failed = False
        cdef bint ended = False
        cdef bytes alert = None
        # Code of the application may end the link in between.
        session = self.session

        while used < length and not (failed or ended or self.closed):
            found = find_records(data + used, length - used, SLICE)
            if found.records == 0:
                break
            if found.handshake and not self.is_tls13:
                pair.failure = ssl.SSLError("the peer wants to renegotiate")
                failed = True
                break
            if not pair.feed(data + used, found.length):
                failed = True
                break
            used += found.length
            records += found.records
            reads = 0
            while reads < found.records:
                result = pair.read(session, tls.plain + filled, RECEIVE_SIZE - filled)
                if result <= 0:
                    break
                filled += result
                reads += 1
            if result == WANTS_READ:
                # Records without data may have an answer.
                empty += found.records - reads
                if self.is_tls13 and empty > EMPTY_RECORDS:
                    pair.failure = ssl.SSLError("too many records without data")
                    failed = True
                elif not self.send_output():
                    break
            elif result == CLOSED:
                ended = True
            elif result < 0:
                failed = True
            # Older versions look at the type of a record after the rest has come. Here is no rest to wait for.
            failed |= found.invalid
        if failed or ended or self.closed:
            alert = self.end_step()
        else:
            pair.check_empty()
            self.reads_little = records > MANY_RECORDS and used < records * TINY
            self.keep_rest(data + used, length - used)
        self.deliver(filled)
        if failed:
            self.fail(alert)
        elif ended and not self.closed:
            self.close_seen = True
            if self.paused:
                # resume() reads again, which tells the receiver.
                self.has_data = True
            else:
                self.notify_close()

    cdef void deliver(self, size_t length) noexcept:
        """Give the receiver what was decrypted."""
        # The receiver of a handshake may replace itself in the link. This reference keeps it alive until it returns.
        cdef Receiver receiver = self.receiver
        if length == 0 or self.closed:
            return
        self.counters.bytes_received += length
        if not self.finishing:
            receiver.data_received(self.tls.plain, length)

    cdef void notify_close(self) noexcept:
        """Tell the receiver that the peer has sent close_notify."""
        cdef Receiver receiver = self.receiver
        self.ended = True
        if not self.finishing:
            receiver.eof_received()
        elif not self.dirty:
            self.links.mark_dirty(self)

    # The handshake

    cdef bint handshake_step(self) noexcept:
        """Receive, and take a step of the handshake. Return False if it had no work for OpenSSL."""
        cdef BioPair pair = self.tls.pair
        cdef const uint8_t *data = self.tls.input
        cdef Py_ssize_t length = 0
        cdef Py_ssize_t result
        cdef size_t used, left
        cdef Records found
        if self.session is not None or not self.is_client:
            length = self.receive()
            if length <= 0:
                return False
        self.handshake_bytes += length
        found = find_records(data, length, RECEIVE_SIZE)
        if length > 0 and found.records == 0:
            self.keep_rest(data, length)
            return False
        if self.session is None and (self.answer_http(length) or not self.start_session()):
            return True
        if self.handshake_bytes > HANDSHAKE_BYTES:
            pair.failure = ssl.SSLError("the handshake is too large")
            self.fail(None)
            return True
        session = self.session
        if length > 0 and not pair.feed(data, found.length):
            self.fail(self.end_step())
            return True
        result = pair.handshake(session)
        if not found.invalid and (result == WANTS_READ or result == 1):
            # Records behind the handshake are handled like later ones.
            left = pair.input_left() if result == 1 else 0
            used = found.length - left
            if self.send_output() and not self.closed:
                if result == 1:
                    pair.discard()
                    self.finish_handshake()
                    self.decrypt(data + used, length - used)
                else:
                    self.keep_rest(data + used, length - used)
            pair.discard()
        else:
            self.fail(self.end_step())
        return True

    cdef bint answer_http(self, size_t length) noexcept:
        """Tell a client that speaks HTTP without TLS what is wrong. Return False if this one does not."""
        cdef const uint8_t *data = self.tls.input
        if self.is_client or length < 4 or data[:4] not in METHODS:
            return False
        send(self.descriptor, <const char *>NOT_TLS, len(NOT_TLS), MSG_NOSIGNAL | MSG_DONTWAIT)
        shutdown(self.descriptor, SHUT_WR)
        self.links.on_lost(self, 0)
        return True

    def get_ssl_object(self):
        if not self.established or self.finishing or self.closed or self.session is None:
            return None
        return self.ssl_object if self.ssl_object is not None else ssl_object_of(self.session)

    cdef bint start_session(self) noexcept:
        """Make the objects of the connection. If that fails, end it, and return False."""
        cdef BioPair pair = self.tls.pair
        pair.busy = True
        try:
            context = self.settings if self.is_client else self.settings.context
            self.ssl_object, self.session = pair.wrap(
                context, server_side=not self.is_client, server_hostname=self.server_hostname
            )
        except BaseException as error:
            pair.failure = error
            if not self.is_client and not raise_from_loop(self.links.loop, error):
                logger.error("a TLS connection cannot be served", exc_info=error)
        finally:
            pair.busy = False
        # Code of the application may have run.
        if self.session is None or self.closed:
            self.fail(self.end_step())
            return False
        return True

    cdef void finish_handshake(self) noexcept:
        self.established = True
        try:
            self.is_tls13 = self.session.version() == "TLSv1.3"
            if self.ssl_object.context._msg_callback is None:
                # Nothing else asks for it after the handshake. The session has a weak reference to it. One to the
                # context, which exists already, takes less memory.
                self.session.owner = self.ssl_object.context
                self.ssl_object = None
        except BaseException:
            # Without a version, the records are held to the rules of the older ones, which are stricter.
            pass
        if not queue_is_empty(&self.queue) and not self.dirty and not self.blocked:
            self.links.mark_dirty(self)
        self.tell_established(None)
