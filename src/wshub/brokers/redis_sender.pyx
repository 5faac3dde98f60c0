# cython: language_level=3
"""Sends envelopes to a Redis engine: bounded, and counted."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from wshub.links.link cimport iovec

from collections import Counter

cdef enum:
    # Bytes of the largest envelope. By default an engine ends each subscriber for which 32 MiB wait, so one message of
    # that size would cut off all nodes.
    LARGEST_ENVELOPE = 16 * 1024 * 1024
    # "$", the digits of a size_t, CR and LF.
    LENGTH_SIZE = 24


cdef class EnvelopeSender:
    """Sends envelopes over the connection that is open. An envelope that it does not send counts as dropped.

    Args:
        names: the ChannelNames of the engine.
        max_pending: bytes that may wait to be sent. While as many do, a further envelope is dropped.
    """

    def __init__(self, names, size_t max_pending):
        self.names = names
        self.heads = names.heads
        self.max_pending = max_pending
        self.dropped = Counter()
        self.why_dropped = ""

    def attach(self, ByteStream stream not None, RedisReader reader not None):
        """Send over a connection from now on: its stream, and what reads its replies."""
        self.stream = stream
        self.reader = reader

    def detach(self):
        """Drop envelopes from now on: there is no connection."""
        self.stream = None
        self.reader = None

    def send(self, str channel not None, bytes envelope not None, on_answer=None):
        """Send an envelope. Return False if it was dropped.

        Args:
            channel: the channel.
            envelope: the envelope.
            on_answer: called with what the engine answers. By default the answer is only counted. A tuple is what
                ``RedisReader.expect`` takes.
        """
        if self.stream is None:
            return self.drop("disconnected", "there is no connection to the engine")
        head = self.heads.get(channel)
        if head is None:
            head = self.names.publish_head(channel)
        return self.take(head, envelope, on_answer, False)

    def send_command(self, bytes head not None, bytes envelope not None, on_answer=None):
        """Send a command whose last word is an envelope. Return False if it was dropped.

        Args:
            head: the bytes of the command before the last word.
            envelope: the last word.
            on_answer: as for ``send``.
        """
        return self.take(head, envelope, on_answer, False)

    cdef bint take(self, bytes head, bytes envelope, object on_answer, bint is_stored) except -1:
        """Do what send_command() does. A call that stores the envelope has no `on_answer`, and may be needed again."""
        if not self.may_send(envelope):
            return False
        try:
            if is_stored:
                self.reader.await_stored(head, envelope)
            else:
                self.reader.await_reply(on_answer)
        except MemoryError:
            return self.drop("full", "there is no memory for the message")
        self.write_command(head, envelope)
        return True

    cdef bint may_send(self, bytes envelope) except -1:
        """Return whether an envelope can be sent. If not, it is dropped."""
        if self.stream is None:
            return self.drop("disconnected", "there is no connection to the engine")
        if self.stream.pending() >= self.max_pending:
            return self.drop("full", "too many bytes wait to be sent to the engine already")
        if len(envelope) > LARGEST_ENVELOPE:
            return self.drop(
                "too_large", f"an engine passes on at most {LARGEST_ENVELOPE} bytes, not {len(envelope)}"
            )
        return True

    cdef void write_command(self, bytes head, bytes envelope) noexcept:
        """Send a command whose reply is expected. `head` is all of it before the envelope.

        Without memory the connection ends, and counts what has got no reply.
        """
        cdef uint8_t length[LENGTH_SIZE]
        cdef iovec pieces[4]
        pieces[0].iov_base = <char *>head
        pieces[0].iov_len = len(head)
        pieces[1].iov_base = length
        pieces[1].iov_len = put_length(length, len(envelope))
        pieces[2].iov_base = <char *>envelope
        pieces[2].iov_len = len(envelope)
        pieces[3].iov_base = b"\r\n"
        pieces[3].iov_len = 2
        self.stream.write_pieces(pieces, 4)

    cdef bint drop(self, str reason, str why) except -1:
        self.dropped[reason] += 1
        self.why_dropped = why
        return False


cdef size_t put_length(uint8_t *place, size_t number) noexcept:
    """Write the line in front of a word of so many bytes. It has at most LENGTH_SIZE bytes. Return how many."""
    cdef size_t digits = 1
    cdef size_t rest = number // 10
    cdef size_t position
    while rest:
        digits += 1
        rest //= 10
    place[0] = c"$"
    for position in range(digits, 0, -1):
        place[position] = <uint8_t>(c"0" + number % 10)
        number //= 10
    memcpy(place + digits + 1, b"\r\n", 2)
    return digits + 3
