"""How much a connection may do in a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wshub.protocol.validation import check_choice, check_integer

__all__ = ["RateLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """What each connection may do in a second; 0 is no bound. Immutable; raises ``ConfigurationError`` when made with a
    value that cannot be.

    Each is a token bucket that the hub's sweep fills again, at least every tenth of a second where there is a bound on
    messages, octets or time.
    """

    messages: int = 0
    """Text and binary messages received."""

    octets: int = 0
    """Octets received, of frames of all kinds, headers included."""

    control_frames: int = 100
    """Pings and pongs received."""

    handler_ms: int = 0
    """Milliseconds that ``on_message`` takes of the event loop, up to its first ``await``."""

    burst_ms: int = 2_000
    """What may be saved up: what a connection may do in that many milliseconds, all at once; what it may do from one
    sweep to the next at the least."""

    excess: Literal["delay", "close"] = "delay"
    """What happens to who exceeds one of these: nothing more is read until enough time has passed, or the connection is
    closed with 1008."""

    def __post_init__(self) -> None:
        for name, largest in (("messages", 2**24), ("octets", 2**40), ("control_frames", 2**24), ("handler_ms", 1000)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 0, largest))
        object.__setattr__(self, "burst_ms", check_integer("burst_ms", self.burst_ms, 1, 3_600_000))
        object.__setattr__(self, "excess", check_choice("excess", self.excess, ("delay", "close")))

    @property
    def sweep_period(self) -> float:
        """Seconds from one sweep to the next at the most: who is delayed should not have to wait for a whole second."""
        return 0.1 if self.messages or self.octets or self.handler_ms else 1.0
