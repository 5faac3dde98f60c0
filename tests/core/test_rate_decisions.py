"""How token buckets refill, and how a connection responds to an empty one: pure functions, without a hub."""

from __future__ import annotations

import pytest

from wshub.core._testing import refilled, response_for

KINDS = ("bytes", "messages", "control_frames", "handler_time")
UNBOUNDED = (1e30, 1e30)


def test_each_bucket_refills_at_its_own_rate() -> None:
    left, allows_more = refilled([0, 1, 2, 3], [(10, 100), (20, 100), (30, 100), (40, 100)], 0.5)
    assert left == [5, 11, 17, 23]
    assert allows_more


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    left, _ = refilled([90, 0, 0, 0], [(100, 100), (100, 5), UNBOUNDED, UNBOUNDED], 1)
    assert left[:2] == [100, 5]


def test_a_bucket_without_a_rate_is_always_full() -> None:
    left, allows_more = refilled([-1e12] * 4, [UNBOUNDED] * 4, 0.1)
    assert all(each > 1e28 for each in left)
    assert allows_more


@pytest.mark.parametrize("kind", range(4))
def test_one_bucket_below_zero_keeps_the_connection_waiting(kind: int) -> None:
    left = [0.0] * 4
    left[kind] = -11
    rates = [(10.0, 10.0)] * 4
    left, allows_more = refilled(left, rates, 1)
    assert left[kind] == -1
    assert not allows_more
    left, allows_more = refilled(left, rates, 0.1)
    assert left[kind] == 0
    assert allows_more


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_connection_is_delayed_or_failed(kind: str) -> None:
    assert response_for("open", kind, False) == "delay"
    assert response_for("open", kind, True) == "fail_1008"


@pytest.mark.parametrize("closes_at_rate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_closing_connection_is_aborted_for_bytes_alone(kind: str, closes_at_rate: bool) -> None:
    expected = "abort_at_once" if kind == "bytes" else "go_on"
    assert response_for("closing", kind, closes_at_rate) == expected


@pytest.mark.parametrize("state", ["connecting", "closed"])
def test_a_connection_without_a_link_is_left_alone(state: str) -> None:
    assert {response_for(state, kind, True) for kind in KINDS} == {"go_on"}
