# cython: language_level=3
"""The sweep of one connection: pings, and the end of peers that are silent, stalled, idle or too old.

first_deadlines(), is_stalled() and judge() decide. They depend on their arguments alone: the state, the time, the
timeouts and the facts. sweep() collects the facts and acts on the verdict.

    Verdict         Condition                           Action of sweep():
    PEER_STALLED    send_timeout is over, found twice   abort with 1006.
    IS_IDLE         idle_timeout is over                close with 1001.
    LIFETIME_OVER   max_lifetime is over                close with 1001.
    PEER_SILENT     pong_timeout is over, found twice   abort with 1006.
    PING_DUE        ping_interval is over               send a ping.

Two sweeps in a row must find a peer stalled or silent. If the loop itself stood still, the first sweep after that may
run before the loop has handled what the peer did in time.
"""

from libc.stdint cimport uint32_t

from wshub.core.closing cimport abort, close_going_away
from wshub.core.connection_state cimport IS_CLOSING, IS_OPEN, OUTPUT_FULL, is_blocked, unblock_later
from wshub.core.hub_state cimport HubBase
from wshub.core.rates cimport refill
from wshub.links.link cimport AT_REST, STALLED, TAKING

# Seconds. More does not fit into ConnectionCore.round_trip.
cdef double LONGEST_ROUND_TRIP = 4000


# Decisions

cdef Liveness first_deadlines(double now, double spread, const Timeouts *timeouts) noexcept:
    """Return the deadlines of a connection that opens now.

    `spread` is from 0 to 1, and differs from connection to connection. It spreads pings and closes over time: to ping
    all connections that opened together would take one long loop iteration.
    """
    cdef Liveness state
    state.next_ping = now + timeouts.ping_interval * (1 - spread / 2)
    state.pong_deadline = 0
    state.stall_deadline = 0
    state.idle_deadline = now + timeouts.idle_timeout
    state.lifetime_end = now + timeouts.max_lifetime * (1 - spread / 10)
    state.before_ping = 0
    state.is_alive = False
    state.seems_silent = False
    state.seems_stalled = False
    return state


cdef bint is_stalled(Liveness *state, Progress progress, double now, double send_timeout) noexcept:
    """Whether the peer has taken none of the bytes that wait for it for too long."""
    cdef bint found_before
    if progress != STALLED:
        state.stall_deadline = 0
        state.seems_stalled = False
    elif state.stall_deadline == 0:
        state.stall_deadline = now + send_timeout
    elif now >= state.stall_deadline:
        found_before = state.seems_stalled
        state.seems_stalled = True
        return found_before
    return False


cdef bint is_excused(const Liveness *state, const Facts *facts) noexcept:
    """Whether a missing pong is not the peer's fault.

    True if this side has stopped reading, or if the peer is still acknowledging data sent before the ping.
    Acknowledgements of later data prove that the peer is alive only while its buffers are full.
    """
    if facts.input_is_held:
        return True
    return facts.progress == TAKING and (state.before_ping > 0 or facts.output_is_blocked)


cdef Verdict judge(Liveness *state, const Facts *facts, double now, const Timeouts *timeouts) noexcept:
    """Decide what is due for an open connection, and move its deadlines."""
    cdef bint found_before
    if is_stalled(state, facts.progress, now, timeouts.send_timeout):
        return PEER_STALLED
    if facts.is_active:
        state.idle_deadline = now + timeouts.idle_timeout
    elif now >= state.idle_deadline:
        return IS_IDLE
    if now >= state.lifetime_end:
        return LIFETIME_OVER
    if facts.without_pings:
        return NOTHING_DUE
    if state.is_alive:
        state.is_alive = False
        state.seems_silent = False
        state.pong_deadline = 0
    elif state.pong_deadline > 0 and is_excused(state, facts):
        state.pong_deadline = now + timeouts.pong_timeout
        state.seems_silent = False
    if state.pong_deadline > 0 and now >= state.pong_deadline:
        found_before = state.seems_silent
        state.seems_silent = True
        if found_before:
            return PEER_SILENT
    if now >= state.next_ping:
        state.next_ping = now + timeouts.ping_interval
        return PING_DUE
    return NOTHING_DUE


# Actions

cdef Timeouts timeouts_of(HubBase hub) noexcept:
    cdef Timeouts timeouts
    timeouts.ping_interval = hub.ping_interval
    timeouts.pong_timeout = hub.pong_timeout
    timeouts.send_timeout = hub.send_timeout
    timeouts.idle_timeout = hub.idle_timeout
    timeouts.max_lifetime = hub.max_lifetime
    return timeouts


