"""Histories of channels in the memory of a process.

A hub without a broker keeps the histories of its rooms here. A worker keeps those of the rooms that it owns, and the
engine in memory keeps all. Time is given from outside.
"""

from __future__ import annotations

import random
import string
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from wshub.brokers.envelope import mark_of
from wshub.brokers.history_interface import HistoryQuery, StoredEnvelope, StoredHistory
from wshub.brokers.interface import Gap, HistoryConfig, Position

__all__ = ["EPOCH_LENGTH", "IDEMPOTENCY_SECONDS", "HistoryPart", "HistoryStore", "Stored", "new_epoch", "select"]

EPOCH_LENGTH = 8

IDEMPOTENCY_SECONDS = 300.0
"""Seconds for which an idempotency key is known."""


class Stored(NamedTuple):
    """The outcome of storing an envelope."""

    position: Position
    previous: int
    """The offset before it."""
    is_duplicate: bool = False


class HistoryPart(NamedTuple):
    """A part of a history, for another store. Times are the rest of them, since the clocks of two programs differ."""

    name: str
    """The channel."""
    position: Position
    """That of the newest envelope."""
    forgets_in_ms: int
    ends_in_ms: int
    keys: tuple[tuple[str, int, int], ...]
    """Idempotency keys, the oldest first: the milliseconds until each is forgotten, and the offset of its envelope."""
    envelopes: tuple[StoredEnvelope, ...]


def new_epoch() -> str:
    """Return the name of an epoch. Two of them differ, as far as chance goes."""
    return "".join(random.choices(string.ascii_lowercase, k=EPOCH_LENGTH))


def select(kept: Iterator[StoredEnvelope], query: HistoryQuery) -> tuple[StoredEnvelope, ...]:
    """Return the first envelopes within the limits of a query. The first one is returned whatever its size."""
    chosen: list[StoredEnvelope] = []
    size = 0
    for stored in islice(kept, query.limit):
        size += len(stored.envelope)
        if chosen and size > query.max_bytes:
            break
        chosen.append(stored)
    return tuple(chosen)


@dataclass(slots=True)
class Channel:
    """The history of one channel."""

    epoch: str
    offset: int
    """That of the newest envelope that was ever stored."""
    kept: deque[StoredEnvelope]
    size: int
    """Bytes of the envelopes that are kept."""
    forgets_at: float
    """When the envelopes are forgotten."""
    ends_at: float
    """When the epoch ends."""
    keys: OrderedDict[str, tuple[float, Position]]
    """The idempotency keys, the oldest first: when each is forgotten, and the position of its envelope."""
    forgotten_mark: bytes = b""
    """The mark of the envelope before the oldest one that is kept; empty if it is not known."""

    @property
    def oldest(self) -> int:
        """The offset of the oldest envelope that is kept, or of the next one."""
        return self.kept[0].offset if self.kept else self.offset + 1

    def mark_at(self, offset: int) -> bytes:
        """Return the mark of the envelope at an offset; empty if it is not known."""
        index = offset - self.oldest
        if 0 <= index < len(self.kept):
            return mark_of(self.kept[index].envelope)
        return self.forgotten_mark if index == -1 else b""

    def trim(self, config: HistoryConfig) -> None:
        """Forget the oldest envelopes, down to what the configuration allows."""
        while len(self.kept) > config.size or (self.size > config.max_bytes and len(self.kept) > 1):
            forgotten = self.kept.popleft().envelope
            self.size -= len(forgotten)
            self.forgotten_mark = mark_of(forgotten)

    def expire(self, now: float) -> None:
        """Forget what is too old at this time."""
        if now >= self.forgets_at and self.kept:
            self.forgotten_mark = self.mark_at(self.offset)
            self.kept.clear()
            self.size = 0
        while self.keys:
            key, (forgotten_at, _) = next(iter(self.keys.items()))
            if forgotten_at > now:
                break
            del self.keys[key]


def has_fallen_back(channel: Channel, since: Position, mark: bytes) -> bool:
    """Whether a reader has received an envelope at a position that the channel does not have there."""
    if since.epoch != channel.epoch:
        return False
    known = channel.mark_at(since.offset)
    return since.offset > channel.offset or (bool(mark and known) and mark != known)


def behind(channel: Channel, since: Position | None, *, reverse: bool) -> tuple[Gap, Iterator[StoredEnvelope]]:
    """Return the envelopes behind a position, or before it in reverse, and why some are missing."""
    kept = channel.kept
    if since is None:
        return "", reversed(kept) if reverse else iter(kept)
    if since.epoch != channel.epoch or since.offset > channel.offset:
        # Offsets beyond the newest one are of a history that was lost, too.
        return "epoch", iter(()) if reverse else iter(kept)
    # Offsets within the deque have no holes.
    if reverse:
        before = min(max(since.offset - channel.oldest, 0), len(kept))
        return "", islice(reversed(kept), len(kept) - before, None)
    missed = since.offset + 1 - channel.oldest
    return "trimmed" if missed < 0 else "", islice(kept, max(missed, 0), None)


