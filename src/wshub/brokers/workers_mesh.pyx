# cython: language_level=3
"""The peers of a node: it sends each envelope to those that have subscribed to its channel."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from wshub.brokers.envelope_receiver cimport receiver_of
from wshub.brokers.workers_interest cimport Interest, encode_channel
from wshub.brokers.workers_peer cimport ENVELOPE_FULL, ENVELOPE_LOST, ENVELOPE_QUEUED, EnvelopeOutcome, Peer
from wshub.brokers.workers_record cimport ENVELOPE, MATCHING, MAX_ENVELOPE, SUBSCRIBE, UNSUBSCRIBE, record_new
from wshub.links.link cimport LinkCounters
from wshub.protocol.frame_buffer cimport DELIVERED, DROPPED_CLOSED, RAW, FrameBuffer, frame_release
from wshub.protocol.opcodes cimport BINARY_OPCODE


cdef class Mesh:
    """The connections of one node to its peers, from ``start()`` to ``close()``.

    Args:
        loop: the event loop of the connections.
        events: the BrokerEvents of the node, which take the envelopes.
        max_pending: bytes that may wait for each peer.
    """

    def __init__(self, loop, events, size_t max_pending):
        self.loop = loop
        self.interest = Interest()
        self.counters = LinkCounters()
        self.receiver = receiver_of(events)
        self.peers = set()
        self.max_pending = max_pending
        self.is_open = True

    def close(self):
        """Take no more envelopes."""
        self.is_open = False

    def new_peer(self, owner, *, bint initiated):
        """Return a Peer without a link. ``owner`` is called with what has happened."""
        return Peer(
            owner, self.loop, self.interest, self.receiver, self.counters, self.max_pending, initiated=initiated
        )

    @property
    def link_counters(self):
        """Where links of the peers count."""
        return self.counters

    # Peers that are up

    def add(self, Peer peer not None, channels):
        """Send to the peer from now on. It has subscribed to these channels from the start."""
        for channel in channels:
            self.interest.add(channel, peer)
        self.peers.add(peer)
        peer.open()

    def remove(self, Peer peer not None):
        """Send to the peer no more. Return whether it was up."""
        if peer not in self.peers:
            return False
        self.peers.discard(peer)
        self.interest.remove_peer(peer)
        return True

    # Channels of this node

    def subscribe(self, str channel not None):
        """Have the peers send envelopes of the channel to this node."""
        if self.interest.add_own(channel):
            self.write_change(SUBSCRIBE, channel)

    def unsubscribe(self, str channel not None):
        """Have the peers send no more envelopes of the channel to this node."""
        if self.interest.remove_own(channel):
            self.write_change(UNSUBSCRIBE, channel)

    def has_subscribed(self, str channel not None):
        """Return whether this node has subscribed to the channel."""
        return channel in self.interest.own

    cdef int write_change(self, unsigned char kind, str channel) except -1:
        """Tell every peer that this node has subscribed to a channel, or unsubscribed from it."""
        cdef bytes body
        cdef FrameBuffer *frame
        if not self.peers:
            return 0
        body = encode_channel(channel)
        frame = record_new(kind, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), RAW)
        if frame == NULL:
            raise MemoryError
        for peer in self.peers:
            (<Peer>peer).write_change(frame)
        frame_release(frame)
        return 0

    # Envelopes

    def send(self, str channel not None, bytes envelope not None):
        """Queue the envelope for each peer that has subscribed to the channel. Return False if it was dropped."""
        cdef list interested
        cdef FrameBuffer *frame
        cdef bint taken = True
        if not self.is_open:
            self.dropped_lost += 1
            return False
        if self.interest.patterns:
            taken = self.send_matching(channel, envelope, None, None)
        interested = self.interest.peers.get(channel)
        if interested is None:
            return taken
        frame = self.build(ENVELOPE, envelope)
        if frame == NULL:
            return False
        for peer in interested:
            taken &= self.write(peer, frame)
        frame_release(frame)
        return taken

    def send_to_each(self, str channel not None, bytes envelope not None):
        """Queue the envelope as ``send`` does. Return the peers that it was queued for, and how many there might be."""
        cdef list interested = self.interest.peers.get(channel, [])
        cdef FrameBuffer *frame
        cdef list taken = []
        cdef Py_ssize_t count = len(interested)
        cdef set subscribed
        if self.interest.patterns:
            subscribed = set(interested)
            self.send_matching(channel, envelope, taken, subscribed)
            count = len(subscribed)
        if not interested:
            return taken, count
        frame = self.build(ENVELOPE, envelope)
        if frame == NULL:
            return taken, count
        try:
            for peer in interested:
                if self.write(peer, frame) and peer not in taken:
                    taken.append(peer)
        finally:
            frame_release(frame)
        return taken, count

    cdef bint send_matching(self, str channel, bytes envelope, list receivers, set subscribed) except -1:
        """Queue the envelope for each pattern that matches its room. Return False if it was dropped.

        The peers that it was queued for are added to `receivers`, and all that have such a pattern to `subscribed`,
        unless these are None.
        """
        cdef FrameBuffer *frame
        cdef bint taken = True
        for name in self.interest.matching(channel):
            if subscribed is not None:
                subscribed.update(self.interest.peers[name])
            frame = self.build(MATCHING, encode_channel(name) + envelope)
            if frame == NULL:
                taken = False
                continue
            try:
                for peer in self.interest.peers[name]:
                    if not self.write(peer, frame):
                        taken = False
                    elif receivers is not None and peer not in receivers:
                        receivers.append(peer)
            finally:
                frame_release(frame)
        return taken

    cdef FrameBuffer *build(self, unsigned char kind, bytes body) noexcept:
        """Return the record of an envelope, which all peers share; NULL if it is dropped and counted."""
        cdef size_t length = PyBytes_GET_SIZE(body)
        cdef FrameBuffer *frame
        if length > MAX_ENVELOPE:
            self.dropped_large += 1
            return NULL
        # The link counts a frame with this opcode as a message: so it knows how many envelopes are lost with it.
        frame = record_new(kind, PyBytes_AS_STRING(body), length, BINARY_OPCODE)
        if frame == NULL:
            self.dropped_memory += 1
        return frame

    cdef bint write(self, object peer, FrameBuffer *frame) noexcept:
        """Queue the record for a peer. Return False if it is dropped and counted."""
        cdef EnvelopeOutcome outcome = (<Peer>peer).write_envelope(frame)
        if outcome == ENVELOPE_QUEUED:
            return True
        if outcome == ENVELOPE_FULL:
            self.dropped_full += 1
        elif outcome == ENVELOPE_LOST:
            self.dropped_lost += 1
        else:
            self.dropped_memory += 1
        return False

    # What was counted

    @property
    def dropped(self):
        """Envelopes that were dropped, by reason. A reason for which there are none is left out."""
        counts = {
            "disconnected": self.dropped_lost + self.counters.messages.outcomes[DROPPED_CLOSED],
            "full": self.dropped_full,
            "too_large": self.dropped_large,
            "no_memory": self.dropped_memory,
        }
        return {reason: count for reason, count in counts.items() if count}

    @property
    def sent(self):
        """Envelopes that the kernel, or a transport, has taken: once for each peer."""
        return self.counters.messages.outcomes[DELIVERED]

    @property
    def received(self):
        """Envelopes that have arrived."""
        return self.counters.messages_received

    @property
    def bytes_sent(self):
        """Bytes that the kernel, or a transport, has taken."""
        return self.counters.bytes_sent

    @property
    def bytes_received(self):
        """Bytes that have arrived."""
        return self.counters.bytes_received

    @property
    def subscription_count(self):
        """The number of channels that this node has subscribed to."""
        return len(self.interest.own)
