# cython: language_level=3
"""Calls the script that stores envelopes: natively, for as long as the engine has it."""


cdef class StoreCalls:
    """Sends calls of the script. A subclass loads it, and has the methods ``store_later`` and ``refused``.

    Args:
        sender: the EnvelopeSender of the connection that publishes.
    """

    def __init__(self, EnvelopeSender sender not None):
        self.sender = sender
        self.loaded_over = None
        self.is_reloading = False

    def store(self, str channel, bytes head not None, bytes envelope not None):
        """Do what ``KeyCommands.store`` does."""
        return self.send_call(head, envelope)

    def stored_sender(self, bytes head not None):
        """Return a StoredSender whose calls begin with `head`."""
        cdef RedisStoredSender sender = RedisStoredSender.__new__(RedisStoredSender)
        sender.calls = self
        sender.head = head
        return sender

    cdef bint send_call(self, bytes head, bytes envelope) except -1:
        """Send a call, or have it wait for the script. Return False if the envelope was dropped.

        The answer is only counted. If it is an error, the reader of the connection calls ``refused``.
        """
        if self.is_reloading or self.sender.stream is None or self.sender.stream is not self.loaded_over:
            return self.store_later(head, envelope)
        return self.sender.take(head, envelope, None, True)


cdef class RedisStoredSender(StoredSender):
    """Stores the envelopes of one channel in an engine. ``StoreCalls.stored_sender`` makes it."""

    cdef bint send(self, bytes envelope) except -1:
        return self.calls.send_call(self.head, envelope)
