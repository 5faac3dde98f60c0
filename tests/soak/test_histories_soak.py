"""Some faults of the histories' soak test, in every test run, and that its ledger finds what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.soak.histories.ledger import Ledger, View
from tests.soak.histories.wire import SHORT_ROOMS
from tests.support.redis_engine import program_of

SANITIZED = "WSHUB_SANITIZED" in os.environ

LONG, SHORT = SHORT_ROOMS, 0


@pytest.mark.long
@pytest.mark.skipif(SANITIZED, reason="under the sanitizers the clients are too slow to keep up")
@pytest.mark.parametrize(("fault", "verdict"), [("", "soak: pass\n"), ("skip", "soak: FAIL\n")])
def test_clients_of_four_workers_get_everything_while_the_engine_fails(fault: str, verdict: str) -> None:
    program_of("redis")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak.histories", "--minutes", "0.4", "--longest", "2", "--clients", "40"),
            *(("--fault", fault) if fault else ()),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.stdout.endswith(verdict), result.stdout + result.stderr
    assert (result.returncode == 0) == (not fault)


def said(ledger: Ledger) -> str:
    return "; ".join(ledger.failures)


def test_a_view_without_a_hole_is_right() -> None:
    ledger = Ledger()
    view = View(ledger, LONG, "ann")
    view.back("", ("a", 4))
    view.message(("a", 5), "1.0")
    view.cut_off()
    view.message(("a", 6), "1.1")
    view.back("", ("a", 6))
    view.gap("epoch")
    view.message(("b", 1), "1.2")
    ledger.check_orders()
    ledger.check_ends({LONG: ("b", 1)})
    assert ledger.failures == []
    assert ledger.counts["recoveries"] == ledger.counts["gaps: epoch"] == 1


def skipped(view: View) -> None:
    view.message(("a", 6), "1.0")


def repeated(view: View) -> None:
    view.message(("a", 4), "1.0")


def swapped(view: View) -> None:
    view.message(("a", 5), "1.0")
    view.message(("a", 7), "1.2")
    view.message(("a", 6), "1.1")


def silent_epoch(view: View) -> None:
    view.message(("b", 1), "1.0")


def trimmed_without_a_loss(view: View) -> None:
    view.gap("trimmed")
    view.message(("a", 5), "1.0")


def epoch_that_is_the_same(view: View) -> None:
    view.gap("epoch")
    view.message(("a", 9), "1.0")


def told_once_and_skipped_twice(view: View) -> None:
    view.gap("trimmed")
    view.message(("a", 6), "1.0")
    view.message(("a", 8), "1.1")


def told_before_it_was_cut_off(view: View) -> None:
    view.gap("trimmed")
    view.cut_off()
    view.message(("a", 8), "1.0")


def back_with_nothing_missed(view: View) -> None:
    view.cut_off()
    view.back("trimmed", ("a", 4))


def back_with_an_epoch_that_is_the_same(view: View) -> None:
    view.cut_off()
    view.back("epoch", ("a", 9))


def back_to_another_place(view: View) -> None:
    view.cut_off()
    view.back("", ("a", 5))


@pytest.mark.parametrize(
    ("happens", "complaint"),
    [
        (skipped, "got ('a', 6) after ('a', 4), and was told nothing"),
        (repeated, "got ('a', 4) after ('a', 4)"),
        (swapped, "got ('a', 6) after ('a', 7)"),
        (silent_epoch, "got ('b', 1) after ('a', 4)"),
        (trimmed_without_a_loss, "and was told trimmed"),
        (epoch_that_is_the_same, "and was told epoch"),
        (told_once_and_skipped_twice, "got ('a', 8) after ('a', 6)"),
        (told_before_it_was_cut_off, "got ('a', 8) after ('a', 4)"),
        (back_with_nothing_missed, "came back to ('a', 4), has ('a', 4), and was told trimmed"),
        (back_with_an_epoch_that_is_the_same, "came back to ('a', 9), has ('a', 4), and was told epoch"),
        (back_to_another_place, "came back to ('a', 5), and has ('a', 4)"),
    ],
)
def test_what_a_client_must_not_see_is_reported(happens: Callable[[View], None], complaint: str) -> None:
    ledger = Ledger()
    view = View(ledger, SHORT, "ann")
    view.back("", ("a", 4))
    happens(view)
    assert complaint in said(ledger)


def test_a_room_that_keeps_everything_is_never_trimmed() -> None:
    ledger = Ledger()
    view = View(ledger, LONG, "ann")
    view.back("", ("a", 4))
    view.cut_off()
    view.back("trimmed", ("a", 9))
    assert "keeps everything" in said(ledger)


def test_two_messages_at_one_place_and_one_at_two_places_are_reported() -> None:
    ledger = Ledger()
    ledger.note(LONG, ("a", 5), "1.0", "ann")
    ledger.note(LONG, ("a", 5), "1.0", "its publisher")
    assert ledger.failures == []
    ledger.note(LONG, ("a", 5), "2.0", "ben")
    ledger.note(LONG, ("a", 6), "1.0", "its publisher")
    assert "'1.0' was there" in said(ledger)
    assert "was at 5" in said(ledger)


def test_an_epoch_with_messages_in_the_place_of_lost_ones_must_end() -> None:
    ledger = Ledger(may_lose=True)
    ledger.note(LONG, ("a", 5), "1.0", "ann")
    ledger.note(LONG, ("a", 5), "2.0", "ben")
    ledger.note(LONG, ("b", 1), "2.1", "ann")
    ledger.check_orders()
    ledger.check_ends({LONG: ("b", 1)})
    assert ledger.failures == []
    assert ledger.replaced == 1
    ledger.check_ends({LONG: ("a", 5)})
    assert "messages have taken the place of lost ones in a, which goes on" in said(ledger)


def test_an_order_that_is_not_the_publishers_and_a_message_behind_the_last_are_reported() -> None:
    ledger = Ledger()
    for offset, data in enumerate(["1.0", "2.7", "1.2", "2.6"], 1):
        ledger.note(LONG, ("a", offset), data, "its publisher")
    ledger.check_orders()
    assert said(ledger).count("came after a later one") == 1
    ledger.check_ends({LONG: ("a", 3)})
    assert "4 was stored in a, and the last message is 3" in said(ledger)
