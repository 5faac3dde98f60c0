"""Whether each message that is missing at a client was counted, and where."""

from __future__ import annotations

from typing import Any

from tests.soak.cluster.client import Gap
from tests.soak.cluster.wire import PUBLISHED, RETURNED

__all__ = ["NodeRecord", "check_gaps", "check_published"]

NOTICED_SECONDS = 40
"""Seconds after which a node has counted that a message was not delivered."""


class NodeRecord:
    """The reports of one node."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.memory: list[tuple[float, int, int]] = []
        """Seconds, the resident memory in bytes, and the blocks that Python has allocated."""
        self.outcomes: dict[tuple[int, int], str] = {}
        """The outcome of each publish(), by room and number."""
        self._dropped: list[tuple[float, int]] = [(0.0, 0)]

    def add(self, report: dict[str, Any]) -> None:
        """Take a report."""
        self.last = report
        for room, sequence, outcome in report["outcomes"]:
            self.outcomes[room, sequence] = outcome
        self.memory.append((report["time"], report["resident"], report["blocks"]))
        if self.dropped != self._dropped[-1][1]:
            self._dropped.append((report["time"], self.dropped))

    @property
    def dropped(self) -> int:
        """Envelopes that were not delivered to the engine, or perhaps not."""
        return sum(self.last["cluster"]["broker"]["dropped"].values())

    def has_dropped(self, since: float, until: float) -> bool:
        """Whether the node counted drops in this time."""
        return any(since <= time <= until for time, _ in self._dropped)


def check_gaps(nodes: list[NodeRecord], gaps: list[Gap]) -> list[str]:
    """Return what is wrong with gaps that no interruption of the receiving node explains.

    The sending node must have counted drops at that time, and all in all as many as messages are missing.
    """
    failures = []
    missing: list[set[tuple[int, int, int]]] = [set() for _ in nodes]
    for gap in gaps:
        sender = nodes[gap.node]
        if gap.receiver == gap.node:
            failures.append(f"a client misses messages of its own node: {gap}")
        elif not sender.has_dropped(gap.since, gap.until + NOTICED_SECONDS):
            failures.append(f"nothing was counted: {gap}")
        elif gap.way == PUBLISHED:
            outcomes = {
                sequence: sender.outcomes.get((gap.number, sequence), "not ended")
                for sequence in range(gap.first, gap.last + 1)
            }
            if any(outcome.startswith(RETURNED) or outcome == "not ended" for outcome in outcomes.values()):
                failures.append(f"publish() has not failed for a message that is missing: {gap}: {outcomes}")
        missing[gap.node].update((gap.way, gap.number, sequence) for sequence in range(gap.first, gap.last + 1))
    for number, (node, lost) in enumerate(zip(nodes, missing, strict=True)):
        if len(lost) > node.dropped:
            failures.append(f"{len(lost)} messages of node {number} are missing, it has counted {node.dropped}")
    return failures


def check_published(nodes: list[NodeRecord], heard: list[tuple[int, int, list[int]]]) -> list[str]:
    """Return the messages that others have received though publish() has said that none would.

    Args:
        nodes: what they have reported.
        heard: node, room, and the numbers of the messages that clients of other nodes have received.
    """
    failures = []
    for number, room, sequences in heard:
        outcomes = nodes[number].outcomes
        failures += [
            f"message {sequence} of node {number} to room {room} was received, and publish() said unavailable"
            for sequence in sequences
            if outcomes.get((room, sequence)) == "unavailable"
        ]
    return failures
