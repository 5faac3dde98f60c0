"""Decisions of a sweep about a connection, as functions of state and time: no hub, no socket, no clock."""

from __future__ import annotations

import pytest

from wshub.core._testing import first_deadlines_of, stalled, verdict_of

NEVER = 1e30

TIMEOUTS = {
    "ping_interval": 20.0,
    "pong_timeout": 10.0,
    "send_timeout": 30.0,
    "idle_timeout": 300.0,
    "max_lifetime": 1000.0,
}

QUIET = {
    "progress": "at_rest",
    "is_active": False,
    "input_is_held": False,
    "output_is_blocked": False,
    "without_pings": False,
}


class Peer:
    """The state of a connection that opened at time 0, and the sweeps over it."""

    def __init__(self, **timeouts: float) -> None:
        self.timeouts = {**TIMEOUTS, **timeouts}
        self.state = first_deadlines_of(0.0, 0.0, self.timeouts)

    def sweep(self, now: float, **facts: object) -> str:
        verdict, self.state = verdict_of(self.state, {**QUIET, **facts}, now, self.timeouts)
        return verdict

    def pinged(self, now: float, *, before: int = 0) -> None:
        """Record an unanswered ping, sent after ``before`` bytes that are not yet acknowledged."""
        self.state["pong_deadline"] = now + self.timeouts["pong_timeout"]
        self.state["before_ping"] = before

    def heard(self) -> None:
        self.state["is_alive"] = 1


# Opening


def test_the_deadlines_begin_at_the_opening() -> None:
    state = first_deadlines_of(5.0, 0.0, TIMEOUTS)
    assert (state["next_ping"], state["idle_deadline"], state["lifetime_end"]) == (25.0, 305.0, 1005.0)
    assert state["pong_deadline"] == state["stall_deadline"] == state["before_ping"] == 0
    assert [state[flag] for flag in ("is_alive", "seems_silent", "seems_stalled")] == [0, 0, 0]


def test_pings_and_lifetimes_of_connections_are_spread() -> None:
    state = first_deadlines_of(0.0, 1.0, TIMEOUTS)
    assert (state["next_ping"], state["idle_deadline"], state["lifetime_end"]) == (10.0, 300.0, 900.0)


# Pings


def test_a_ping_is_due_once_in_each_interval() -> None:
    peer = Peer()
    assert peer.sweep(19.9) == "nothing_due"
    assert peer.sweep(20.0) == "ping_due"
    assert peer.sweep(20.1) == "nothing_due"
    assert peer.state["next_ping"] == 40.0


def test_a_link_that_carries_no_pings_gets_none() -> None:
    peer = Peer()
    peer.pinged(20.0)
    assert peer.sweep(100.0, without_pings=True) == "nothing_due"


def test_two_sweeps_find_a_peer_silent() -> None:
    peer = Peer()
    peer.pinged(20.0)
    assert peer.sweep(29.9) == "ping_due"
    assert peer.sweep(30.0) == "nothing_due"
    assert peer.sweep(30.1) == "peer_silent"


def test_bytes_that_arrived_between_the_two_sweeps_save_the_peer() -> None:
    peer = Peer()
    peer.pinged(20.0)
    assert peer.sweep(31.0) == "ping_due"
    peer.heard()
    assert peer.sweep(32.0) == "nothing_due"
    assert peer.state["pong_deadline"] == 0
    assert [peer.state[flag] for flag in ("is_alive", "seems_silent")] == [0, 0]


@pytest.mark.parametrize(
    ("facts", "before"),
    [
        ({"input_is_held": True}, 0),
        ({"progress": "taking"}, 100),
        ({"progress": "taking", "output_is_blocked": True}, 0),
    ],
)
def test_a_missing_pong_is_excused(facts: dict[str, object], before: int) -> None:
    peer = Peer()
    peer.pinged(20.0, before=before)
    peer.sweep(31.0)
    assert peer.sweep(32.0, **facts) == "nothing_due"
    assert peer.state["pong_deadline"] == 42.0
    assert not peer.state["seems_silent"]


