"""A broker with what a hub would have, and a record of what it was called with."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Protocol

from wshub.brokers.interface import Broker, NodeInfo
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor

SWEEP_SECONDS = 0.05


class BrokerNode:
    """The hub's side of a broker: the BrokerEvents. Envelopes are any bytes.

    The hub's clock goes on with time. ``skip()`` sets it forward, so that no test waits for a time-out.
    """

    def __init__(self, broker: Broker, hub: str) -> None:
        self.broker = broker
        self.info = NodeInfo(id=secrets.token_hex(8), hub=hub)
        self.reactor = create_reactor(asyncio.get_running_loop(), LinkCounters(), native=True, clock=time.monotonic)
        self.log: list[tuple[Any, ...]] = []
        """All calls, in order: ``("received", envelope)``, ``("interrupted", channels, reason)``, ..."""
        self._skipped = 0.0
        self._held: float | None = None
        self._sweeper: asyncio.Task[None] | None = None

    # BrokerEvents

    def now(self) -> float:
        return (time.monotonic() if self._held is None else self._held) + self._skipped

    def receive(self, envelope: bytes) -> None:
        self.log.append(("received", envelope))

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        self.log.append(("interrupted", None if channels is None else sorted(channels), reason))

    def restored(self, channels: Collection[str] | None) -> None:
        self.log.append(("restored", None if channels is None else sorted(channels)))

    # For tests

    @property
    def received(self) -> list[bytes]:
        """The envelopes, in the order of their arrival."""
        return [event[1] for event in self.log if event[0] == "received"]

    @property
    def interruptions(self) -> list[tuple[Any, ...]]:
        """The channels and the reason of each interruption."""
        return [event[1:] for event in self.log if event[0] == "interrupted"]

    @property
    def restored_channels(self) -> set[str]:
        return {channel for event in self.log if event[0] == "restored" for channel in event[1]}

    async def start(self) -> None:
        self._sweep_always()
        await self.broker.start(self.info, self)

    def _sweep_always(self) -> None:
        """Have the broker sweep every now and then, from now on."""

        async def sweep() -> None:
            while True:
                self.broker.sweep(self.now())
                await asyncio.sleep(SWEEP_SECONDS)

        self._sweeper = asyncio.get_running_loop().create_task(sweep())

    def skip(self, seconds: float) -> None:
        """Set the hub's clock forward."""
        self._skipped += seconds

    def hold(self) -> None:
        """Have the hub's clock stand still from now on."""
        self._held = time.monotonic()

    async def join(self, *channels: str) -> None:
        """Subscribe to channels, and return when the engine has acknowledged them."""
        for channel in channels:
            self.broker.subscribe(channel)
        for channel in channels:
            await self.broker.subscribed(channel)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        await self.broker.close()
        self.reactor.release()


async def until(condition: Callable[[], object]) -> None:
    """Return when a condition holds. The time limit of the test bounds it."""
    while not condition():
        await asyncio.sleep(0.002)


class Skipping(Protocol):
    """A node whose clock a test sets forward."""

    def skip(self, seconds: float) -> None: ...


async def until_in_time_of(node: Skipping, condition: Callable[[], object]) -> None:
    """Return when a condition holds. The node's clock goes on by seconds, and its engine answers meanwhile."""
    while not condition():
        node.skip(1)
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def joined(broker: Broker, *channels: str, hub: str = "hub") -> AsyncIterator[BrokerNode]:
    """Start a broker that has subscribed to channels, and close it at the end of the block."""
    node = BrokerNode(broker, hub)
    try:
        await node.start()
        await node.join(*channels)
        yield node
    finally:
        await node.close()
