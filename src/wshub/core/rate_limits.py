"""The settings that limit what a connection may do per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wshub.protocol.validation import check_choice, check_integer

__all__ = ["RateLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits on what each connection may do per second. 0 means no limit.

    Immutable. Raises ``ConfigurationError`` for an invalid value. Each limit is a token bucket that the hub's sweep
    refills: at least every tenth of a second if messages, bytes or handler time are limited.
    """

    messages: int = 0
    """Text and binary messages received per second."""

    bytes: int = 0
    """Bytes received per second, in frames of all kinds, including their headers."""

    control_frames: int = 100
    """Pings and pongs received per second."""

    handler_ms: int = 0
    """Milliseconds per second that ``on_message`` may take of the event loop, up to its first ``await``."""

    burst_ms: int = 2_000
    """Milliseconds of unused allowance that a connection can save up; at least the time between two sweeps."""

    excess: Literal["delay", "close"] = "delay"
    """``"delay"`` stops reading from a connection that exceeds a limit until enough time has passed. ``"close"`` closes
    it with 1008."""

    def __post_init__(self) -> None:
        for name, largest in (("messages", 2**24), ("bytes", 2**40), ("control_frames", 2**24), ("handler_ms", 1000)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0, largest))
        object.__setattr__(self, "burst_ms", check_integer("burst_ms", self.burst_ms, 1, 3_600_000))
        object.__setattr__(self, "excess", check_choice("excess", self.excess, ("delay", "close")))

    @property
    def sweep_period(self) -> float:
        """Maximum seconds from one sweep to the next. It is short if a connection may have to wait for a sweep."""
        return 0.1 if self.messages or self.bytes or self.handler_ms else 1.0
