"""The rooms of a hub whose messages are kept: publishing, reading, and what has to be read again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from wshub.brokers.interface import (
    ROOM_CHANNELS,
    History,
    HistoryBroker,
    HistoryConfig,
    HistorySource,
    Position,
    Published,
    StoredEnvelope,
    StoredHistory,
    room_channel,
)
from wshub.core.cluster_types import HasMembers
from wshub.core.history_types import HistoryStats
from wshub.core.local_history import LocalHistory
from wshub.core.room_history import READ_BYTES, READ_LIMIT, RoomHistory, publication_of
from wshub.errors import BrokerError, MisuseError

if TYPE_CHECKING:
    from wshub.core.config import RoomConfig
    from wshub.core.remote_messages import RemoteMessages

__all__ = ["Histories"]

logger = logging.getLogger("wshub.broker")

MAX_READERS = 32
"""Rooms whose history is read at the same time."""

RETRY_SECONDS = 0.25
"""Seconds until a history is read again that could not be read. Each further time takes twice as long."""

MAX_RETRY_SECONDS = 5.0

WINDOW_SECONDS = 10.0
"""Seconds for which prepared messages wait for further clients that come back."""

CHECK_SECONDS = 30.0
"""Seconds within which the position of each room is compared with that of its history."""

DOUBT_SECONDS = 2.0
"""Seconds that a message has to arrive which a check has found in the history."""


class HubWithHistories(Protocol):
    """The hub, as far as histories use it."""

    def now(self) -> float: ...

    def room_size(self, room: str) -> int: ...

    def _room_config(self, room: str) -> RoomConfig | None: ...

    def _subscribe_for(self, room: HasMembers) -> None: ...


class Histories:
    """The histories of a hub's rooms.

    Args:
        hub: in use.
        messages: delivers envelopes to members.
        source: stores them.
    """

    cursors: dict[str, RoomHistory]
    """The history of each room with members here, or with clients that come back to it."""

    def __init__(self, hub: HubWithHistories, messages: RemoteMessages, source: HistorySource) -> None:
        self.messages = messages
        self.source = source
        self._local = source if isinstance(source, LocalHistory) else None
        self.cursors = {}
        self.recoveries: Counter[str] = Counter()
        """Clients that came back, by the gap; ``""`` for those that missed nothing or got all."""
        self.recovered = 0
        """Messages that these clients were sent."""
        self.coming_back: set[tuple[int, str]] = set()
        """The ids of connections that come back, and the rooms."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        # Rooms whose history is to be read, in order; is being read; and could not be read.
        self._due: dict[RoomHistory, None] = {}
        self._being_read: set[RoomHistory] = set()
        self._failed: set[RoomHistory] = set()
        # Rooms that have had a window opened. There are few of them, so the sweep looks at no others.
        self._windowed: set[RoomHistory] = set()
        self._readers: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._delay = RETRY_SECONDS
        self._changed: set[str] = set()
        self._checked_at = hub.now()
        self._checking: asyncio.Task[None] | None = None
        self._reads = 0
        self._holes = 0
        self._gaps: Counter[str] = Counter()
        self._is_closed = False

    def config_of(self, room: str) -> HistoryConfig:
        """Return the configuration of a room's history. Raises ``MisuseError`` if the room has none."""
        config = self._hub._room_config(room)
        if config is None or config.history is None:
            raise MisuseError(
                f"the room {room!r} has no history: call hub.configure_room(..., history=HistoryConfig())"
            )
        history: HistoryConfig = config.history
        return history

    def close(self) -> None:
        """Read nothing more."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        for task in (*self._readers, self._checking):
            if task is not None:
                task.cancel()

    # Rooms

    def members_changed(self, room: str) -> None:
        """Note that a room has got its first member or has lost its last one."""
        self._subscribed(room)
        if not self._changed:
            self._loop.call_soon(self._drop_unwanted)
        self._changed.add(room)

    def _subscribed(self, room: str) -> RoomHistory:
        """Return the history of a room, whose messages arrive while it has members."""
        history = self.cursors.get(room)
        if history is None:
            return self._open(room)
        self._hub._subscribe_for(history)
        return history

    def settings_changed(self, room: str) -> None:
        """Note that a room has other settings."""
        config = self._hub._room_config(room)
        history = self.cursors.get(room)
        if history is not None:
            if config is not None and config.history is not None:
                history.settings_changed(config.history)
            else:
                del self.cursors[room]
        elif self._hub.room_size(room):
            self.members_changed(room)

    def _open(self, room: str) -> RoomHistory:
        history = RoomHistory(room, self.config_of(room), self.messages, self.is_wanted, self._note_missing)
        self.cursors[room] = history
        if self._local is not None:
            history.begin_at(self._local.position(history.channel, history.config), b"")
        else:
            # The subscription is due first: a reader waits for it.
            self._hub._subscribe_for(history)
            self._note_missing(history)
        return history

    def is_wanted(self, history: RoomHistory) -> bool:
        """Whether a room has members here, or clients that come back to it."""
        return history.recoveries > 0 or self._hub.room_size(history.name) > 0

    def _drop_unwanted(self) -> None:
        changed, self._changed = self._changed, set()
        for room in changed:
            history = self.cursors.get(room)
            if history is not None and not self.is_wanted(history):
                del self.cursors[room]

    def hold(self, room: str) -> RoomHistory:
        """Return the history of a room, which stays until ``release()`` although the room may have no member."""
        history = self._subscribed(room)
        history.recoveries += 1
        return history

    def release(self, history: RoomHistory) -> None:
        """End what ``hold()`` has begun."""
        history.recoveries -= 1
        if not history.recoveries:
            self.members_changed(history.name)

    # Publishing and reading

    def send(self, room: str, envelope: bytes) -> bool:
        """Have an envelope stored and sent. Return False if it was dropped, which is counted."""
        taken = False
        try:
            taken = self.source.send_stored(room_channel(room), envelope, self.config_of(room))
        except Exception:
            self.messages.log_failure()
        if not taken:
            self.messages.rejected_count += 1
        return taken

    async def publish(self, room: str, envelope: bytes, idempotency_key: str) -> Published:
        """Have an envelope stored and sent, and return its position. Raises ``BrokerError``."""
        try:
            return await self.source.publish_stored(
                room_channel(room), envelope, self.config_of(room), idempotency_key=idempotency_key
            )
        except BrokerError:
            self.messages.rejected_count += 1
            raise

    async def read(self, room: str, since: Position | None, limit: int, max_bytes: int, *, reverse: bool) -> History:
        """Return what is kept of a room. Raises ``BrokerError``."""
        config = self.config_of(room)
        self._reads += 1
        found = await self.source.history(
            room_channel(room), config, since=since, limit=limit, max_bytes=max_bytes, reverse=reverse
        )
        publications = []
        for stored in found.envelopes:
            try:
                publications.append(publication_of(stored, found.position.epoch))
            except ValueError:
                logger.error("the history of the room %r has something else than a message at %d", room, stored.offset)
        return History(publications=tuple(publications), position=found.position, gap=found.gap)

    async def ensure_window(self, history: RoomHistory) -> None:
        """Have the messages of a room prepared that are kept. Clients that come back together share them.

        Raises ``BrokerError``.
        """
        history.window_ends_at = self._hub.now() + WINDOW_SECONDS
        self._windowed.add(history)
        if history.window is not None:
            return
        if history.opening is None:
            history.opening = self._loop.create_task(self._open_window(history))
        await asyncio.shield(history.opening)

    async def _open_window(self, history: RoomHistory) -> None:
        history.begin_window()
        found = None
        try:
            found = await self._read_all(history)
        finally:
            history.opening = None
            history.open_window(found)

    async def _read_all(self, history: RoomHistory) -> StoredHistory:
        """Return all that is kept of a room, the oldest first."""
        envelopes: list[StoredEnvelope] = []
        since = None
        start = 0
        while True:
            self._reads += 1
            found = await self.source.history(
                history.channel, history.config, since=since, limit=READ_LIMIT, max_bytes=READ_BYTES
            )
            if found.gap:
                # The messages that were read before are trimmed by now.
                envelopes = []
            if not envelopes:
                start = found.start
            envelopes += found.envelopes
            if not found.envelopes or envelopes[-1].offset >= found.position.offset:
                return StoredHistory(envelopes=tuple(envelopes), position=found.position, previous=start)
            since = Position(envelopes[-1].offset, found.position.epoch)

    async def is_newer_elsewhere(self, history: RoomHistory, position: Position) -> bool:
        """Whether the history has got to a position that has not arrived here yet. Raises ``BrokerError``."""
        if self._local is not None:
            return False
        found = await self.source.history(history.channel, history.config, limit=0)
        return found.position.epoch == position.epoch and position.offset <= found.position.offset

    # What was missed

    def interrupted(self, channels: Collection[str] | None) -> None:
        """Note that messages of these channels may have been lost; None stands for all."""
        for history in self._histories_of(channels):
            history.interrupt()

    def restored(self, channels: Collection[str] | None) -> None:
        """Note that messages of these channels arrive again; None stands for all."""
        self._delay = RETRY_SECONDS
        for history in self._histories_of(channels):
            if history in self._failed:
                self._failed.discard(history)
                self._note_missing(history)

    def _histories_of(self, channels: Collection[str] | None) -> list[RoomHistory]:
        if channels is None:
            return list(self.cursors.values())
        names = [name.removeprefix(ROOM_CHANNELS) for name in channels if name.startswith(ROOM_CHANNELS)]
        return [self.cursors[name] for name in names if name in self.cursors]

    def _note_missing(self, history: RoomHistory) -> None:
        """Have a history read, once more if that is under way."""
        if self._is_closed:
            return
        self._due[history] = None
        if len(self._readers) < MAX_READERS and history not in self._being_read:
            reader = self._loop.create_task(self._read_due())
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)

    async def _read_due(self) -> None:
        """Read the histories that are due, one after the other."""
        while (history := next((due for due in self._due if due not in self._being_read), None)) is not None:
            del self._due[history]
            self._being_read.add(history)
            try:
                await self._catch_up(history)
            except BrokerError:
                self._retry_later(history)
            except Exception:
                logger.exception("the history of the room %r could not be read", history.name)
                self._retry_later(history)
            finally:
                self._being_read.discard(history)

    def _retry_later(self, history: RoomHistory) -> None:
        self._due.pop(history, None)
        self._failed.add(history)
        if self._retry is None:
            self._retry = self._loop.call_later(self._delay, self._retry_failed)
            self._delay = min(2 * self._delay, MAX_RETRY_SECONDS)

    def _retry_failed(self) -> None:
        self._retry = None
        failed, self._failed = self._failed, set()
        for history in failed:
            self._note_missing(history)

    async def _catch_up(self, history: RoomHistory) -> None:
        """Read what a room has missed, and deliver it."""
        if history.is_live:
            return
        await self.source.subscribed(history.channel)
        while True:
            is_new = not history.epoch
            self._reads += 1
            history.begin_reading()
            found = await self.source.history(
                history.channel,
                history.config,
                since=None if is_new else history.position,
                limit=0 if is_new else READ_LIMIT,
                max_bytes=READ_BYTES,
                is_own=True,
                mark=history.mark,
            )
            if self.cursors.get(history.name) is not history:
                return
            if is_new:
                history.begin_at(found.position, found.mark)
                return
            self._holes += 1
            if found.gap:
                self._gaps[found.gap] += 1
            if history.caught_up(found) or history in self._due:
                return

    # Time

    def sweep(self, now: float) -> None:
        """Drop windows that are not used, and compare positions with those of the histories."""
        if self._local is not None:
            self._local.sweep(now)
        for history in tuple(self._windowed):
            if not history.recoveries and now >= history.window_ends_at:
                self._windowed.discard(history)
                history.drop_window()
        is_checking = self._checking is not None and not self._checking.done()
        if self._local is None and not is_checking and now >= self._checked_at + CHECK_SECONDS:
            self._checked_at = now
            self._checking = self._loop.create_task(self._check_positions())

    async def _check_positions(self) -> None:
        """Find messages that have not arrived although the broker has noticed nothing. See ``CHECK_SECONDS``."""
        histories = [history for history in self.cursors.values() if history.is_live]
        for history in histories:
            await asyncio.sleep(CHECK_SECONDS / 2 / len(histories))
            try:
                await self._check_position(history)
            except BrokerError:
                return

    async def _check_position(self, history: RoomHistory) -> None:
        found = await self.source.history(
            history.channel, history.config, since=history.position, limit=0, is_own=True, mark=history.mark
        )
        if not self._differs(history, found):
            return
        await asyncio.sleep(DOUBT_SECONDS)
        if self._differs(history, found):
            logger.warning("messages to the room %r have not arrived, and are read", history.name)
            history.interrupt()

    def _differs(self, history: RoomHistory, found: StoredHistory) -> bool:
        """Whether a room is behind its history, or its history has lost messages that the room has had."""
        if self.cursors.get(history.name) is not history or not history.is_live:
            return False
        position = found.position
        return history.epoch != position.epoch or history.offset < position.offset or found.gap == "epoch"

    def stats(self) -> HistoryStats:
        """Return the counts."""
        kept, kept_bytes = self._kept()
        return HistoryStats(
            rooms=len(self.cursors),
            reads=self._reads,
            caught_up=self._holes,
            gaps=dict(self._gaps),
            recoveries={gap or "complete": count for gap, count in self.recoveries.items()},
            recovered=self.recovered,
            kept=kept,
            kept_bytes=kept_bytes,
        )

    def _kept(self) -> tuple[int | None, int | None]:
        """Return the number of messages in the memory of this process, and that of their bytes."""
        if self._local is not None:
            return self._local.store.kept, self._local.store.kept_bytes
        stats = self.source.stats() if isinstance(self.source, HistoryBroker) else None
        return (stats.kept, stats.kept_bytes) if stats is not None else (None, None)
