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
from wshub.protocol.request import RequestReader

logger = logging.getLogger("wshub.server")


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
