"""The counts of a channel layer."""

from __future__ import annotations

from dataclasses import dataclass

from wshub.brokers.interface import BrokerHealth, BrokerStats

__all__ = ["ChannelLayerStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLayerStats:
    """The counts of a channel layer in this process.

    A message to a group counts once for each channel of this process that is in the group.
    """

    queued: int
    """Messages that were put into a channel of this process."""

    full: int
    """Messages that found a channel of this process full."""

    expired: int
    """Messages that nothing has read in time."""

    unreachable: int
    """Messages to a channel of a process that has ended."""

    unreadable: int
    """Envelopes from the broker that this version of wshub cannot read."""

    waiting: int
    """Messages that wait to be read now."""

    groups: int
    """Groups that have a channel of this process now."""

    broker: BrokerStats | None = None
    """The counts of the broker; None if there is no broker, or it was not needed yet."""

    health: BrokerHealth | None = None
    """The state of the broker; None as for ``broker``."""