class HistoryStore:
    """The histories of channels. All times are seconds by one clock."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def kept(self) -> int:
        """The number of envelopes that are kept."""
        # Another thread may ask, and meanwhile channels come and go.
        return sum(len(channel.kept) for channel in tuple(self._channels.values()))

    @property
    def kept_bytes(self) -> int:
        """The number of their bytes."""
        return sum(channel.size for channel in tuple(self._channels.values()))

    def store(self, name: str, envelope: bytes, config: HistoryConfig, now: float, key: str = "") -> Stored:
        """Give an envelope the next offset, and keep it. With a key that is known, nothing is stored."""
        channel = self._channel(name, config, now)
        if key:
            known = channel.keys.get(key)
            if known is not None:
                return Stored(known[1], known[1].offset, is_duplicate=True)
        previous = channel.offset
        channel.offset += 1
        channel.kept.append(StoredEnvelope(channel.offset, envelope))
        channel.size += len(envelope)
        channel.trim(config)
        channel.forgets_at = now + config.ttl_ms / 1000
        channel.ends_at = now + config.position_ttl_ms / 1000
        position = Position(channel.offset, channel.epoch)
        if key:
            channel.keys[key] = (now + IDEMPOTENCY_SECONDS, position)
        return Stored(position, previous)

    def read(self, name: str, config: HistoryConfig, query: HistoryQuery, now: float) -> StoredHistory:
        """Return what is kept. See ``HistoryBroker.history``."""
        channel = self._channel(name, config, now)
        if query.is_own and query.since is not None and has_fallen_back(channel, query.since, query.mark):
            del self._channels[name]
            channel = self._channel(name, config, now)
        gap, kept = behind(channel, query.since, reverse=query.reverse)
        return StoredHistory(
            envelopes=select(kept, query),
            position=Position(channel.offset, channel.epoch),
            gap=gap,
            mark=channel.mark_at(channel.offset),
        )

    def sweep(self, now: float) -> None:
        """Forget what is too old."""
        for name, channel in tuple(self._channels.items()):
            channel.expire(now)
            if now >= channel.ends_at:
                del self._channels[name]

    def clear(self) -> None:
        """Forget everything. Each channel begins a new epoch."""
        self._channels.clear()

    def forget(self, name: str) -> None:
        """Forget the history of a channel. It begins a new epoch."""
        self._channels.pop(name, None)

    # Histories that move to another store

    def parts(self, now: float, part_bytes: int, max_bytes: int) -> Iterator[HistoryPart]:
        """Yield all histories in parts, to ``restore()`` them in that order.

        Args:
            now: the time.
            part_bytes: bytes of keys and envelopes after which another part begins.
            max_bytes: bytes of envelopes at most; the oldest of the channels that come last are left out.
        """
        for name in tuple(self._channels):
            channel = self._channels[name]
            channel.expire(now)
            if now >= channel.ends_at:
                continue
            chosen: deque[StoredEnvelope] = deque()
            for stored in reversed(channel.kept):
                if len(stored.envelope) > max_bytes:
                    break
                max_bytes -= len(stored.envelope)
                chosen.appendleft(stored)
            entries: list[tuple[str, int, int] | StoredEnvelope] = [
                (key, _milliseconds(ends_at - now), position.offset)
                for key, (ends_at, position) in channel.keys.items()
                if position.epoch == channel.epoch
            ]
            entries += chosen
            yield from self._split(name, channel, entries, now, part_bytes)

    def _split(
        self,
        name: str,
        channel: Channel,
        entries: list[tuple[str, int, int] | StoredEnvelope],
        now: float,
        part_bytes: int,
    ) -> Iterator[HistoryPart]:
        keys: list[tuple[str, int, int]] = []
        envelopes: list[StoredEnvelope] = []
        size = 0

        def part() -> HistoryPart:
            position = Position(channel.offset, channel.epoch)
            forgets_in, ends_in = _milliseconds(channel.forgets_at - now), _milliseconds(channel.ends_at - now)
            return HistoryPart(name, position, forgets_in, ends_in, tuple(keys), tuple(envelopes))

        for entry in entries:
            if isinstance(entry, StoredEnvelope):
                envelopes.append(entry)
                size += len(entry.envelope)
            else:
                keys.append(entry)
                size += len(entry[0]) + 64
            if size >= part_bytes:
                yield part()
                keys, envelopes, size = [], [], 0
        if keys or envelopes or not entries:
            yield part()

    def restore(self, part: HistoryPart, now: float) -> None:
        """Take a part of a history of another store, behind the parts before it."""
        channel = self._channels.get(part.name)
        if channel is None or channel.epoch != part.position.epoch:
            channel = self._channels[part.name] = Channel(
                epoch=part.position.epoch,
                offset=part.position.offset,
                kept=deque(),
                size=0,
                forgets_at=now + part.forgets_in_ms / 1000,
                ends_at=now + part.ends_in_ms / 1000,
                keys=OrderedDict(),
            )
        for stored in part.envelopes:
            channel.kept.append(stored)
            channel.size += len(stored.envelope)
        for key, remaining_ms, offset in part.keys:
            channel.keys[key] = (now + remaining_ms / 1000, Position(offset, channel.epoch))

    def _channel(self, name: str, config: HistoryConfig, now: float) -> Channel:
        channel = self._channels.get(name)
        if channel is not None and now < channel.ends_at:
            channel.expire(now)
            return channel
        channel = Channel(
            epoch=new_epoch(),
            offset=0,
            kept=deque(),
            size=0,
            forgets_at=now + config.ttl_ms / 1000,
            ends_at=now + config.position_ttl_ms / 1000,
            keys=OrderedDict(),
        )
        self._channels[name] = channel
        return channel


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 0)
