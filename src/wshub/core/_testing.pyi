"""The decisions of keepalive.pyx and rates.pyx as Python functions, for tests. Structures are dicts of their fields."""

from collections.abc import Mapping, Sequence

def first_deadlines_of(now: float, spread: float, timeouts: Mapping[str, float]) -> dict[str, float]:
    """Return the state that first_deadlines() returns."""

def stalled(
    state: Mapping[str, float], progress: str, now: float, send_timeout: float
) -> tuple[bool, dict[str, float]]:
    """Return the result of is_stalled(), and the state after it."""

def verdict_of(
    state: Mapping[str, float], facts: Mapping[str, object], now: float, timeouts: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """Return the name of the verdict of judge(), and the state after it."""

def refilled(left: Sequence[float], rates: Sequence[tuple[float, float]], elapsed: float) -> tuple[list[float], bool]:
    """Return the buckets after refill_buckets(), and its result. Each rate is a pair: per second, at most."""

def response_for(state: str, kind: str, closes_at_rate: bool) -> str:
    """Return the name of the response of response_to()."""
