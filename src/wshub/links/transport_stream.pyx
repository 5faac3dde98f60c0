# cython: language_level=3
"""The stream below a StreamTransport: what a transport does with a link, for Python code."""

from libc.stddef cimport size_t

from wshub.links.byte_stream cimport ByteStream
from wshub.links.link cimport TAKING, Link

import logging

logger = logging.getLogger("wshub.server")


cdef class TransportStream(ByteStream):
    """A ByteStream of a link that exists already, with the flow control of a transport.

    Args:
        link: the link. The stream is its receiver from now on.
        received: called with the bytes of each read, in order.
        ended: called when the peer has ended its side. The link stays open for output.
        short_again: called when the bytes that ``call_when_short`` named have left.
        lost: called once when the link has ended, with an OSError, or None if the peer ended it or ``abort()`` did.
    """

    def __init__(self, Link link not None, received, ended, short_again, lost):
        self.received = received
        self.ended = ended
        self.short_again = short_again
        self.lost = lost
        self.counters = link.counters
        self.link = link
        link.receiver = self

    def abandon(self):
        """End the link at once. Nothing is called any more."""
        self.received = self.ended = self.short_again = self.lost = None
        self.abort()

    def pause(self):
        """Stop reading. Bytes that were read already may still arrive."""
        if self.link is not None:
            self.link.pause()

    def resume(self):
        """Read again."""
        if self.link is not None:
            self.link.resume()

    def flush(self):
        """Send what the kernel takes, before this returns."""
        if self.link is not None:
            self.link.flush_now()

    def call_when_short(self, size_t length):
        """Have ``short_again`` called once, when at most this many of the bytes that wait now are left."""
        if self.link is not None:
            self.link.notify_when_left(self.link.end_of_queue() - <long long>length)

    def is_taken(self):
        """Return whether the peer has acknowledged bytes since the last call."""
        return self.link is not None and self.link.poll_progress() == TAKING

    @property
    def is_over(self):
        """Whether the link has ended, or has been handed over."""
        return self.link is None

    def fileno(self):
        """Return the descriptor, which stays the link's; -1 if there is none any more."""
        return self.link.fileno() if self.link is not None else -1

    @property
    def peer(self):
        """The peer's IP address and port, or None for a Unix socket."""
        return self.link.peer_name() if self.link is not None else None

    def hand_over(self, take):
        """Call ``take`` with the link, to which it gives another receiver. The stream is over then.

        If ``take`` raises before it has, the stream goes on.
        """
        cdef Link link = self.link
        # The new receiver expects a link that is read, and that owes nobody a call.
        link.drain_requested = False
        link.notify_at = 0
        link.resume()
        try:
            take(link)
        except BaseException:
            if link.receiver is not self:
                link.abort(False)
            raise
        finally:
            if link.receiver is not self:
                self.link = None
                self.received = self.ended = self.short_again = self.lost = None

    cdef void eof_received(self) noexcept:
        try:
            if self.ended is not None:
                self.ended()
        except Exception:
            logger.exception("the end of a stream could not be handled")
            self.abort()

    cdef void drained(self) noexcept:
        try:
            if self.short_again is not None:
                self.short_again()
        except Exception:
            logger.exception("a stream could not be continued")
            self.abort()

    cdef void connection_lost(self, int error) noexcept:
        self.ended = self.short_again = None
        ByteStream.connection_lost(self, error)
