"""The faults that the author of a broker can offer to the checks."""

from __future__ import annotations

from wshub.brokers.interface import Broker

__all__ = ["FAULTS", "BrokerFaults", "CheckNotRunError"]

FAULTS = ("stop", "cut", "freeze", "deafen", "mute", "refuse", "forget")


class CheckNotRunError(Exception):
    """A check needs a fault that is not offered. It has neither passed nor failed."""


class BrokerFaults:
    """Breaks what is between the brokers and their engine.

    Derive a class, and override the faults that you can cause; leave the others out. A check that needs one of those is
    not run. Where there is no engine, such as between the workers of a machine, a broker's connections are those to its
    peers.

    Each method returns once the fault is in force. ``cut`` and ``forget`` happen once; the others last until
    ``heal()``.
    """

    async def stop(self) -> None:
        """End the engine, and refuse connections to it. It forgets all subscriptions, as if its process had died."""
        raise NotImplementedError

    async def cut(self, broker: Broker) -> None:
        """End all connections of the broker, such as by ``CLIENT KILL`` or a reset. It may connect again at once."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """Have the engine take nothing more, as if its process were stopped. Connections stay open."""
        raise NotImplementedError

    async def deafen(self, broker: Broker) -> None:
        """Lose, or hold back, all bytes to the broker. Its connections stay open, and new ones are deaf too."""
        raise NotImplementedError

    async def mute(self, broker: Broker) -> None:
        """Lose, or hold back, all bytes from the broker. Its connections stay open, and new ones are mute too."""
        raise NotImplementedError

    async def refuse(self, broker: Broker, channel: str) -> None:
        """Have the engine refuse new subscriptions of the broker to the channel."""
        raise NotImplementedError

    async def forget(self, broker: Broker, channel: str) -> None:
        """Have the engine lose the broker's subscription to the channel, without a word to the broker."""
        raise NotImplementedError

    async def heal(self) -> None:
        """End every fault: start the engine, carry bytes again, allow every subscription.

        Return when a new connection would be accepted. The checks call it after each fault, and once more at their end.
        """
        raise NotImplementedError


def offers(faults: object, name: str) -> bool:
    """Return whether the object has the fault, and not only the method that ``BrokerFaults`` stands in with."""
    return getattr(type(faults), name, None) not in (None, getattr(BrokerFaults, name))
