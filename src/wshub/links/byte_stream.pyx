# cython: language_level=3
"""A stream of bytes for Python code: a link whose receiver is a pair of functions."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from wshub.links.connecting import connect_link
from wshub.links.link cimport LinkCounters, Receiver, iovec, queue_charge, queue_extend
from wshub.protocol.frame_buffer cimport RAW, FrameBuffer, frame_new, frame_payload, frame_release

import logging
import os

logger = logging.getLogger("wshub.broker")

cdef enum:
    # Bytes that are written one after another share frames. The more waits already, the more space a frame has for
    # what comes next, up to this.
    LARGEST_SPACE = 16384


cdef class ByteStream(Receiver):
    """Sends and receives bytes. Use it on the thread of its loop only.

    Args:
        received: called with the bytes of each read, in order.
        lost: called once when the stream has ended, with an OSError, or None if the peer ended it or ``abort()`` did.
    """

    def __init__(self, received, lost):
        self.received = received
        self.lost = lost
        self.counters = LinkCounters()

    async def open(self, reactor, connected, *, ssl=None, server_hostname=None):
        """Take a connected, non-blocking socket. The arguments are those of ``connect_link``.

        Raises:
            OSError: the socket cannot be watched, or the TLS handshake has failed. ``lost`` is not called then.
        """
        self.link = await connect_link(
            reactor, connected, self, self.counters, ssl=ssl, server_hostname=server_hostname
        )

    def write(self, bytes data not None):
        """Send the bytes. They leave at the end of this iteration of the loop.

        It never waits: look at ``pending_bytes`` first. Without memory the stream ends, since it cannot go on with a
        gap. After its end this does nothing.
        """
        cdef iovec piece
        piece.iov_base = <char *>data
        piece.iov_len = len(data)
        self.write_pieces(&piece, 1)

    cdef void write_pieces(self, const iovec *pieces, int count) noexcept:
        """Send the bytes of all pieces, in order, as write() does. The pieces stay the caller's."""
        cdef FrameBuffer *frame
        cdef uint8_t *place
        cdef size_t length = 0
        cdef int index
        if self.link is None or self.link.closed or self.link.finishing:
            return
        for index in range(count):
            length += pieces[index].iov_len
        place = queue_extend(&self.link.queue, length)
        if place != NULL:
            copy_pieces(place, pieces, count)
            return
        frame = frame_new(RAW, max(length, min(self.pending(), <size_t>LARGEST_SPACE)))
        if frame == NULL:
            self.link.abort(False)
            return
        copy_pieces(frame_payload(frame), pieces, count)
        frame.length = length
        if self.link.write(frame) < 0:
            self.link.abort(False)
        frame_release(frame)

    cdef size_t pending(self) noexcept:
        """Return the bytes that were written and have not left."""
        return queue_charge(&self.link.queue) if self.link is not None else 0

    @property
    def pending_bytes(self):
        """Bytes that were written and have not left."""
        return self.pending()

    @property
    def bytes_received(self):
        """Bytes that have arrived, ever."""
        return self.counters.bytes_received

    @property
    def bytes_sent(self):
        """Bytes that have left, ever."""
        return self.counters.bytes_sent

    def finish(self):
        """Send what waits, then end the stream."""
        if self.link is not None:
            self.link.abort(True)

    def abort(self):
        """End the stream at once. ``lost`` is called in a later iteration of the loop."""
        if self.link is not None:
            self.link.abort(False)

    cdef void data_received(self, const uint8_t *data, size_t length) noexcept:
        try:
            self.received(data[:length])
        except Exception:
            logger.exception("received bytes could not be handled: the stream ends")
            self.abort()

    cdef void eof_received(self) noexcept:
        self.abort()

    cdef void connection_lost(self, int error) noexcept:
        lost, self.lost = self.lost, None
        self.received = None
        self.link = None
        try:
            if lost is not None:
                lost(OSError(error, os.strerror(error)) if error else None)
        except Exception:
            logger.exception("the end of a stream could not be handled")


cdef void copy_pieces(uint8_t *place, const iovec *pieces, int count) noexcept:
    """Write the bytes of all pieces to `place`, which has space for them."""
    cdef int index
    for index in range(count):
        memcpy(place, pieces[index].iov_base, pieces[index].iov_len)
        place += pieces[index].iov_len
