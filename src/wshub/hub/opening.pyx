# cython: language_level=3
"""The opening handshake of a connection that a server of the hub has accepted itself (RFC 6455 section 4.2)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from wshub.links.link cimport Link, Receiver
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_release
from wshub.protocol.message cimport frame_from_octets

import logging

from wshub.errors import HandshakeError
from wshub.protocol.handshake import Handshake
from wshub.protocol.request import MAX_HEAD_SIZE, RequestReader

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
                self.server._request_received(self, self.link, found[0], found[1])
        except HandshakeError as error:
            self.refuse(error)
        except Exception:
            logger.exception("a handshake has failed")
            self.refuse(HandshakeError(500, "The handshake failed on the server's side."))

    def refuse(self, error):
        """Answers with the error, and ends the link when that has left."""
        cdef FrameBuffer *frame
        self.answered = True
        self.server._refused(error)
        response = Handshake.create_error_response(error)
        frame = frame_from_octets(<const char *><bytes>response, len(response), RAW)
        self.link.write(frame)
        frame_release(frame)
        self.link.abort(True)

    def expire(self):
        """The client has taken too long with its request, or with closing after its refusal."""
        if self.answered:
            self.link.abort(False)
        else:
            self.refuse(HandshakeError(408, "The request was not complete in time."))

    cdef void eof_received(self) noexcept:
        self.link.abort(False)

    cdef void connection_lost(self, int error) noexcept:
        self.server._pending.discard(self)
        self.link = None


cdef class FirstRequest(OpeningHandshake):
    """Its server is asked once, with ``_request_received(self, data, end)``, where the head of a GET ends in ``data``.

    With an ``end`` of 0 it is no such head, or one too large: whatever it is, it is nothing for a hub.
    """

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        cdef Py_ssize_t searched, end
        if self.answered:
            return
        try:
            if self.received is None:
                self.received = bytearray()
            # The end may have begun in the last three octets.
            searched = max(0, len(self.received) - 3)
            self.received += data[:length]
            if self.received.startswith(METHOD[:len(self.received)]):
                end = self.received.find(END, searched, LARGEST) + 4
                if end < 4:
                    if len(self.received) < LARGEST:
                        return
                    end = 0
            else:
                end = 0
            self.answered = True
            self.server._request_received(self, bytes(self.received), end)
        except HandshakeError as error:
            self.refuse(error)
        except Exception:
            logger.exception("a handshake has failed")
            self.refuse(HandshakeError(500, "The handshake failed on the server's side."))
        finally:
            if self.answered:
                self.received = None

    @property
    def peer(self):
        """The client's address in the form that socket.getpeername() has, or None."""
        return self.link.peer_name()

    def detach(self):
        """Returns the descriptor of the connection, which is the caller's from here on; -1 if it has ended."""
        cdef Link link = self.link
        self.link = None
        self.server._pending.discard(self)
        return link.detach() if link is not None else -1

    def refuse(self, error):
        if self.link is not None:
            OpeningHandshake.refuse(self, error)

    def expire(self):
        if not self.answered and self.received is None:
            # A browser that has connected in advance and has not asked for anything.
            self.link.abort(False)
        else:
            OpeningHandshake.expire(self)
