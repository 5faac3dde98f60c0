"""The cluster: the hubs that a broker joins to this one.

The hub keeps the broker's subscriptions in step with its rooms and users, and sweeps it. commands.py has what the hubs
ask of one another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar

from wshub.brokers.interface import Broker, NodeInfo, Published
from wshub.core.cluster_commands import ClusterCommands
from wshub.core.cluster_surveys import Answer
from wshub.core.cluster_types import ClusterStats, HasMembers
from wshub.core.remote_messages import RemoteMessages
from wshub.errors import BrokerError, BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from wshub.core.histories import Histories
    from wshub.core.hub_core import HubCore
    from wshub.links.reactor_api import Reactor

__all__ = ["Cluster"]

logger = logging.getLogger("wshub.broker")

UNSUBSCRIBE_DELAY = 1.0
"""Seconds for which a room without members stays subscribed. Rooms often lose a member, and soon get one."""


START_PATIENCE = 5.0
"""Seconds, from the hub's first use on, for which a message that is published waits until the broker has started."""

Argument = TypeVar("Argument")


class Cluster(RemoteMessages):
    """A hub's side of its broker: the ``BrokerEvents``, and the subscriptions.

    Args:
        hub: bound to the running loop.
        broker: that joins the hub to others.
        name: of the hub.
        reactor: of the hub.
        answers: what the application answers surveys with, by topic.
    """

    def __init__(self, hub: HubCore, broker: Broker, name: str, reactor: Reactor, answers: dict[str, Answer]) -> None:
        self.info = NodeInfo.of_this_process(name)
        super().__init__(hub, int(self.info.id, 16), broker.send)
        self.broker = broker
        self.reactor = reactor
        self.commands = ClusterCommands(self, hub, answers)
        self.histories: Histories | None = None
        """The rooms whose messages the broker keeps."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        # Rooms that have got their first member or lost their last one in this iteration of the loop, by channel.
        self._changed: dict[str, HasMembers] = {}
        # Whether a change was not noted, so that all rooms have to be looked at.
        self._missed_changes = False
        self._subscribed: set[str] = set()
        # Rooms without members that are still subscribed, with the time at which that ends.
        self._empty: dict[str, tuple[HasMembers, float]] = {}
        self._interruptions: dict[str, int] = {}
        self._starting: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._patient_until = self._loop.time() + START_PATIENCE

    # For the hub

    def start(self, after: asyncio.Task[None] | None) -> None:
        """Have the broker start, once a task that closes it has ended."""
        self._starting = self._loop.create_task(self._start(after))

    async def _start(self, after: asyncio.Task[None] | None) -> None:
        try:
            if after is not None:
                await asyncio.wait([after])
            await self.broker.start(self.info, self)
        except ConfigurationError as error:
            logger.error("the hub stays alone, its broker cannot work: %s", error)
            self._stay_alone(error)
        except Exception as error:
            logger.exception("the hub stays alone, its broker has failed")
            self._stay_alone(BrokerUnavailable(f"the broker has failed: {error}"))
        else:
            self._started.set_result(None)
            self.commands.greet()

    def _stay_alone(self, error: Exception) -> None:
        self.broker_send = None
        if not self._started.done():
            self._started.set_exception(error)
            # Perhaps nothing waits for it.
            self._started.exception()

    async def wait_started(self) -> None:
        """Return when the broker has started. Raises what has kept it from that."""
        await asyncio.shield(self._started)

    async def wait_patiently(self) -> None:
        """Return when the broker has started, or has not done so in the first seconds. Raises as ``wait_started``."""
        if not self._started.done():
            await asyncio.wait([self._started], timeout=max(self._patient_until - self._loop.time(), 0))
        if self._started.done():
            self._started.result()

    async def close(self, timeout: float) -> None:
        """Tell the other nodes, and close the broker. It takes at most twice the timeout, in seconds."""
        was_alone = not self.has_broker
        self.commands.close()
        self._stay_alone(BrokerUnavailable("the hub has closed"))
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting], timeout=timeout)
        if was_alone:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.broker.close()
        except TimeoutError:
            logger.error("the broker was not closed within %.0f s", timeout)
        except Exception:
            logger.exception("the broker could not be closed")

    def sweep(self, now: float) -> None:
        """Unsubscribe from rooms that have stayed empty, and have the broker and the commands do what is due."""
        if not self.has_broker:
            return
        if self._missed_changes:
            self._missed_changes = False
            self._changed.update({room.channel: room for room in self._hub._subscribed_rooms()})
            self._update_subscriptions()
        for channel, (room, due) in tuple(self._empty.items()):
            if due <= now:
                del self._empty[channel]
                if not room.has_members:
                    self._subscribed.discard(channel)
                    self._call(self.broker.unsubscribe, channel)
        self.measure_lag()
        self._call(self.broker.sweep, now)
        self.commands.sweep(now)

    def _call(self, function: Callable[[Argument], object], argument: Argument) -> bool:
        """Call a method of the broker. Return False if it has raised, which is logged once."""
        try:
            function(argument)
        except Exception:
            self.log_failure()
            return False
        return True

    def members_changed(self, room: HasMembers) -> None:
        """Note that a room has got its first member or has lost its last one. Nothing is raised."""
        try:
            if not self._changed:
                self._loop.call_soon(self._update_subscriptions)
            self._changed[room.channel] = room
        except (MemoryError, RuntimeError):
            # There is no memory, or no loop any more. The sweep looks at all rooms.
            self._missed_changes = True

    def _update_subscriptions(self) -> None:
        changed, self._changed = self._changed, {}
        if not self.has_broker:
            return
        for channel, room in changed.items():
            self._empty.pop(channel, None)
            if room.has_members:
                if channel not in self._subscribed and self._call(self.broker.subscribe, channel):
                    self._subscribed.add(channel)
            elif channel in self._subscribed:
                self._empty[channel] = (room, self._hub.now() + UNSUBSCRIBE_DELAY)

    async def subscribed(self, channel: str) -> None:
        """Return when messages to a channel, which has members here, arrive from every node."""
        await self.wait_patiently()
        self._update_subscriptions()
        await self.broker.subscribed(channel)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Give an envelope to the broker, and return when the broker has it. Raises ``BrokerError``."""
        try:
            had_started = self._started.done()
            await self.wait_patiently()
            if not had_started:
                envelope = self.renumbered(envelope)
            return await self.broker.publish(channel, envelope)
        except (BrokerError, ConfigurationError):
            self.rejected_count += 1
            raise

    def stats(self) -> ClusterStats:
        """Return the counts."""
        lag = self.lag_seconds
        health = self.broker.health()
        return ClusterStats(
            node=self.info.id,
            nodes=len(self.commands.nodes) + 1,
            published=self.sent_count,
            rejected=self.rejected_count,
            received=self.received_count,
            delivered=self.delivered_count,
            ignored=self.ignored_counts,
            interruptions=dict(self._interruptions),
            lag_ms=lag * 1000 if lag is not None else None,
            probe_ms=health.probe_ms,
            connected=health.ok,
            broker=self.broker.stats(),
        )

    # For the broker: BrokerEvents

    def now(self) -> float:
        """Return the time by the hub's clock."""
        return self._hub.now()

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        """Count that messages from other nodes may have been lost."""
        self._interruptions[reason] = self._interruptions.get(reason, 0) + 1
        if self.histories is not None:
            self.histories.interrupted(channels)
        if self._hub._watches is not None:
            self._hub._watches.interrupted(channels)

    def restored(self, channels: Collection[str] | None) -> None:
        """Note that messages arrive again. Rooms with history read what they have missed."""
        if self.histories is not None:
            self.histories.restored(channels)

    def control_received(self, node: int, body: bytes) -> None:
        """Take a command of another node."""
        self.commands.received(f"{node:016x}", body)
