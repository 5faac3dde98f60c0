# cython: language_level=3
"""The opening handshake of a connection that a server of the hub has accepted itself (RFC 6455 section 4.2)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.links.link cimport Ledger, Link, Receiver
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_release
from wshub.protocol.message cimport frame_from_octets

import asyncio
import logging
from functools import partial

from wshub.errors import HandshakeError
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.request import MAX_HEAD_SIZE, RequestReader

logger = logging.getLogger("wshub.server")

cdef bytes METHOD = b"GET "
cdef bytes END = b"\r\n\r\n"
cdef Py_ssize_t LARGEST = MAX_HEAD_SIZE
cdef object UNDECIDED = HandshakeError(503, "The server did not decide in time.")
cdef object STOPPING = HandshakeError(503, "The server is shutting down.")
cdef object FAILED = HandshakeError(500, "The handshake failed on the server's side.")


cdef class OpeningHandshake(Receiver):
    def __init__(self, Link link, server, double deadline):
        self.link = link
        self.server = server
        self.deadline = deadline

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        if self.answered:
            return
        try:
            if self.reader is None:
                self.reader = RequestReader()
            found = self.reader.feed(data[:length])
            if found is not None:
                self.answered = True
                self.server._request_received(self, self.link, found[0], found[1])
        except BaseException as error:
            self.failed(error)

    @property
    def peer(self):
        """The peer's IP address and port, or None for a Unix socket."""
        return self.link.peer_name() if self.link is not None else None

    def drop(self):
        """Ends the connection without an answer."""
        if self.link is not None:
            self.link.abort(False)

    def wait_for(self, future, accept):
        """Nothing is answered, and nothing more is read, until the future is done, whose result ``accept`` is given."""
        self.decision = future
        self.server._pending.ask(self)
        self.link.pause()
        future.add_done_callback(partial(self._decided, accept))

    def _decided(self, accept, future):
        cdef Link link = self.link
        if self.decision is not future or link is None or link.closed:
            # Whoever has asked is gone or refused, and with it who would be told of an error.
            self.decision = None
            if not future.cancelled():
                future.exception()
            return
        self.decision = None
        if future.cancelled():
            self.refuse(STOPPING)
            return
        error = future.exception()
        if isinstance(error, (KeyboardInterrupt, SystemExit)) and isinstance(future, asyncio.Task):
            # The task has raised it out of the loop already.
            self.refuse(STOPPING)
            return
        try:
            if error is not None:
                raise error
            link.resume()
            accept(future.result())
        except BaseException as failure:
            self.failed(failure)

    cdef void failed(self, object error) noexcept:
        """Refuses the handshake for what was raised. KeyboardInterrupt and SystemExit end the program in order."""
        if isinstance(error, HandshakeError):
            self.refuse(error)
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            asyncio.get_running_loop().call_soon(self.server.hub._exit, error)
            self.refuse(STOPPING)
        else:
            logger.error("a handshake has failed", exc_info=error)
            self.refuse(FAILED)

    def refuse(self, error):
        """Answers with the error, and ends the link when that has left."""
        cdef FrameBuffer *frame
        self.answered = True
        try:
            response = Handshake.create_error_response(error)
        except Exception:
            logger.exception("a handshake cannot be refused as on_upgrade says")
            error = FAILED
            response = Handshake.create_error_response(error)
        self.server._refused(error)
        frame = frame_from_octets(<const char *><bytes>response, len(response), RAW)
        self.link.write(frame)
        frame_release(frame)
        self.link.abort(True)

    def shut_down(self):
        """The server ends: the request is refused, unless it has been refused already."""
        decision, self.decision = self.decision, None
        if decision is not None:
            decision.cancel()
        elif self.answered:
            return
        self.refuse(STOPPING)

    def expire(self):
        """The client has taken too long with its request or with closing after its refusal, or the application has."""
        decision, self.decision = self.decision, None
        if decision is not None:
            decision.cancel()
            self.refuse(UNDECIDED)
        elif self.answered:
            self.link.abort(False)
        else:
            self.refuse(HandshakeError(408, "The request was not complete in time."))

    cdef void eof_received(self) noexcept:
        self.link.abort(False)

    cdef void connection_lost(self, int error) noexcept:
        self.server._pending.discard(self)
        self.link = None
        if self.decision is not None:
            self.decision.cancel()


cdef class FirstRequest(OpeningHandshake):
    """Its server is asked once, with ``_request_received(self, data, end)``, where the head of a GET ends in ``data``.

    With an ``end`` of 0 it is no such head, or one too large: whatever it is, it is nothing for a hub.
    """

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef Py_ssize_t end = -1
        cdef bytes received
        if self.answered:
            return
        try:
            received = data[:length]
            if self.received is None:
                # Nearly every request comes in one read.
                if received.startswith(METHOD):
                    end = received.find(END, 0, LARGEST)
            else:
                # The end may have begun in the last three octets.
                end = max(0, len(self.received) - 3)
                self.received += received
                end = self.received.find(END, end, LARGEST)
            if end < 0:
                if self.received is None:
                    self.received = bytearray(received)
                if len(self.received) < LARGEST and self.received.startswith(METHOD[:len(self.received)]):
                    return
            self.answered = True
            if self.received is not None:
                received = bytes(self.received)
            self.server._request_received(self, received, end + 4 if end >= 0 else 0)
        except BaseException as error:
            self.failed(error)
        finally:
            if self.answered:
                self.received = None

    def count_in(self, Ledger ledger not None):
        """Counts what arrives in that ledger, until the connection is a hub's."""
        self.link.ledger = ledger

    def take(self):
        """Returns the link, which is the caller's from here on; None if it has ended."""
        cdef Link link = self.link
        self.link = None
        self.server._pending.discard(self)
        return link

    def detach(self):
        """Returns the descriptor of the connection, which is the caller's from here on; -1 if it has ended."""
        cdef Link link = self.take()
        return link.detach() if link is not None else -1

    def refuse(self, error):
        if self.link is not None:
            OpeningHandshake.refuse(self, error)

    def expire(self):
        if not self.answered and self.received is None:
            # A browser that has connected in advance and has not asked for anything.
            self.drop()
        else:
            OpeningHandshake.expire(self)