@pytest.mark.parametrize(
    ("facts", "before"),
    [
        # The kernel acknowledges data after the ping, but the program may have stopped.
        ({"progress": "taking"}, 0),
        ({"progress": "at_rest", "output_is_blocked": True}, 100),
        ({"progress": "stalled", "output_is_blocked": True}, 100),
    ],
)
def test_a_missing_pong_is_not_excused(facts: dict[str, object], before: int) -> None:
    peer = Peer(send_timeout=NEVER)
    peer.pinged(20.0, before=before)
    peer.sweep(31.0, **facts)
    assert peer.sweep(32.0, **facts) == "peer_silent"


# Stalled peers


def test_two_sweeps_find_a_peer_stalled() -> None:
    peer = Peer()
    facts = {"progress": "stalled", "output_is_blocked": True}
    assert peer.sweep(1.0, **facts) == "nothing_due"
    assert peer.state["stall_deadline"] == 31.0
    assert peer.sweep(31.0, **facts) == "ping_due"
    assert peer.sweep(31.1, **facts) == "peer_stalled"


@pytest.mark.parametrize("progress", ["taking", "at_rest"])
def test_progress_ends_a_stall(progress: str) -> None:
    peer = Peer()
    peer.sweep(1.0, progress="stalled")
    peer.sweep(31.0, progress="stalled")
    peer.sweep(31.1, progress=progress)
    assert peer.state["stall_deadline"] == 0
    assert not peer.state["seems_stalled"]


def test_a_closing_connection_stalls_by_the_same_rule() -> None:
    state = first_deadlines_of(0.0, 0.0, TIMEOUTS)
    found, state = stalled(state, "stalled", 1.0, 5.0)
    assert (found, state["stall_deadline"]) == (False, 6.0)
    found, state = stalled(state, "stalled", 6.0, 5.0)
    assert (found, bool(state["seems_stalled"])) == (False, True)
    found, state = stalled(state, "stalled", 6.1, 5.0)
    assert found


# Idle connections and old connections


def test_an_idle_connection_is_found_at_its_deadline() -> None:
    peer = Peer(ping_interval=NEVER)
    assert peer.sweep(299.9) == "nothing_due"
    assert peer.sweep(300.0) == "is_idle"


def test_a_message_moves_the_idle_deadline() -> None:
    peer = Peer(ping_interval=NEVER)
    assert peer.sweep(300.0, is_active=True) == "nothing_due"
    assert peer.state["idle_deadline"] == 600.0


def test_bytes_alone_do_not_move_the_idle_deadline() -> None:
    peer = Peer(ping_interval=NEVER)
    peer.heard()
    assert peer.sweep(300.0) == "is_idle"


def test_an_active_connection_ends_with_its_lifetime() -> None:
    peer = Peer(ping_interval=NEVER)
    assert peer.sweep(999.9, is_active=True) == "nothing_due"
    assert peer.sweep(1000.0, is_active=True) == "lifetime_over"


def test_a_link_without_pings_has_the_other_timeouts() -> None:
    assert Peer().sweep(300.0, without_pings=True) == "is_idle"
    assert Peer().sweep(1000.0, without_pings=True, is_active=True) == "lifetime_over"


def test_a_stall_comes_before_idleness_and_age() -> None:
    peer = Peer()
    peer.sweep(1.0, progress="stalled")
    peer.sweep(31.0, progress="stalled")
    assert peer.sweep(2000.0, progress="stalled") == "peer_stalled"


def test_a_timeout_that_is_off_never_ends_a_connection() -> None:
    peer = Peer(send_timeout=NEVER, idle_timeout=NEVER, max_lifetime=NEVER, ping_interval=NEVER)
    for now in (1.0, 1e6, 1e9):
        assert peer.sweep(now, progress="stalled", output_is_blocked=True) == "nothing_due"
