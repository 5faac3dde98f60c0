"""The subscriptions of a node and of its peers. workers_interest.pyx says more."""


cdef class Interest:
    cdef dict own    # its keys are the channels that this node has subscribed to, in order
    cdef dict peers  # channel: a list of the peers that have subscribed to it, never empty
    cdef dict patterns  # channel of a pattern: its RoomPattern, of those that have peers

    cdef bint add_own(self, str channel) except -1
    cdef bint remove_own(self, str channel) except -1
    cdef int add(self, str channel, object peer) except -1
    cdef int remove(self, str channel, object peer) except -1
    cdef int keep_only(self, set kept, object peer) except -1
    cdef int remove_peer(self, object peer) except -1
    cdef list snapshot(self)
    cdef list matching(self, str channel)


cdef bytes encode_channel(str channel)
cdef list decode_channels(const unsigned char *data, size_t length)