cdef void start_deadlines(ConnectionCore connection, double now) noexcept:
    """Set the deadlines of a connection that opens now."""
    cdef Timeouts timeouts = timeouts_of(connection.hub)
    connection.liveness = first_deadlines(now, connection.id * 0.6180339887498949 % 1, &timeouts)


cdef void sweep(ConnectionCore connection, double now, FrameBuffer *ping) noexcept:
    """Do what is due at `now`. `ping` is a sealed ping that all connections share."""
    cdef Timeouts timeouts
    cdef Facts facts
    cdef Verdict verdict
    if connection.status == IS_CLOSING:
        sweep_closing(connection, now)
        return
    if connection.status != IS_OPEN:
        return
    refill(connection, now - connection.hub.swept_at)
    if connection.is_dropping:
        connection.is_dropping = connection.link.blocked
        if connection.blocks & OUTPUT_FULL:
            unblock_later(connection, OUTPUT_FULL)
    facts.progress = connection.link.poll_progress() if needs_progress(connection) else AT_REST
    if connection.status != IS_OPEN:
        return
    facts.is_active = connection.is_active
    facts.input_is_held = is_blocked(connection) and connection.blocks != OUTPUT_FULL
    facts.output_is_blocked = connection.link.blocked
    facts.without_pings = connection.link.without_pings
    timeouts = timeouts_of(connection.hub)
    verdict = judge(&connection.liveness, &facts, now, &timeouts)
    if connection.is_active:
        connection.is_active = False
    if verdict == PEER_STALLED:
        abort(connection, 1006, "the peer does not read")
    elif verdict == IS_IDLE:
        close_going_away(connection, "nothing was sent or received for too long")
    elif verdict == LIFETIME_OVER:
        close_going_away(connection, "the connection has reached its maximum lifetime")
    elif verdict == PEER_SILENT:
        abort(connection, 1006, "no answer to a ping")
    else:
        if verdict == PING_DUE:
            send_ping(connection, now, ping)
        if connection.link.bytes_acked >= connection.liveness.before_ping:
            connection.liveness.before_ping = 0


cdef void sweep_closing(ConnectionCore connection, double now) noexcept:
    """Abort a connection whose closing handshake takes too long, or whose peer takes none of its bytes."""
    if connection.link is None:
        return
    if (
        now >= connection.liveness.lifetime_end
        or is_stalled(&connection.liveness, connection.link.poll_progress(), now, connection.hub.send_timeout)
    ):
        connection.link.abort(False)


cdef bint needs_progress(ConnectionCore connection) noexcept:
    """Whether the verdict depends on acknowledgements. It would be expensive to ask the kernel for every connection."""
    if connection.link.blocked or (connection.liveness.pong_deadline > 0 and not connection.liveness.is_alive):
        return True
    return connection.link.hides_bytes and not connection.is_active


cdef void note_ping(ConnectionCore connection, double now) noexcept:
    """Begin to measure the round trip of a ping that is queued. `now` is a time shortly before."""
    try:
        # A sweep may have pinged thousands of connections since `now`.
        now = connection.hub.clock()
    except MemoryError:
        pass
    connection.last_ping_time = now
    connection.awaits_pong = True


cdef int note_pong(ConnectionCore connection) except -1:
    """End the measurement with the first pong after the ping. Later pongs were not asked for."""
    cdef double seconds
    connection.last_pong_time = connection.hub.clock()
    if connection.awaits_pong:
        connection.awaits_pong = False
        seconds = connection.last_pong_time - connection.last_ping_time
        connection.round_trip = <uint32_t>(min(max(seconds, 0.0), LONGEST_ROUND_TRIP) * 1e6) + 1
        if connection.hub.times is not None:
            connection.hub.times.pings.add(seconds)
    return 0


cdef void send_ping(ConnectionCore connection, double now, FrameBuffer *ping) noexcept:
    """Ping the peer, unless bytes wait for it and a send_timeout is set: then send_timeout finds a dead peer."""
    if connection.link.blocked and connection.hub.ends_stalled:
        return
    if connection.liveness.pong_deadline == 0:
        connection.liveness.pong_deadline = now + connection.hub.pong_timeout
        connection.link.poll_progress()
        connection.liveness.before_ping = connection.link.bytes_written + connection.link.queue.queued_bytes
    connection.link.write(ping)
    note_ping(connection, now)
