"""The members of rooms, which the engines of a cluster keep for the nodes of a hub."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.redis_key_commands import KeyCommands
from wshub.brokers.redis_partitions import ShardedNames
from wshub.brokers.redis_presences import RedisPresences
from wshub.errors import BrokerError

__all__ = ["ClusterPresences"]

Answer = TypeVar("Answer")

# Groups of partitions. A node has a beat in each of them, so they are few. Each engine has some of them.
GROUPS = 16


class ClusterPresences:
    """Keeps entries in a cluster. The methods are those of ``PresenceBroker``.

    A script changes keys of one slot. So neighbouring partitions form a group: all entries of their channels are in the
    slot of the group's first partition, with beats and dead nodes of its own. While the engine of a group cannot be
    reached, the other groups go on.

    Args:
        names: the names of keys in the engines.
        calls: the engines.
        node: the id of the node.
    """

    def __init__(self, names: ShardedNames, calls: KeyCommands, node: str) -> None:
        self._names = names
        number = names.partitions.number
        self._size = -(-number // GROUPS)
        self._groups = [RedisPresences(names, calls, node, first) for first in range(0, number, self._size)]
        self._epochs = [""] * len(self._groups)
        self._epoch = ""
        # Entries that were added since the last beat was sent. An engine may have answered the beat before.
        self._entered: set[str] = set()
        # The groups that have entries of each dead node.
        self._dead: dict[str, list[RedisPresences]] = {}

    def _number(self, channel: str) -> int:
        return self._names.group(channel) // self._size

    def _group(self, channel: str) -> RedisPresences:
        return self._groups[self._number(channel)]

    async def enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node."""
        outcome = await self._group(channel).enter(channel, entries)
        self._entered.update(entry.id for entry in entries)
        return outcome

    async def leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node."""
        return await self._group(channel).leave(channel, entries)

    async def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel."""
        return await self._group(channel).read(channel, cursor, limit)

    async def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and of users of a channel."""
        return await self._group(channel).counts(channel)

    async def beat(self, *, is_leaving: bool) -> Beat:
        """Say in all groups that this node lives, or that it is about to end. It fails if it fails in all groups."""
        self._entered = set()
        answers = await asyncio.gather(
            *(group.beat(is_leaving=is_leaving) for group in self._groups), return_exceptions=True
        )
        beats = without_failures(answers)
        # Groups that have lost all entries, and those that have only forgotten this node.
        lost: set[int] = set()
        forgetful: set[int] = set()
        self._dead.clear()
        for number, beat in beats.items():
            if not beat.is_known:
                (forgetful if beat.epoch == self._epochs[number] else lost).add(number)
            self._epochs[number] = beat.epoch
            for node in beat.dead:
                self._dead.setdefault(node, []).append(self._groups[number])
        # One beat can say only one of both: that all is lost, or that members have left.
        if lost:
            self._epoch = "".join(self._epochs)
            for number in forgetful:
                self._groups[number].forget_answer()
        anew = lost or forgetful
        counts = [beat.entry_count for beat in beats.values() if beat.entry_count is not None]
        return Beat(
            not anew,
            self._epoch,
            tuple(self._dead),
            kept=frozenset(self._entered.union(*(beats[number].kept for number in anew))),
            entry_count=sum(counts) if len(counts) == len(self._groups) else None,
            concerns=lambda channel: self._number(channel) in anew,
        )

    async def take_over(self, node: str) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of this one. A group that fails is asked again after the next beat."""
        groups = self._dead.get(node, [])
        answers = await asyncio.gather(*(group.take_over(node) for group in groups), return_exceptions=True)
        return [entry for taken in without_failures(answers).values() for entry in taken]

    async def own(self) -> list[tuple[str, PresenceEntry]]:
        """Return the entries of this node."""
        found = await asyncio.gather(*(group.own() for group in self._groups))
        return [entry for entries in found for entry in entries]


def without_failures(answers: list[Answer | BaseException]) -> dict[int, Answer]:
    """Return the answers by their index, without those that are errors of an engine. Raise an error if all are."""
    found: dict[int, Answer] = {}
    failure: BaseException | None = None
    for index, answer in enumerate(answers):
        if not isinstance(answer, BaseException):
            found[index] = answer
        elif not isinstance(answer, BrokerError):
            raise answer
        else:
            failure = failure or answer
    if failure is not None and not found:
        raise failure
    return found
