# cython: language_level=3
"""The opening handshake of a connection that a server of the hub has accepted itself (RFC 6455 section 4.2)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.links.link cimport LinkCounters, Link, Receiver
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_release
from wshub.protocol.message cimport frame_from_bytes

import asyncio
import logging
from functools import partial

from wshub.core.refusals import refuse
from wshub.core.refusals import FAILED, INCOMPLETE, SHUTTING_DOWN, UNDECIDED
from wshub.errors import HandshakeError
from wshub.links.failures import raise_from_loop
from wshub.protocol.http.request import MAX_HEAD_SIZE, RequestReader

logger = logging.getLogger("wshub.server")

cdef bytes METHOD = b"GET "
cdef bytes END = b"\r\n\r\n"
cdef Py_ssize_t LARGEST = MAX_HEAD_SIZE


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
                self.server.request_received(self, self.link, found[0], found[1])
        except BaseException as error:
            self.failed(error)

    @property
    def peer(self):
        """The peer's IP address and port, or None for a Unix socket."""
        return self.link.peer_name() if self.link is not None else None

    def drop(self):
        """End the connection without an answer."""
        if self.link is not None:
            self.link.abort(False)

    def wait_for(self, future, accept):
        """Stop reading until the future is done, and then call ``accept`` with its result."""
        self.decision = future
        self.server.pending.ask(self)
        self.link.pause()
        future.add_done_callback(partial(self._decided, accept))

    def _decided(self, accept, future):
        cdef Link link = self.link
        if self.decision is not future or link is None or link.closed:
            # The client has left or been refused, so an error cannot be reported to it.
            self.decision = None
            if not future.cancelled():
                future.exception()
            return
        self.decision = None
        if future.cancelled():
            self.refuse(HandshakeError(*SHUTTING_DOWN))
            return
        error = future.exception()
        if isinstance(error, (KeyboardInterrupt, SystemExit)) and isinstance(future, asyncio.Task):
            # The task has raised it out of the loop already.
            self.refuse(HandshakeError(*SHUTTING_DOWN))
            return
        try:
            if error is not None:
                raise error
            link.resume()
            accept(future.result())
        except BaseException as failure:
            self.failed(failure)

    cdef void failed(self, object error) noexcept:
        """Refuse the handshake for what was raised. KeyboardInterrupt and SystemExit end the program in order."""
        if isinstance(error, HandshakeError):
            self.refuse(error)
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            loop = asyncio.get_running_loop()
            if self.server.hub is not None:
                loop.call_soon(self.server.hub.close_and_raise, error)
            else:
                raise_from_loop(loop, error)
            self.refuse(HandshakeError(*SHUTTING_DOWN))
        else:
            logger.error("a handshake has failed", exc_info=error)
            self.refuse(HandshakeError(*FAILED))

    def refuse(self, error):
        """Answer with the error, and end the link when the answer has left."""
        # They refer to each other.
        opening, self.opening = self.opening, None
        self.respond(refuse(self.hub if self.hub is not None else self.server.hub, error, opening, source=self))

    def respond(self, bytes response):
        """Answer with a complete response, and end the link when it has left."""
        cdef FrameBuffer *frame
        self.answered = True
        frame = frame_from_bytes(<const char *>response, len(response), RAW)
        self.link.write(frame)
        frame_release(frame)
        self.link.abort(True)

    def shut_down(self):
        """Refuse the request since the server ends, unless it has been refused already."""
        decision, self.decision = self.decision, None
        if decision is not None:
            decision.cancel()
        elif self.answered:
            return
        self.refuse(HandshakeError(*SHUTTING_DOWN))

    def expire(self):
        """End what has taken too long: the client's request, ``on_upgrade``, or the client's close after a refusal."""
        decision, self.decision = self.decision, None
        if decision is not None:
            decision.cancel()
            self.refuse(HandshakeError(*UNDECIDED))
        elif self.answered:
            self.link.abort(False)
        else:
            self.refuse(HandshakeError(*INCOMPLETE))

    cdef void eof_received(self) noexcept:
        self.link.abort(False)

    cdef void connection_lost(self, int error) noexcept:
        self.server.pending.discard(self)
        self.link = None
        opening, self.opening = self.opening, None
        if opening is not None:
            opening.abandoned()
        if self.decision is not None:
            self.decision.cancel()


cdef class FirstRequest(OpeningHandshake):
    """Calls ``request_received(self, data, end)`` of its server once: the head of a GET ends at ``end`` in ``data``.

    An ``end`` of 0 says that the request is not a GET, or that its head is too large: no hub can answer it.
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
                # The end may have begun in the last three bytes.
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
            self.server.request_received(self, received, end + 4 if end >= 0 else 0)
        except BaseException as error:
            self.failed(error)
        finally:
            if self.answered:
                self.received = None

    def count_in(self, LinkCounters counters not None):
        """Count the bytes that arrive in `counters`, until the connection is a hub's."""
        self.link.counters = counters

    def take(self):
        """Return the link, which the caller owns from now on; None if it has ended."""
        cdef Link link = self.link
        self.link = None
        self.server.pending.discard(self)
        return link

    def detach(self):
        """Return the descriptor of the connection, which the caller owns from now on; -1 if it has ended."""
        cdef Link link = self.take()
        return link.detach() if link is not None else -1

    def refuse(self, error):
        if self.link is not None:
            OpeningHandshake.refuse(self, error)

    def expire(self):
        if self.is_silent():
            self.drop()
        else:
            OpeningHandshake.expire(self)

    def shut_down(self):
        if self.is_silent():
            self.drop()
        else:
            OpeningHandshake.shut_down(self)

    cdef bint is_silent(self) noexcept:
        """Whether nothing has arrived. A browser that connects in advance does not read an answer."""
        return not self.answered and self.received is None
