"""The checks of brokers take an envelope as accounted for if it was counted as dropped, or a hub was told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wshub.brokers.interface import BrokerStats
from wshub.testing.broker_accounting import check_arrivals
from wshub.testing.broker_nodes import Interrupted, Received, Sent

CHANNEL = "room:a"


def sender(dropped: int, *log: Any) -> Any:
    """A node that has sent, and counts so many envelopes as dropped in the end."""
    broker = SimpleNamespace(stats=lambda: BrokerStats(dropped={"unanswered": dropped}))
    return SimpleNamespace(info=SimpleNamespace(id="one"), broker=broker, log=log)


def receiver(*numbers: int) -> Any:
    """A node that has received these envelopes of the sender."""
    log = [Received(b"one %d ." % number) for number in numbers]
    return SimpleNamespace(log=log, numbers=lambda _: list(numbers))


def sent(number: int, dropped: int = 0) -> Sent:
    return Sent(CHANNEL, number, True, dropped)


def test_an_envelope_that_was_counted_as_dropped_may_come_after_newer_ones() -> None:
    check_arrivals(sender(1, sent(0), sent(1), sent(2, dropped=1)), receiver(0, 2, 1), CHANNEL)


def test_an_envelope_may_come_late_if_the_hub_of_its_sender_knows_of_an_interruption() -> None:
    cut = Interrupted(None, "disconnected", frozenset({CHANNEL}))
    check_arrivals(sender(0, sent(0), sent(1), cut, sent(2)), receiver(0, 2, 1), CHANNEL)


def test_another_order_without_a_count_is_found() -> None:
    with pytest.raises(AssertionError, match="out of order without a word"):
        check_arrivals(sender(0, sent(0), sent(1), sent(2)), receiver(0, 2, 1), CHANNEL)


def test_a_late_envelope_that_arrives_twice_is_found() -> None:
    with pytest.raises(AssertionError, match="twice"):
        check_arrivals(sender(1, sent(0), sent(1), sent(2, dropped=1)), receiver(0, 2, 1, 1), CHANNEL)
