"""Probes decide from what was sent, answered and heard."""

from __future__ import annotations

from wshub.brokers.redis_probes import Probes


def test_a_probe_that_comes_back_is_fine() -> None:
    probes = Probes()
    assert probes.is_due(0)
    number = probes.send(0, audible=True)
    assert not probes.is_due(4.9)
    assert probes.is_due(5)
    probes.answered(number, 0.1)
    assert probes.heard(number, 0.25)
    assert probes.round_trip == 0.25
    assert probes.verdict(1000) == "fine"


def test_a_probe_that_is_heard_before_its_answer_is_fine() -> None:
    probes = Probes()
    number = probes.send(0, audible=True)
    assert probes.heard(number, 0.1)
    probes.answered(number, 0.2)
    assert probes.verdict(1000) == "fine"


def test_a_probe_that_is_taken_and_not_heard_means_deaf() -> None:
    probes = Probes()
    number = probes.send(0, audible=True)
    probes.answered(number, 1)
    assert probes.verdict(8.9) == "fine"
    assert probes.verdict(9) == "deaf"
    probes.forget_all()
    assert probes.verdict(1000) == "fine"


def test_a_probe_without_an_answer_says_nothing_about_hearing() -> None:
    probes = Probes()
    probes.send(0, audible=True)
    assert probes.verdict(7.9) == "fine"
    assert probes.verdict(8) == "unanswered"
    probes.forget_answers()
    assert probes.verdict(1000) == "fine"


def test_a_failure_is_noticed_within_15_seconds_with_sweeps_a_second_apart() -> None:
    for begins in (0.0, 0.01, 2.5, 4.99):
        probes = Probes()
        noticed = None
        for tick in range(40):
            now = tick + 0.005
            if probes.is_due(now):
                number = probes.send(now, audible=True)
                probes.answered(number, now)
                if now < begins:
                    probes.heard(number, now)
            if probes.verdict(now) == "deaf" and noticed is None:
                noticed = now
        assert noticed is not None
        assert noticed - begins <= 15


def test_a_later_probe_proves_as_much_as_an_earlier_one() -> None:
    probes = Probes()
    first, second = probes.send(0, audible=True), probes.send(5, audible=True)
    probes.answered(first, 0)
    probes.answered(second, 5)
    assert probes.heard(second, 5)
    assert probes.verdict(1000) == "fine"
    assert not probes.heard(first, 6)


def test_a_probe_that_no_subscription_can_hear_and_one_that_is_refused_are_not_waited_for() -> None:
    probes = Probes()
    probes.answered(probes.send(0, audible=False), 0)
    probes.refused(probes.send(5, audible=True))
    assert probes.verdict(1000) == "fine"


def test_an_unknown_probe_is_none() -> None:
    probes = Probes()
    number = probes.send(0, audible=True)
    assert not probes.heard(number + 1, 1)
    assert probes.round_trip is None
