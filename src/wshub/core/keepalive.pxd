from wshub.core.connection_state cimport ConnectionCore, Liveness
from wshub.links.link cimport Progress
from wshub.protocol.frame_buffer cimport FrameBuffer


# The decision of a sweep about an open connection.
cdef enum Verdict:
    NOTHING_DUE
    PING_DUE
    PEER_STALLED    # it takes none of the bytes that wait for it
    PEER_SILENT     # it does not answer a ping
    IS_IDLE
    LIFETIME_OVER


cdef struct Timeouts:
    # Seconds, as the hub is configured. A timeout that is switched off is larger than any time.
    double ping_interval
    double pong_timeout
    double send_timeout
    double idle_timeout
    double max_lifetime


cdef struct Facts:
    # The facts about a connection that a sweep decides with.
    Progress progress      # of the peer's acknowledgements, since the last sweep that asked for it
    bint is_active         # a message was sent or received since the last sweep
    bint input_is_held     # this side has stopped reading, and not because the peer does not read
    bint output_is_blocked  # the last attempt to send left bytes behind
    bint without_pings     # the link carries no pings


cdef Liveness first_deadlines(double now, double spread, const Timeouts *timeouts) noexcept
cdef bint is_stalled(Liveness *state, Progress progress, double now, double send_timeout) noexcept
cdef Verdict judge(Liveness *state, const Facts *facts, double now, const Timeouts *timeouts) noexcept

cdef void start_deadlines(ConnectionCore connection, double now) noexcept
cdef void note_ping(ConnectionCore connection, double now) noexcept
cdef int note_pong(ConnectionCore connection) except -1
cdef void sweep(ConnectionCore connection, double now, FrameBuffer *ping) noexcept
