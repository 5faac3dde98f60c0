"""The decisions of keepalive.pyx and rates.pyx as Python functions, for tests. Structures are dicts of their fields."""

from collections.abc import Mapping, Sequence

def first_deadlines_of(now: float, spread: float, timeouts: Mapping[str, float]) -> dict[str, float]:
    """The state that first_deadlines() gives."""

def stalled(
    state: Mapping[str, float], progress: str, now: float, send_timeout: float
) -> tuple[bool, dict[str, float]]:
    """The result of is_stalled(), and the state after it."""

def verdict_of(
    state: Mapping[str, float], facts: Mapping[str, object], now: float, timeouts: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """The name of the verdict of judge(), and the state after it."""

def refilled(left: Sequence[float], rates: Sequence[tuple[float, float]], elapsed: float) -> tuple[list[float], bool]:
    """The buckets after refill_buckets(), and what it returns. Each rate is a pair: per second, at most."""

def response_for(state: str, kind: str, closes_at_rate: bool) -> str:
    """The name of the response of response_to()."""
