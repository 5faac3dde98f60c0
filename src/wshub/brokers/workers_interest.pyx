# cython: language_level=3
"""Which channels this node and its peers have subscribed to, and how channels are written in records."""

from libc.stddef cimport size_t

from wshub.brokers.little_endian cimport read_number, write_number
from wshub.brokers.workers_record cimport LENGTH_SIZE, SNAPSHOT_RECORD

from wshub.brokers.interface import PATTERN_CHANNELS
from wshub.brokers.room_patterns import matching_channels, pattern_of


cdef bytes encode_channel(str channel):
    """Return the length of the channel's name and the name."""
    cdef bytes name = channel.encode("utf-8", "surrogatepass")
    cdef unsigned char length[LENGTH_SIZE]
    write_number(length, LENGTH_SIZE, len(name))
    return length[:LENGTH_SIZE] + name


cdef list decode_channels(const unsigned char *data, size_t length):
    """Return the channels of the body of a record. Raise ValueError if it is malformed."""
    cdef list channels = []
    cdef size_t position = 0, size
    while position < length:
        if length - position < LENGTH_SIZE:
            raise ValueError("the length of a channel's name is truncated")
        size = <size_t>read_number(data + position, LENGTH_SIZE)
        position += LENGTH_SIZE
        if size > length - position:
            raise ValueError("a channel's name is truncated")
        channels.append(data[position:position + size].decode("utf-8", "surrogatepass"))
        position += size
    return channels


cdef class Interest:
    """The channels that this node and its peers have subscribed to.

    ``send`` looks a channel up here once for each envelope. If a peer is lost, all channels are searched for it. That
    is rare, and a set for each peer would cost more memory than the table.
    """

    def __cinit__(self):
        self.own = {}
        self.peers = {}
        self.patterns = {}

    @property
    def own_count(self):
        """The number of channels that this node has subscribed to."""
        return len(self.own)

    cdef bint add_own(self, str channel) except -1:
        """Subscribe to the channel. Return whether this changes something."""
        if channel in self.own:
            return False
        self.own[channel] = None
        return True

    cdef bint remove_own(self, str channel) except -1:
        """Unsubscribe from the channel. Return whether this changes something."""
        if channel not in self.own:
            return False
        del self.own[channel]
        return True

    cdef int add(self, str channel, object peer) except -1:
        """Note that the peer has subscribed to the channel."""
        cdef list interested = self.peers.get(channel)
        if interested is None:
            self.peers[channel] = [peer]
            if channel.startswith(PATTERN_CHANNELS):
                self.patterns[channel] = pattern_of(channel)
        elif peer not in interested:
            interested.append(peer)
        return 0

    cdef int remove(self, str channel, object peer) except -1:
        """Note that the peer has unsubscribed from the channel."""
        cdef list interested = self.peers.get(channel)
        if interested is None or peer not in interested:
            return 0
        interested.remove(peer)
        if not interested:
            del self.peers[channel]
            self.patterns.pop(channel, None)
        return 0

    cdef int remove_peer(self, object peer) except -1:
        """Note that the peer has subscribed to no channel."""
        return self.keep_only(set(), peer)

    cdef int keep_only(self, set kept, object peer) except -1:
        """Note that the peer has subscribed to none but these channels."""
        cdef list channels = [
            channel for channel, interested in self.peers.items()
            if channel not in kept and peer in <list>interested
        ]
        for channel in channels:
            self.remove(channel, peer)
        return 0

    cdef list matching(self, str channel):
        """Return the channels of the patterns that match a room, and that peers have subscribed to."""
        return matching_channels(self.patterns, channel)

    cdef list snapshot(self):
        """Return the bodies of the records that name all channels of this node."""
        cdef list bodies = []
        cdef list names = []
        cdef size_t length = 0
        cdef bytes encoded
        for channel in self.own:
            encoded = encode_channel(channel)
            names.append(encoded)
            length += len(encoded)
            if length >= SNAPSHOT_RECORD:
                bodies.append(b"".join(names))
                names = []
                length = 0
        if names:
            bodies.append(b"".join(names))
        return bodies
