"""Subscriptions at the engines of a cluster: each channel at the engine that owns its partition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set

from wshub.brokers.redis_partitions import ShardedNames
from wshub.brokers.redis_session import RedisSession
from wshub.brokers.redis_subscriptions import ChannelMoved
from wshub.errors import BrokerUnavailable, MisuseError

__all__ = ["REST_SECONDS", "ClusterSubscriptions"]

# Seconds in which an engine must say that it has lost a slot which another engine has.
LEAVING_SECONDS = 2.0

# Seconds between an engine and one that has been its replica. The old primary passes messages on to the new one. Those
# that arrive after later ones are rejected, so they get some time.
REST_SECONDS = 0.2


class ClusterSubscriptions:
    """Keeps each channel at the engine that owns its partition.

    A partition goes to its new owner once the old one brings no more messages of it. So no message of the new owner
    overtakes one of the old owner.

    Args:
        names: of the channels.
        owners: the session at the engine that owns each partition, or None. Its owner changes it.
        wanted: channels that are wanted already.
        now: returns the time in seconds.
        are_mates: returns whether one of two engines has been a replica of the other one.
    """

    def __init__(
        self,
        names: ShardedNames,
        owners: list[RedisSession | None],
        wanted: Iterable[str],
        now: Callable[[], float],
        are_mates: Callable[[RedisSession, RedisSession | None], bool],
    ) -> None:
        self._names = names
        self._owners = owners
        self._now = now
        self._are_mates = are_mates
        # The session that has the channels of each partition.
        self._holders: list[RedisSession | None] = [None] * len(owners)
        # Channels of partitions that no engine has, and those of them that were interrupted.
        self._unplaced = set(wanted)
        self._unplaced_interrupted: set[str] = set()
        # Partitions that rest, and until when.
        self._resting: dict[int, float] = {}
        # Partitions whose old owner may still bring messages, and until when it may.
        self._leaving: dict[int, float] = {}

    def want(self, channel: str) -> None:
        """Subscribe to a channel, and go on until the engine has acknowledged it."""
        holder = self._holders[self._names.group(channel)]
        if holder is None:
            self._unplaced.add(channel)
        else:
            holder.subscriptions.want(channel)

    def unwant(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        holder = self._holders[self._names.group(channel)]
        if holder is None:
            self._unplaced.discard(channel)
            self._unplaced_interrupted.discard(channel)
        else:
            holder.subscriptions.unwant(channel)

    async def wait(self, channel: str) -> None:
        """Return when an engine has acknowledged a channel. It raises what ``Subscriptions.wait()`` raises."""
        while True:
            holder = self._holders[self._names.group(channel)]
            if holder is None:
                if channel not in self._unplaced:
                    raise MisuseError(
                        f"call subscribe() before subscribed(): the channel {channel!r} is not subscribed to"
                    )
                raise BrokerUnavailable("no engine of the cluster owns the channel")
            try:
                return await holder.subscriptions.wait(channel)
            except ChannelMoved:
                continue

    def is_subscribed(self, channel: str) -> bool:
        """Return whether an engine has acknowledged the channel."""
        holder = self._holders[self._names.group(channel)]
        return holder is not None and holder.subscriptions.is_subscribed(channel)

    def holds(self, session: RedisSession) -> bool:
        """Return whether the session has channels of a partition, or may still bring messages of one."""
        return session in self._holders

    @property
    def unplaced_count(self) -> int:
        """The number of channels that no engine has."""
        return len(self._unplaced)

    def wanted_in(self, partitions: Set[int]) -> list[str]:
        """Return the wanted channels of some partitions that an engine has."""
        holders = {self._holders[partition] for partition in partitions} - {None}
        return [
            channel
            for holder in holders
            if holder is not None
            for channel in holder.subscriptions.wanted
            if self._names.group(channel) in partitions
        ]

    # Changes of owners

    def follow(self, partitions: Collection[int], *, silent: Set[int] = frozenset()) -> None:
        """Bring the channels of some partitions to their owners.

        Args:
            partitions: that may have another owner.
            silent: those of which the old owner has said that it brings no more messages.
        """
        moves: dict[RedisSession | None, set[int]] = {}
        until = self._now() + LEAVING_SECONDS
        for partition in list(partitions):
            holder = self._holders[partition]
            if holder is self._owners[partition]:
                self._leaving.pop(partition, None)
            elif self._resting.get(partition, 0.0) <= self._now():
                moves.setdefault(holder, set()).add(partition)
        for holder, moved in moves.items():
            live = set() if holder is None else holder.subscriptions.live_groups(moved) - silent
            for partition in live:
                self._leaving.setdefault(partition, until)
            self._transfer(holder, moved - live)

    def follow_all(self, holder: RedisSession) -> None:
        """Bring the channels of partitions that a session has lost to their owners: it brings no more messages."""
        lost = {partition for partition in range(len(self._holders)) if self._holders[partition] is holder}
        self.follow(lost, silent=lost)

    def _transfer(self, holder: RedisSession | None, partitions: Set[int]) -> None:
        """Have the owners want the channels of some partitions, in place of the holder."""
        if not partitions:
            return
        if holder is not None:
            channels, interrupted = holder.subscriptions.release(partitions)
            self._unplaced.update(channels)
            self._unplaced_interrupted |= interrupted
        for partition in partitions:
            self._leaving.pop(partition, None)
            self._resting.pop(partition, None)
            if holder is not None and self._are_mates(holder, self._owners[partition]):
                self._resting[partition] = self._now() + REST_SECONDS
                self._holders[partition] = None
            else:
                self._holders[partition] = self._owners[partition]
        by_holder: dict[RedisSession, list[str]] = {}
        for channel in self._unplaced:
            placed = self._holders[self._names.group(channel)]
            if placed is not None:
                by_holder.setdefault(placed, []).append(channel)
        for placed, channels in by_holder.items():
            placed.subscriptions.adopt(channels, self._unplaced_interrupted.intersection(channels))
            self._unplaced.difference_update(channels)
            self._unplaced_interrupted.difference_update(channels)

    def sweep(self, now: float) -> None:
        """Bring on what has rested, and end connections that bring messages of slots of other engines for long."""
        if self._resting:
            self.follow(self._resting.keys())
        if not self._leaving:
            return
        self.follow(self._leaving.keys())
        late = {self._holders[partition] for partition, until in self._leaving.items() if until <= now}
        for holder in late:
            if holder is not None:
                holder.leave_subscriptions()
