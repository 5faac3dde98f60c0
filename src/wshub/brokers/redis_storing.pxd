"""Calls of the script that stores envelopes. redis_storing.pyx describes them."""

from wshub.brokers.redis_sender cimport EnvelopeSender
from wshub.brokers.stored_sender cimport StoredSender


cdef class StoreCalls:
    cdef EnvelopeSender sender
    cdef public object loaded_over   # the ByteStream of the connection that has got the scripts, or None
    cdef public bint is_reloading    # calls wait until the scripts are loaded again

    cdef bint send_call(self, bytes head, bytes envelope) except -1


cdef class RedisStoredSender(StoredSender):
    cdef StoreCalls calls
    cdef bytes head
