# cython: language_level=3
"""How far a room with history has got at this node."""

from libc.string cimport memcmp, memcpy


cdef class HistoryCursor:
    """The position of the last message that the members of a room have been sent.

    Args:
        name: of the room.
    """

    def __init__(self, str name not None):
        self.name = name
        self.epoch = ""

    cdef bint follows(self, const StoredHead *head) noexcept:
        """Whether a message is the next one of the history.

        Members may have been sent everything up to an offset that no message has.
        """
        return (
            head.previous <= self.offset < head.offset and memcmp(head.epoch, self.letters, EPOCH_LENGTH) == 0
        )

    cdef void advance(self, const StoredHead *head, const uint8_t *mark) noexcept:
        """Note that the members have been sent the next message, with MARK_LENGTH bytes of its mark."""
        self.offset = head.offset
        self.has_mark = True
        memcpy(self.mark_bytes, mark, MARK_LENGTH)

    @property
    def mark(self):
        """The mark of the message at ``offset``; empty if it is not known."""
        return <bytes>self.mark_bytes[:MARK_LENGTH] if self.has_mark else b""

    def move(self, uint64_t offset, str epoch not None, bytes mark not None):
        """Note that the members have been sent everything up to an offset of an epoch.

        Args:
            offset, epoch: the position.
            mark: of the message there; empty if it is not known.
        """
        cdef bytes letters = epoch.encode("ascii")
        if len(letters) != EPOCH_LENGTH:
            raise ValueError(f"an epoch is {EPOCH_LENGTH} letters, not {epoch!r}")
        self.offset = offset
        self.epoch = epoch
        memcpy(self.letters, <const char *>letters, EPOCH_LENGTH)
        self.has_mark = len(mark) == MARK_LENGTH
        if self.has_mark:
            memcpy(self.mark_bytes, <const char *>mark, MARK_LENGTH)

    def take(self, bytes stored not None):
        """Take a stored envelope that does not go to the members at once. Return whether it was not taken before.

        A subclass overrides this.
        """
        return False
