"""Brokers in memory, and all faults that the checks of brokers know."""

from __future__ import annotations

from wshub.brokers.interface import Broker
from wshub.brokers.memory import MemoryEngine
from wshub.testing.check_broker import BrokerFaults


class MemoryFaults(BrokerFaults):
    """Every fault, caused in a ``MemoryEngine``."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine

    async def stop(self) -> None:
        self.engine.stop()

    async def cut(self, broker: Broker) -> None:
        self.engine.cut(broker)

    async def freeze(self) -> None:
        self.engine.freeze()

    async def deafen(self, broker: Broker) -> None:
        self.engine.deafen(broker)

    async def mute(self, broker: Broker) -> None:
        self.engine.mute(broker)

    async def refuse(self, broker: Broker, channel: str) -> None:
        self.engine.refuse(channel)

    async def forget(self, broker: Broker, channel: str) -> None:
        self.engine.forget(broker, channel)

    async def heal(self) -> None:
        self.engine.heal()
