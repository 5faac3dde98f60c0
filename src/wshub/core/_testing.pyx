# cython: language_level=3
"""The decisions of keepalive.pyx and rates.pyx as Python functions, for tests. Structures are dicts of their fields."""

from wshub.core.connection_state cimport IS_CLOSED, IS_CLOSING, IS_CONNECTING, IS_OPEN, Liveness
from wshub.core.hub_state cimport CONTROL_FRAMES, HANDLER_TIME, MESSAGES, BYTES, RATES, Rate
from wshub.core.keepalive cimport (
    IS_IDLE,
    LIFETIME_OVER,
    NOTHING_DUE,
    PEER_SILENT,
    PEER_STALLED,
    PING_DUE,
    Facts,
    Timeouts,
    first_deadlines,
    is_stalled,
    judge,
)
from wshub.core.rates cimport ABORT_AT_ONCE, DELAY, FAIL_1008, GO_ON, refill_buckets, response_to
from wshub.links.link cimport AT_REST, STALLED, TAKING

cdef dict PROGRESS = {"at_rest": AT_REST, "taking": TAKING, "stalled": STALLED}

cdef dict VERDICTS = {
    NOTHING_DUE: "nothing_due",
    PING_DUE: "ping_due",
    PEER_STALLED: "peer_stalled",
    PEER_SILENT: "peer_silent",
    IS_IDLE: "is_idle",
    LIFETIME_OVER: "lifetime_over",
}

cdef dict STATES = {"connecting": IS_CONNECTING, "open": IS_OPEN, "closing": IS_CLOSING, "closed": IS_CLOSED}

cdef dict KINDS = {
    "bytes": BYTES, "messages": MESSAGES, "control_frames": CONTROL_FRAMES, "handler_time": HANDLER_TIME
}

cdef dict RESPONSES = {GO_ON: "go_on", DELAY: "delay", FAIL_1008: "fail_1008", ABORT_AT_ONCE: "abort_at_once"}


def first_deadlines_of(double now, double spread, timeouts):
    """Return the state that first_deadlines() returns."""
    cdef Timeouts seconds = timeouts
    return first_deadlines(now, spread, &seconds)


def stalled(state, str progress, double now, double send_timeout):
    """Return the result of is_stalled(), and the state after it."""
    cdef Liveness liveness = state
    found = is_stalled(&liveness, PROGRESS[progress], now, send_timeout)
    return bool(found), liveness


def verdict_of(state, facts, double now, timeouts):
    """Return the name of the verdict of judge(), and the state after it."""
    cdef Liveness liveness = state
    cdef Facts seen = {**facts, "progress": PROGRESS[facts["progress"]]}
    cdef Timeouts seconds = timeouts
    verdict = judge(&liveness, &seen, now, &seconds)
    return VERDICTS[verdict], liveness


def refilled(left, rates, double elapsed):
    """Return the buckets after refill_buckets(), and its result. Each rate is a pair: per second, at most."""
    cdef double[RATES] buckets
    cdef Rate[RATES] each
    cdef int kind
    for kind in range(RATES):
        buckets[kind] = left[kind]
        each[kind].per_second, each[kind].at_most = rates[kind]
    allows_more = refill_buckets(buckets, each, elapsed)
    return [buckets[kind] for kind in range(RATES)], bool(allows_more)


def response_for(str state, str kind, bint closes_at_rate):
    """Return the name of the response of response_to()."""
    return RESPONSES[response_to(STATES[state], KINDS[kind], closes_at_rate)]
