"""The rooms of a hub whose messages are kept: publishing, reading, and what has to be read again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from wshub.brokers.history_interface import HistoryBroker, HistoryQuery, HistorySource, NativeHistorySource
from wshub.brokers.interface import ROOM_CHANNELS, Gap, History, HistoryConfig, Position, Published, room_channel
from wshub.brokers.stored_sender import StoredSender
from wshub.core.cluster_types import HasMembers
from wshub.core.history_checks import PositionChecks
from wshub.core.history_types import HistoryStats
from wshub.core.history_window import HistoryWindow
from wshub.core.local_history import LocalHistory
from wshub.core.room_history import READ_BYTES, READ_LIMIT, RoomHistory, publication_of
from wshub.core.turns import Turns
from wshub.errors import BrokerError, MisuseError

if TYPE_CHECKING:
    from wshub.core.config import RoomConfig
    from wshub.core.connection import Connection
    from wshub.core.remote_messages import RemoteMessages

__all__ = ["PIECE_BYTES", "PIECE_MESSAGES", "Histories", "Return"]

logger = logging.getLogger("wshub.broker")

MAX_READERS = 32
"""Rooms whose history is read at the same time."""

RETRY_SECONDS = 0.25
"""Seconds until a history is read again that could not be read. Each further time takes twice as long."""

MAX_RETRY_SECONDS = 5.0

WINDOW_SECONDS = 10.0
"""Seconds for which prepared messages wait for further clients that come back."""

PIECE_MESSAGES = 128
"""Maximum number of messages that a client is sent in one iteration of the loop."""

PIECE_BYTES = 256 * 1024
"""Maximum number of bytes of these messages. The first one is sent whatever its size."""

PIECES_PER_ITERATION = 4
"""Clients that are sent a piece in one iteration of the loop."""

WINDOWS_BYTES = 64 * 1024 * 1024
"""Bytes of prepared messages of all rooms, above which those are dropped that were used the longest time ago."""

KEPT_SENDERS = 4096
"""Maximum number of rooms whose senders are kept."""

COUNTING = 4
"""Clients at a time whose missed messages are read to be counted."""

OWN_LIMIT = 100
"""Messages of one reading that looks for those which this node has sent itself."""

FORMER_ROOMS = 10_000
"""Rooms without members of which is known how far they had got."""


class Return:
    """A connection that comes back to a room, and how it is to join."""

    __slots__ = ("info", "is_wanted")

    def __init__(self) -> None:
        self.is_wanted = True
        """Whether it is to be a member. The application may have it leave the room meanwhile."""
        self.info: Any = None
        """With what it joins a room with presence."""


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

    senders: dict[str, StoredSender]
    """The sender of each room to which messages were sent lately. The hub clears it when settings change."""

    def __init__(self, hub: HubWithHistories, messages: RemoteMessages, source: HistorySource) -> None:
        self.messages = messages
        self.source = source
        self._local = source if isinstance(source, LocalHistory) else None
        self._native = source if isinstance(source, NativeHistorySource) else None
        self.cursors = {}
        self.senders = {}
        self.recoveries: Counter[str] = Counter()
        """Clients that came back, by the gap; ``""`` for those that missed nothing or got all."""
        self.recovered = 0
        """Messages that these clients were sent."""
        self.returning: dict[tuple[int, str], Return] = {}
        """The connections that come back, by id and room."""
        self.turns = Turns(asyncio.get_running_loop(), PIECES_PER_ITERATION)
        """Whose turn it is to send a piece of what a client has missed."""
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        # Rooms whose history is to be read, in order; is being read; and could not be read.
        self._due: dict[RoomHistory, None] = {}
        self._being_read: set[RoomHistory] = set()
        self._failed: set[RoomHistory] = set()
        # Rooms that have had a window opened. There are few of them, so the sweep looks at no others.
        self._windowed: set[RoomHistory] = set()
        self._counting = asyncio.Semaphore(COUNTING)
        self._readers: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._delay = RETRY_SECONDS
        self._changed: set[str] = set()
        # How far rooms had got that have no members any more, by name: the position, and the mark of its message.
        self._former: dict[str, tuple[Position, bytes]] = {}
        self._checks = PositionChecks(self, hub.now()) if self._local is None else None
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
        if self._checks is not None:
            self._checks.close()
        for reader in self._readers:
            reader.cancel()

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
                self._hub._subscribe_for(history)
        elif self._hub.room_size(room):
            self.members_changed(room)

    def _open(self, room: str) -> RoomHistory:
        history = RoomHistory(room, self.config_of(room), self.messages, self.is_wanted, self._note_missing)
        self.cursors[room] = history
        if self._local is not None:
            history.begin_at(self._local.position(history.channel, history.config), b"")
        else:
            self.senders.pop(room, None)
            # The subscription is due first: a reader, which may run already, waits for it.
            self._hub._subscribe_for(history)
            self._loop.call_soon(self._note_missing, history)
        return history

    def is_wanted(self, history: RoomHistory) -> bool:
        """Whether a room has members here, or clients that come back to it."""
        return history.recoveries > 0 or self._hub.room_size(history.name) > 0

    def _drop_unwanted(self) -> None:
        changed, self._changed = self._changed, set()
        for room in changed:
            history = self.cursors.get(room)
            if history is not None and not self.is_wanted(history):
                self._drop(history)

    def _drop(self, history: RoomHistory) -> None:
        """Forget a room without members, but for how far it has got: so it notices later what its history has lost."""
        del self.cursors[history.name]
        if self._local is None and history.epoch:
            self._former.pop(history.name, None)
            self._former[history.name] = history.position, history.mark
            if len(self._former) > FORMER_ROOMS:
                del self._former[next(iter(self._former))]

    def hold(self, room: str) -> RoomHistory:
        """Return the history of a room, which stays until ``release()`` although the room may have no member."""
        history = self._subscribed(room)
        history.recoveries += 1
        return history

    def release(self, history: RoomHistory) -> None:
        """End what ``hold()`` has begun."""
        history.recoveries -= 1
        if not history.recoveries:
            if self.is_current(history):
                self.members_changed(history.name)
            else:
                self._hub._subscribe_for(history)

    def is_current(self, history: RoomHistory) -> bool:
        """Whether messages go to this history of a room. Its settings may have been changed."""
        return self.cursors.get(history.name) is history

    # Publishing and reading

    def sender_of(self, room: str) -> StoredSender:
        """Return what stores the messages of a room. Raises ``MisuseError`` if the room has no history."""
        channel, config = room_channel(room), self.config_of(room)
        history = self.cursors.get(room)
        if history is not None and not history.epoch:
            # This sender is not kept: once the position of the room is known, there is nothing to note.
            return StoredSender(partial(self._send_first, history), channel, config)
        sender = self._native.stored_sender(channel, config) if self._native is not None else None
        if sender is None:
            sender = StoredSender(self.source.send_stored, channel, config)
            if self._native is not None:
                # The broker has not started.
                return sender
        if len(self.senders) >= KEPT_SENDERS:
            self.senders.clear()
        self.senders[room] = sender
        return sender

    def _send_first(self, history: RoomHistory, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Have an envelope stored and sent while the room's position is not known yet."""
        history.note_sent(envelope)
        return self.source.send_stored(channel, envelope, config)

    async def publish(self, room: str, envelope: bytes, idempotency_key: str) -> Published:
        """Have an envelope stored and sent, and return its position. Raises ``BrokerError``."""
        history = self.cursors.get(room)
        if history is not None:
            history.note_sent(envelope)
        try:
            return await self.source.publish_stored(
                room_channel(room), envelope, self.config_of(room), idempotency_key=idempotency_key
            )
        except BrokerError:
            self.messages.rejected_count += 1
            raise

    async def read(self, room: str, query: HistoryQuery) -> History:
        """Return what is kept of a room. Raises ``BrokerError``."""
        config = self.config_of(room)
        self._reads += 1
        found = await self.source.history(room_channel(room), config, query)
        publications = []
        for stored in found.envelopes:
            try:
                publications.append(publication_of(stored, found.position.epoch))
            except ValueError:
                logger.error("the history of the room %r has something else than a message at %d", room, stored.offset)
        return History(publications=tuple(publications), position=found.position, gap=found.gap)

    async def has_more(self, history: RoomHistory, position: Position, limit: int) -> bool:
        """Whether more messages are kept behind a position than a limit. Raises ``BrokerError``."""
        count, since = 0, position
        while count <= limit:
            self._reads += 1
            # Only the number of these messages is used, so few clients at a time hold them.
            async with self._counting:
                query = HistoryQuery(since=since, limit=READ_LIMIT, max_bytes=READ_BYTES)
                found = await self.source.history(history.channel, history.config, query)
                count += len(found.envelopes)
                if found.gap or not found.envelopes or found.envelopes[-1].offset >= found.position.offset:
                    return not found.gap and count > limit
                since = Position(found.envelopes[-1].offset, found.position.epoch)
                del found
            await self.turns.wait()
        return True

    def keep_window(self, history: RoomHistory) -> HistoryWindow:
        """Return what is ready for clients that come back. It stays for ``WINDOW_SECONDS``."""
        history.window_ends_at = self._hub.now() + WINDOW_SECONDS
        self._windowed.add(history)
        return history.open_window()

    async def read_page(self, history: RoomHistory, offset: int) -> Gap:
        """Have the messages behind an offset in the window. Return why they are not kept any more; or an empty string.

        If another page of the room is being read, this returns once that is there. Look whether it has the messages.

        Raises ``BrokerError``.
        """
        reading = history.reading
        if reading is not None:
            await asyncio.shield(reading)
            return ""
        history.reading = reading = self._loop.create_task(self._read_page(history, offset))
        # All clients may have gone by then.
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(reading)

    async def _read_page(self, history: RoomHistory, offset: int) -> Gap:
        window, since, delivered = history.window, Position(offset, history.epoch), history.offset
        self._reads += 1
        try:
            query = HistoryQuery(since=since, limit=PIECE_MESSAGES, max_bytes=PIECE_BYTES)
            found = await self.source.history(history.channel, history.config, query)
            if found.position.offset < delivered and not found.gap:
                await self._verify(history)
            await self.turns.wait()
        finally:
            history.reading = None
        if window is None or history.window is not window or not history.is_live or history.epoch != since.epoch:
            # The page would be of an epoch that has ended, or made by another encode().
            return ""
        if not found.gap:
            window.add(history.prepare_page(offset, found, delivered))
        return found.gap

    async def _verify(self, history: RoomHistory) -> None:
        """Have a room read its history again if that has lost messages which the members here have had."""
        position = history.position
        query = HistoryQuery(since=position, limit=0, is_own=True, mark=history.mark)
        found = await self.source.history(history.channel, history.config, query)
        if history.position == position and (found.gap or found.position.epoch != position.epoch):
            history.interrupt()

    # Connections that come back

    def left(self, connection: int, room: str) -> None:
        """Note that the application has had a connection leave a room."""
        returning = self.returning.get((connection, room))
        if returning is not None:
            returning.is_wanted, returning.info = False, None

    def rejoined(self, connection: int, room: str, info: Any) -> bool:
        """Note that the application has a connection join a room. Return whether it joins once it has recovered."""
        returning = self.returning.get((connection, room))
        if returning is None:
            return False
        returning.is_wanted = True
        if info is not None:
            returning.info = info
        return True

    def join(self, connection: Connection, room: str, returning: Return) -> None:
        """Have a connection that has recovered join the room."""
        del self.returning[connection.id, room]
        connection.join(room, info=returning.info)

    async def is_newer_elsewhere(self, history: RoomHistory, position: Position) -> bool:
        """Whether the history has got to a position that has not arrived here yet. Raises ``BrokerError``."""
        if self._local is not None:
            return False
        found = await self.source.history(history.channel, history.config, HistoryQuery(limit=0))
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
        # Without members, the channel may be unsubscribed from by now. A new member begins with another history.
        if history.is_live or not self.is_current(history):
            return
        if not self.is_wanted(history):
            self._drop(history)
            return
        await self.source.subscribed(history.channel)
        while True:
            is_new = not history.epoch
            position, mark = (history.position, history.mark) if not is_new else self._former_position(history)
            self._reads += 1
            history.begin_reading()
            limit = 0 if is_new else READ_LIMIT
            query = HistoryQuery(since=position, limit=limit, max_bytes=READ_BYTES, is_own=True, mark=mark)
            found = await self.source.history(history.channel, history.config, query)
            if not self.is_current(history):
                return
            if is_new:
                begin = await self._before_own(history, found.position)
                if not self.is_current(history):
                    return
                if begin == found.position:
                    history.begin_at(begin, found.mark)
                    return
                history.move(begin.offset, begin.epoch, b"")
                continue
            self._holes += 1
            if found.gap:
                self._gaps[found.gap] += 1
            if history.caught_up(found) or history in self._due:
                return

    async def _before_own(self, history: RoomHistory, newest: Position) -> Position:
        """Return the position before the first message that this node has sent since the first member joined."""
        begin, since = newest, None
        while history.first_sent is not None:
            self._reads += 1
            query = HistoryQuery(since=since, limit=OWN_LIMIT, max_bytes=READ_BYTES, reverse=True)
            found = await self.source.history(history.channel, history.config, query)
            own = [stored for stored in found.envelopes if history.was_sent_here(stored.envelope)]
            if not own or found.position.epoch != newest.epoch:
                break
            begin = Position(own[-1].offset - 1, newest.epoch)
            since = Position(found.envelopes[-1].offset, newest.epoch)
        return begin if begin.offset < newest.offset else newest

    def _former_position(self, history: RoomHistory) -> tuple[Position | None, bytes]:
        """Return how far a room had got when it had members last."""
        return self._former.get(history.name, (None, b""))

    # Time

    def sweep(self, now: float) -> None:
        """Drop windows that are not used, and compare positions with those of the histories."""
        if self._local is not None:
            self._local.sweep(now)
        for history in tuple(self._windowed):
            if not history.recoveries and now >= history.window_ends_at:
                self._windowed.discard(history)
                history.drop_window()
        self._bound_windows()
        if self._checks is not None:
            self._checks.sweep(now)

    def _bound_windows(self) -> None:
        size = sum(history.window.size for history in self._windowed if history.window is not None)
        for history in sorted(self._windowed, key=lambda history: history.window_ends_at):
            if size <= WINDOWS_BYTES:
                return
            if history.window is not None:
                size -= history.window.size
                history.drop_window()

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
