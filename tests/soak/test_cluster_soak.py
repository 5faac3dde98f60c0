"""Some faults of the cluster's soak test, in every test run, and that its ledger finds what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.soak.cluster.client import Gap
from tests.soak.cluster.ledger import NodeRecord, check_gaps, check_published
from tests.soak.cluster.wire import PUBLISHED, ROOM
from tests.support import nats_engine
from tests.support.redis_engine import program_of

SANITIZED = "WSHUB_SANITIZED" in os.environ


@pytest.mark.skipif(SANITIZED, reason="under the sanitizers the clients are too slow to keep up")
@pytest.mark.parametrize(
    ("loop", "engine"),
    [
        pytest.param("asyncio", "valkey", marks=pytest.mark.long),
        ("uvloop", "redis"),
        pytest.param("uvloop", "nats-current", marks=pytest.mark.long),
    ],
)
def test_what_clients_miss_while_the_engine_fails_is_what_nodes_have_counted(loop: str, engine: str) -> None:
    if engine.startswith("nats-"):
        nats_engine.program_of(engine.removeprefix("nats-"))
    else:
        program_of(engine)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak.cluster", "--minutes", "0.15", "--longest", "3"),
            *("--loop", loop, "--engine", engine),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("soak: pass\n")


def report(time: float, dropped: int, outcomes: list[tuple[int, int, str]] | None = None) -> dict[str, Any]:
    broker = {"dropped": {"disconnected": dropped, "unanswered": 0}}
    return {"time": time, "resident": 0, "blocks": 0, "outcomes": outcomes or [], "cluster": {"broker": broker}}


def recorded(*reports: dict[str, Any]) -> NodeRecord:
    record = NodeRecord()
    for each in reports:
        record.add(each)
    return record


def gap(*, receiver: int = 1, way: int = ROOM, first: int = 5, last: int = 6) -> Gap:
    return Gap(receiver, 0, way, 7, first, last, since=100.0, until=101.0)


QUIET = recorded(report(1.0, 0))


def test_missing_messages_that_the_sender_has_counted_are_explained() -> None:
    assert check_gaps([recorded(report(102.0, 2)), QUIET], [gap()]) == []


@pytest.mark.parametrize(
    ("sender", "missing", "complaint"),
    [
        (recorded(report(102.0, 0)), gap(), "nothing was counted"),
        (recorded(report(50.0, 2)), gap(), "nothing was counted"),
        (recorded(report(102.0, 1)), gap(), "2 messages of node 0 are missing, it has counted 1"),
        (recorded(report(102.0, 2)), gap(receiver=0), "its own node"),
        (recorded(report(102.0, 2, [(7, 5, "uncertain")])), gap(way=PUBLISHED), "publish() has not failed"),
    ],
)
def test_missing_messages_that_nothing_explains_are_reported(sender: NodeRecord, missing: Gap, complaint: str) -> None:
    failures = check_gaps([sender, QUIET], [missing])
    assert any(complaint in failure for failure in failures)


def test_a_message_that_nobody_should_have_received_is_reported() -> None:
    sender = recorded(report(1.0, 1, [(7, 5, "unavailable"), (7, 6, "uncertain")]))
    assert check_published([sender], [(0, 7, [4, 6])]) == []
    assert len(check_published([sender], [(0, 7, [4, 5, 6])])) == 1
