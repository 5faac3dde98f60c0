"""Whether what a broker tells about itself is well formed."""

from __future__ import annotations

import dataclasses
import typing

from wshub.brokers.interface import Broker, BrokerHealth, BrokerState, BrokerStats
from wshub.testing.broker_nodes import require

__all__ = ["check_durations", "check_health", "check_stats"]


def check_health(broker: Broker, *, connected: bool) -> None:
    """Check the form of the health, and whether it is that of a connected broker."""
    health = broker.health()
    require(isinstance(health, BrokerHealth), f"health() returned {health!r}")
    require(health.state in typing.get_args(BrokerState), f"the state is {health.state!r}")
    require(health.ok == (health.state == "connected") == connected, f"the health is {health}")
    require(isinstance(health.reason, str), f"the reason is {health.reason!r}")
    require(bool(health.reason) != connected, f"the reason says why the state is not `connected`: {health}")
    require(type(health.pending_bytes) is int and health.pending_bytes >= 0, f"pending_bytes: {health.pending_bytes!r}")
    require(health.probe_ms is None or health.probe_ms >= 0, f"probe_ms: {health.probe_ms!r}")


def check_stats(broker: Broker) -> None:
    """Check that the counts are a BrokerStats, and that they are numbers."""
    stats = broker.stats()
    require(isinstance(stats, BrokerStats), f"stats() returned {stats!r}")
    counts = dataclasses.asdict(stats)
    reasons_of = {name: counts.pop(name) for name in ("dropped", "interruptions")}
    # None stands for a count that the broker does not have.
    optional = {field.name for field in dataclasses.fields(BrokerStats) if field.default is None}
    for name, value in counts.items():
        if value is None and name in optional:
            continue
        require(type(value) is int and value >= 0, f"stats().{name} is {value!r}")
    for reasons in reasons_of.values():
        for reason, number in reasons.items():
            require(isinstance(reason, str) and reason, f"a reason is {reason!r}")
            require(type(number) is int and number >= 0, f"the count for {reason!r} is {number!r}")


def check_durations(durations: list[float]) -> None:
    """Check that calls do not wait. A busy machine stalls some of them, so only the median counts."""
    median = sorted(durations)[len(durations) // 2]
    require(median < 0.001, f"half of the calls of send() took {median * 1000:.1f} ms and more")
