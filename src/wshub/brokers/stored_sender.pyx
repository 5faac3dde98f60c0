# cython: language_level=3
"""Stores the envelopes of one channel. A native broker gets them without a call of Python."""


cdef class StoredSender:
    """Calls ``HistorySource.send_stored`` for a channel. A subclass for a native broker overrides ``send``.

    Args:
        send_stored: that of the source.
        channel: of a room.
        config: the HistoryConfig of the room.
    """

    def __init__(self, send_stored, str channel, config):
        self.send_stored = send_stored
        self.channel = channel
        self.config = config

    cdef bint send(self, bytes envelope) except -1:
        """Store an envelope and send it, and forget it. Return False if it was dropped."""
        return self.send_stored(self.channel, envelope, self.config)
