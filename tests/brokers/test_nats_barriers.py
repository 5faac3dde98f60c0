"""Barriers decide from what was sent and what has come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from wshub.brokers.nats_barriers import IN_FLIGHT, Barriers, Passed
from wshub.errors import BrokerUncertain


class Line:
    """A connection that keeps what is sent, and a clock."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sent: list[bytes] = []
        self.passed: list[tuple[str, BrokerUncertain | None]] = []
        self.barriers = Barriers(lambda: self.time)
        self.barriers.connected(self.sent.append)

    def note(self, name: str) -> Passed:
        return lambda error: self.passed.append((name, error))

    async def after(self, *names: str) -> None:
        """Have callbacks wait for one barrier, and let it leave."""
        for name in names:
            self.barriers.after(self.note(name))
        await asyncio.sleep(0)


async def test_callbacks_of_an_iteration_share_a_barrier_and_keep_their_order() -> None:
    line = Line()
    assert line.sent == [b"1"]
    await line.after("a", "b")
    await line.after("c")
    assert line.sent == [b"1", b"2", b"3"]
    line.barriers.heard(b"1")
    assert line.passed == []
    line.barriers.heard(b"2")
    assert line.passed == [("a", None), ("b", None)]
    line.barriers.heard(b"3")
    assert line.passed[2:] == [("c", None)]


async def test_a_later_barrier_stands_for_those_before_it() -> None:
    line = Line()
    await line.after("a")
    await line.after("b")
    line.barriers.heard(b"3")
    assert line.passed == [("a", None), ("b", None)]


async def test_few_barriers_are_under_way_at_a_time() -> None:
    line = Line()
    for number in range(100):
        await line.after(str(number))
    assert len(line.sent) == IN_FLIGHT
    line.barriers.heard(b"1")
    # All that waits shares the next one.
    assert len(line.sent) == IN_FLIGHT + 1
    line.barriers.heard(b"%d" % (IN_FLIGHT + 1))
    assert [name for name, _ in line.passed] == list(map(str, range(100)))


async def test_the_end_of_a_connection_fails_what_waits() -> None:
    line = Line()
    await line.after("sent")
    line.barriers.after(line.note("waiting"))
    error = BrokerUncertain("gone")
    line.barriers.disconnected(error)
    assert line.passed == [("sent", error), ("waiting", error)]
    await asyncio.sleep(0)
    assert line.sent == [b"1", b"2"]
    # Late barriers of the old connection mean nothing to the new one.
    line.barriers.connected(line.sent.append)
    await line.after("new")
    for late in (b"1", b"2"):
        line.barriers.heard(late)
    assert len(line.passed) == 2
    line.barriers.heard(b"4")
    assert line.passed[2:] == [("new", None)]


async def test_a_barrier_that_does_not_come_back_is_late() -> None:
    line = Line()
    line.barriers.heard(b"1")
    assert line.barriers.round_trip == 0
    line.time = 100
    assert not line.barriers.is_late(100)
    line.barriers.sweep(100)
    line.barriers.sweep(101)
    line.time = 103
    assert line.barriers.is_due(103)
    line.barriers.sweep(103)
    assert not line.barriers.is_due(104)
    assert line.sent == [b"1", b"2", b"3"]
    assert not line.barriers.is_late(105)
    assert line.barriers.is_late(106)
    line.barriers.heard(b"2")
    assert line.barriers.round_trip == 3
    assert not line.barriers.is_late(108)


async def test_strange_payloads_are_ignored() -> None:
    line = Line()
    await line.after("a")
    for payload in (b"", b"x", b"-1", b"9" * 5000, "٣".encode(), b"0"):
        line.barriers.heard(payload)
    assert line.passed == []


async def test_a_callback_may_ask_for_a_barrier() -> None:
    line = Line()
    again: Callable[[object], None] = lambda error: line.barriers.after(line.note("second"))  # noqa: E731
    line.barriers.after(partial(again))
    await asyncio.sleep(0)
    line.barriers.heard(b"2")
    await asyncio.sleep(0)
    line.barriers.heard(b"3")
    assert line.passed == [("second", None)]
