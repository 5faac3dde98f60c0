# cython: language_level=3
"""Reads what a Redis engine sends: replies in the order of the commands, and pushes at any time."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from wshub.brokers.envelope_receiver cimport receiver_of
from wshub.brokers.redis_due_replies cimport (
    CALLED_REPLY,
    COUNTED_REPLY,
    KEPT_REPLY,
    NOTHING_DUE,
    STORED_REPLY,
    DueKind,
    DueReplies,
)

from wshub.errors import BrokerError

try:
    import hiredis
except ModuleNotFoundError as error:
    raise ImportError("RedisBroker needs hiredis: pip install wshub[redis]") from error

cdef enum:
    # hiredis moves the rest of its buffer to the front after each KiB that it has parsed: the rest must be short.
    FEED_SIZE = 8192
    # Bytes of one reply. An engine ends a subscriber long before it has sent as much.
    LARGEST_REPLY = 64 << 20
    # A short reply has at most so many items, and its numbers and strings are at most so long.
    MOST_ITEMS = 8
    MOST_DIGITS = 18
    LONGEST_STRING = 64

# The results of short_reply_length() for all else.
cdef enum:
    UNFINISHED = 0
    OTHER_REPLY = -1

cdef object PushNotification = hiredis.PushNotification
cdef object INCOMPLETE = object()


cdef class RedisReader:
    """Parses the bytes of one connection. Each envelope goes to a hub, each reply to what waits for it.

    hiredis makes Python objects of replies. A short reply that is only counted is skipped without it.

    Args:
        events: the BrokerEvents that take envelopes.
        probe_channel: the name of the channel whose messages are no envelopes.
        pushed: called with the items of each push that is no envelope.
        settled: called after some calls of ``pushed``: before the next envelope, or when all bytes are parsed.
        refused: called with a BrokerError if the engine refuses an envelope whose reply nothing waits for, or a
            command that is answered by pushes.
        call_refused: called with the arguments of ``expect_stored()`` and a BrokerError, if the engine refuses the
            call.
    """

    def __init__(self, events, bytes probe_channel not None, pushed, settled, refused, call_refused=None):
        # BrokerError says what went wrong in either case: an error reply is an item like any other.
        self.parser = hiredis.Reader(protocolError=BrokerError, replyError=BrokerError, notEnoughData=INCOMPLETE)
        self.feed_parser = self.parser.feed
        self.get_reply = self.parser.gets
        self.has_data = self.parser.has_data
        self.is_between_replies = True
        self.unfinished = b""
        self.receiver = receiver_of(events)
        self.probe_channel = probe_channel
        self.earlier_probe_channel = b""
        self.pushed = pushed
        self.settled = settled
        self.refused = refused
        self.call_refused = call_refused
        self.replies = DueReplies()

    def expect(self, waiting):
        """Give the next reply that no earlier call has asked for to ``waiting(reply)``. An error is a BrokerError.

        None stands for an envelope whose reply is only counted. A tuple is an envelope that is needed again if the
        engine refuses it: its first item is then called with the tuple and the error. Call it before the command is
        sent.

        Raises:
            MemoryError: nothing waits for the reply.
        """
        self.await_reply(waiting)

    def expect_stored(self, bytes head not None, bytes envelope not None):
        """Count the next reply that no earlier call has asked for. It answers a call that stores an envelope.

        Args:
            head: the command before the envelope.
            envelope: its last word.

        Raises:
            MemoryError: as ``expect``.
        """
        self.await_stored(head, envelope)

    cdef int await_reply(self, object waiting) except -1:
        """Do what expect() does."""
        if waiting is None:
            self.replies.add_counted()
        elif type(waiting) is tuple:
            self.replies.add_object(KEPT_REPLY, waiting)
        else:
            return self.replies.add_object(CALLED_REPLY, waiting)
        self.envelopes_sent += 1
        return 0

    cdef int await_stored(self, bytes head, bytes envelope) except -1:
        """Do what expect_stored() does."""
        self.replies.add_stored(head, envelope)
        self.envelopes_sent += 1
        return 0

    @property
    def replies_due(self):
        """The number of replies that have not arrived."""
        return self.replies.count

    def feed(self, bytes data not None):
        """Take bytes that have arrived.

        Raises:
            BrokerError: they are not what an engine sends. The connection cannot go on.
        """
        cdef Py_ssize_t offset = 0
        cdef Py_ssize_t length
        cdef Py_ssize_t size
        cdef const uint8_t *start
        if self.unfinished:
            data = self.unfinished + data
            self.unfinished = b""
        start = <const uint8_t *>PyBytes_AS_STRING(data)
        length = len(data)
        while offset < length and not self.ended:
            size = FEED_SIZE
            if self.is_between_replies:
                offset += self.skip_counted(start + offset, length - offset)
                size = short_replies_length(start + offset, length - offset)
                if size == UNFINISHED:
                    self.unfinished = data[offset:]
                    break
                if size == OTHER_REPLY:
                    size = FEED_SIZE
            self.feed_parser(data, offset, min(size, length - offset))
            self.is_between_replies = False
            offset += size
            self.take_replies()
            if self.parser.len() > LARGEST_REPLY:
                raise BrokerError(f"a reply has more than {LARGEST_REPLY} bytes")
        if self.is_unsettled:
            self.settle()

    def end(self, error):
        """Take nothing more, and give the error to everything that waits. Return the number of envelopes among it."""
        cdef Py_ssize_t envelopes = 0
        self.ended = True
        self.pushed = self.settled = self.refused = self.call_refused = None
        while self.replies.count > 0:
            if self.replies.first_kind() == CALLED_REPLY:
                self.replies.take_object()(error)
            else:
                self.replies.skip()
                envelopes += 1
        return envelopes

    cdef Py_ssize_t skip_counted(self, const uint8_t *data, Py_ssize_t length) noexcept:
        """Take the short replies at the beginning that are only counted. Return the number of their bytes."""
        cdef Py_ssize_t offset = 0
        cdef Py_ssize_t size
        while offset < length and is_counted(self.replies.first_kind()):
            size = short_reply_length(data + offset, length - offset)
            if size <= 0:
                break
            self.replies.skip()
            offset += size
        return offset

    cdef int take_replies(self) except -1:
        """Take the replies that hiredis has all bytes of."""
        while not self.ended and not self.is_between_replies:
            reply = self.get_reply()
            if reply is INCOMPLETE:
                break
            if type(reply) is PushNotification:
                self.take_push(<list>reply)
            else:
                # A subscriber gets few replies, so pushes need not pay for this.
                self.is_between_replies = not self.has_data()
                self.take_reply(reply)
        return 0

    cdef int take_push(self, list items) except -1:
        if len(items) == 3 and is_message(items[0]) and PyBytes_CheckExact(items[2]):
            name = items[1]
            if not is_same(name, self.probe_channel) and not is_same(name, self.earlier_probe_channel):
                if self.is_unsettled:
                    self.settle()
                self.envelopes_received += 1
                payload = items[2]
                self.receiver.envelope_received(
                    <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
                )
                return 0
        self.is_unsettled = True
        self.pushed(items)
        return 0

    cdef int take_reply(self, reply) except -1:
        cdef DueKind kind = self.replies.first_kind()
        cdef bint is_error = isinstance(reply, BrokerError)
        if kind == CALLED_REPLY:
            self.replies.take_object()(reply)
        elif kind == STORED_REPLY and is_error:
            head, envelope = self.replies.take_stored()
            self.call_refused(head, envelope, reply)
        elif kind == KEPT_REPLY and is_error:
            kept = self.replies.take_object()
            kept[0](kept, reply)
        elif kind != NOTHING_DUE:
            self.replies.skip()
            if is_error:
                self.refused(reply)
        elif is_error:
            self.refused(reply)
        else:
            raise BrokerError("a reply without a command")
        return 0

    cdef int settle(self) except -1:
        self.is_unsettled = False
        if not self.ended:
            self.settled()
        return 0


cdef inline bint is_counted(DueKind kind) noexcept:
    """Return whether a reply is only counted, unless it is an error."""
    return kind == COUNTED_REPLY or kind == STORED_REPLY or kind == KEPT_REPLY


cdef Py_ssize_t short_replies_length(const uint8_t *data, Py_ssize_t length) noexcept:
    """Return the bytes of the short replies that `data` begins with: at least one, and up to FEED_SIZE.

    Return UNFINISHED or OTHER_REPLY as short_reply_length() does, if it does not begin with one.
    """
    cdef Py_ssize_t size = short_reply_length(data, length)
    cdef Py_ssize_t end = 0
    while size > 0 and end + size <= FEED_SIZE:
        end += size
        size = short_reply_length(data + end, length - end)
    return end if end > 0 else size


cdef Py_ssize_t short_reply_length(const uint8_t *data, Py_ssize_t length) noexcept:
    """Return the bytes of the short reply that `data` begins with: an integer, a string, or an array of these.

    Return UNFINISHED if `data` ends within it, and OTHER_REPLY for all else, such as an error.
    """
    cdef Py_ssize_t items
    cdef Py_ssize_t end
    cdef Py_ssize_t size
    if length == 0 or data[0] != c"*":
        return short_item_length(data, length)
    end = number_line(data, length, &items)
    if end > 0 and items > MOST_ITEMS:
        return OTHER_REPLY
    while end > 0 and items > 0:
        size = short_item_length(data + end, length - end)
        end = end + size if size > 0 else size
        items -= 1
    return end


cdef Py_ssize_t short_item_length(const uint8_t *data, Py_ssize_t length) noexcept:
    """Return the bytes of an integer or a string, or what short_reply_length() returns if it is none."""
    cdef Py_ssize_t number
    cdef Py_ssize_t end
    if length == 0:
        return UNFINISHED
    if data[0] != c":" and data[0] != c"$":
        return OTHER_REPLY
    end = number_line(data, length, &number)
    if end <= 0 or data[0] == c":":
        return end
    if number > LONGEST_STRING:
        return OTHER_REPLY
    end += number + 2
    if end > length:
        return UNFINISHED
    return end if data[end - 2] == c"\r" and data[end - 1] == c"\n" else OTHER_REPLY


cdef Py_ssize_t number_line(const uint8_t *data, Py_ssize_t length, Py_ssize_t *number) noexcept:
    """Parse a line that has a number behind its first byte. Return its bytes, or what short_reply_length() does."""
    cdef Py_ssize_t end = 1
    number[0] = 0
    while end < length and end <= MOST_DIGITS and c"0" <= data[end] <= c"9":
        number[0] = 10 * number[0] + data[end] - c"0"
        end += 1
    if end == length:
        return UNFINISHED
    if end == 1 or data[end] != c"\r":
        return OTHER_REPLY
    if end + 1 == length:
        return UNFINISHED
    return end + 2 if data[end + 1] == c"\n" else OTHER_REPLY


cdef inline bint is_same(object name, bytes other) noexcept:
    return (
        PyBytes_CheckExact(name)
        and PyBytes_GET_SIZE(name) == PyBytes_GET_SIZE(other)
        and memcmp(PyBytes_AS_STRING(name), PyBytes_AS_STRING(other), PyBytes_GET_SIZE(other)) == 0
    )


cdef inline bint is_message(object word) noexcept:
    """Return whether a push brings a message: "message", or "smessage" on a sharded channel."""
    if not PyBytes_CheckExact(word):
        return False
    if PyBytes_GET_SIZE(word) == 7:
        return memcmp(PyBytes_AS_STRING(word), b"message", 7) == 0
    return PyBytes_GET_SIZE(word) == 8 and memcmp(PyBytes_AS_STRING(word), b"smessage", 8) == 0
