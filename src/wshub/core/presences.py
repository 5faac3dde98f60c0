"""The members of rooms with presence, in a store that all nodes share.

Each connection in such a room has an entry. The hub stores changes once an iteration of the loop, and tries again if
that fails. A user who leaves keeps the entry for the grace. If the user comes back at another node meanwhile, that node
finds the entry, and calls no function.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import json
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from wshub.brokers.interface import ROOM_CHANNELS, room_channel
from wshub.brokers.presence_interface import (
    BEAT_SECONDS,
    Beat,
    Member,
    PresenceConfig,
    PresenceCounts,
    PresenceEntry,
    PresencePage,
    PresenceSource,
)
from wshub.core.presence_types import PresenceStats
from wshub.errors import BrokerError, BrokerUncertain, InvalidMessageError, MisuseError

if TYPE_CHECKING:
    from wshub.core.config import RoomConfig

__all__ = ["Presences"]

logger = logging.getLogger("wshub.broker")

MAX_INFO_BYTES = 1024
"""Bytes of JSON that a member may have as its info."""

CALLS_AT_ONCE = 16
"""Rooms whose changes are told to the store at the same time."""

ENTRIES_AT_ONCE = 500
"""Entries of one call."""

WRONG_COUNTS = 2
"""Beats in a row that must tell of another number of entries than this node expects, before it compares them."""

LAST_SECONDS = 3.0
"""Seconds in which a hub that closes tells the store what has changed, and finishes the calls of the application."""

RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 5.0


class HubWithPresence(Protocol):
    """The hub, as far as presences use it."""

    def now(self) -> float: ...

    def _room_config(self, room: str) -> RoomConfig | None: ...


class Attendance:
    """A member of a room at this node, or one that was taken over from a dead node."""

    __slots__ = (
        "due",
        "entry",
        "is_new",
        "is_present",
        "is_stored",
        "is_uncertain",
        "leaves_at",
        "member",
        "room",
        "version",
    )

    def __init__(self, room: str, entry: PresenceEntry, member: Member) -> None:
        self.room = room
        self.entry = entry
        self.member = member
        self.is_present = True
        """Whether the store is to have the entry."""
        self.is_stored = False
        """Whether it has."""
        self.is_uncertain = False
        """Whether the answer to the last call was lost."""
        self.is_new = True
        """Whether ``on_join`` is to be called if the user has no other entry."""
        self.leaves_at: float | None = None
        """When the grace ends; None while the connection is a member."""
        self.due: float | None = None
        """When ``Presences.sweep`` looks at it next; None if it does not."""
        self.version = 0
        """Counts the changes of the entry."""

    @property
    def is_to_enter(self) -> bool:
        """Whether the store is to be told that the member is there.

        A member that has gone may have to enter again, to learn whether ``on_join`` is to be called. Another node may
        have been told that the user was there already.
        """
        return self.is_present or (self.is_uncertain and self.is_new and not self.is_stored)


class Presences:
    """The presence of the members of a hub.

    Args:
        hub: in use.
        node: the id of the node.
        source: keeps the entries.
    """

    def __init__(self, hub: HubWithPresence, node: str, source: PresenceSource) -> None:
        self._hub = hub
        self._node = node
        self._source = source
        self._loop = asyncio.get_running_loop()
        # All that the store has or is to have, and the current ones by room and connection.
        self._attendances: dict[Attendance, None] = {}
        self._members: dict[tuple[str, int], Attendance] = {}
        self._entries = itertools.count(1)
        # Those that the store does not know yet as they are.
        self._changed: dict[Attendance, None] = {}
        # How many of them are on their way to it.
        self._in_progress = 0
        # Users who have left: when their grace ends, and a number that keeps the order.
        self._leaving: list[tuple[float, int, Attendance]] = []
        self._telling: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._beat_at = hub.now()
        self._beat_seconds = BEAT_SECONDS
        # Of two beats at once, the later answer could say that the node is not known, after members were entered.
        self._saying = asyncio.Lock()
        self._epoch = ""
        # Beats in a row whose count was not the expected one.
        self._wrong_counts = 0
        self._delay = RETRY_SECONDS
        self._calls: set[asyncio.Task[None]] = set()
        self._taken_over = 0
        self._is_closed = False

    def config_of(self, room: str) -> PresenceConfig | None:
        """Return the configuration of a room's presence; None if the room has none any more."""
        config = self._hub._room_config(room)
        presence = config.presence if config is not None else None
        return presence if isinstance(presence, PresenceConfig) else None

    # Members

    @staticmethod
    def copy_info(info: Any) -> Any:
        """Return what is to be the info of a member, as others see it. The application may go on to change its own.

        Raises:
            InvalidMessageError: it has more than 1 KiB as JSON.
            TypeError, ValueError: it is no JSON.
        """
        text = json.dumps(info, ensure_ascii=False, allow_nan=False)
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_INFO_BYTES:
            raise InvalidMessageError(f"the info of a member has at most {MAX_INFO_BYTES} bytes as JSON, not {size}")
        return json.loads(text)

    def set_info(self, room: str, connection: int, info: Any) -> None:
        """Set the info of a member, which ``copy_info`` has returned."""
        attendance = self._members.get((room, connection))
        if attendance is not None:
            self._set_info(attendance, info)

    def joined(self, room: str, connection: int, user: str | None, info: Any = None) -> None:
        """Note that a connection has joined a room with presence."""
        known = self._members.get((room, connection))
        if known is not None and known.is_present and known.member.user == user:
            # It has left and comes back within the grace.
            known.leaves_at = None
            self._set_info(known, info)
            return
        member = Member(self._node, connection, user, info)
        name = f"{self._node}:{connection}:{next(self._entries)}"
        attendance = Attendance(room, entry_of(name, member), member)
        self._attendances[attendance] = None
        self._members[room, connection] = attendance
        self._note(attendance)

    def left(self, room: str, connection: int) -> None:
        """Note that a connection has left a room with presence, or has ended."""
        attendance = self._members.get((room, connection))
        if attendance is not None and attendance.leaves_at is None:
            self._leave_later(attendance)

    def user_changed(self, room: str, connection: int, user: str | None) -> None:
        """Note that a member has another user."""
        attendance = self._members.get((room, connection))
        if attendance is not None and attendance.member.user != user:
            self.left(room, connection)
            self.joined(room, connection, user, attendance.member.info)

    def _leave_later(self, attendance: Attendance) -> None:
        config = self.config_of(attendance.room)
        grace_ms = config.grace_ms if config is not None and attendance.member.user is not None else 0
        attendance.leaves_at = self._hub.now() + grace_ms / 1000
        if grace_ms:
            self._look_later(attendance, attendance.leaves_at)
        else:
            self._leave(attendance)

    def _look_later(self, attendance: Attendance, due: float) -> None:
        """Have the sweep look at a member, unless it does so before. A member may leave and come back many times."""
        if attendance.due is None or due < attendance.due:
            attendance.due = due
            heapq.heappush(self._leaving, (due, next(self._entries), attendance))

    def _leave(self, attendance: Attendance) -> None:
        attendance.is_present = False
        key = attendance.room, attendance.member.connection
        if self._members.get(key) is attendance:
            del self._members[key]
        self._note(attendance)

    def _set_info(self, attendance: Attendance, info: Any) -> None:
        member = replace(attendance.member, info=info)
        entry = entry_of(attendance.entry.id, member)
        # 1 equals True in Python, and is something else in JSON.
        if entry != attendance.entry:
            attendance.member, attendance.entry = member, entry
            # If the member leaves before the store is told, it leaves all the same.
            attendance.is_uncertain = attendance.is_uncertain or attendance.is_stored
            attendance.is_stored = False
            attendance.version += 1
            self._note(attendance)

    # Telling the store

    def _note(self, attendance: Attendance) -> None:
        self._changed[attendance] = None
        if self._telling is None and not self._is_closed:
            self._telling = self._loop.create_task(self._tell())

    async def _tell(self) -> None:
        """Tell the store of all changes. Try again, ever more seldom, if that fails."""
        try:
            while self._changed:
                if not self._epoch and not await self._say_alive():
                    # Without a beat, nobody would notice that the node is dead.
                    await self._pause()
                    continue
                changed, self._changed = self._changed, {}
                self._in_progress = len(changed)
                rooms: dict[tuple[str, bool], list[Attendance]] = {}
                for attendance in changed:
                    if attendance.is_present != attendance.is_stored or attendance.is_uncertain:
                        rooms.setdefault((attendance.room, attendance.is_to_enter), []).append(attendance)
                limit = asyncio.Semaphore(CALLS_AT_ONCE)
                outcomes = await asyncio.gather(
                    *(self._tell_room(room, group, limit, enters=enters) for (room, enters), group in rooms.items())
                )
                self._in_progress = 0
                if all(outcomes):
                    self._delay = RETRY_SECONDS
                else:
                    await self._pause()
        finally:
            self._in_progress = 0
            self._telling = None

    async def _pause(self) -> None:
        """Wait before the next attempt, each time longer."""
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, MAX_RETRY_SECONDS)

    async def _tell_room(
        self, room: str, attendances: list[Attendance], limit: asyncio.Semaphore, *, enters: bool
    ) -> bool:
        async with limit:
            for first in range(0, len(attendances), ENTRIES_AT_ONCE):
                batch = attendances[first : first + ENTRIES_AT_ONCE]
                if not await self._tell_batch(room, batch, enters=enters):
                    self._changed.update(dict.fromkeys(attendances[first:]))
                    return False
        return True

    async def _tell_batch(self, room: str, batch: list[Attendance], *, enters: bool) -> bool:
        """Tell the store of some members of a room. Return False if that is to be tried again."""
        call = self._source.presence_enter if enters else self._source.presence_leave
        versions = [attendance.version for attendance in batch]
        try:
            outcomes = await call(room_channel(room), [attendance.entry for attendance in batch])
        except BrokerError as error:
            for attendance in batch:
                attendance.is_uncertain = attendance.is_uncertain or isinstance(error, BrokerUncertain)
            return False
        except Exception:
            logger.exception("the presence of the room %r could not be stored", room)
            return False
        config = self.config_of(room)
        for attendance, version, alone in zip(batch, versions, outcomes, strict=True):
            # With another info by now, the member is entered again, or leaves.
            attendance.is_uncertain = version != attendance.version
            if attendance.is_uncertain:
                self._note(attendance)
                continue
            attendance.is_stored = enters
            if not enters:
                self._attendances.pop(attendance, None)
            # Whose join was not told has not left either.
            if alone and attendance.is_new == enters and config is not None:
                self._call(config.on_join if enters else config.on_leave, attendance)
            attendance.is_new = False
            if attendance.is_present != attendance.is_stored:
                self._note(attendance)
        return True

    def _call(self, function: Any, attendance: Attendance) -> None:
        """Call a function of the application. Its errors are logged."""
        if function is None:
            return
        try:
            outcome = function(attendance.room, attendance.member)
            if inspect.isawaitable(outcome):
                task = self._loop.create_task(self._finish(outcome))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
        except Exception:
            logger.exception("a function for the presence of the room %r has failed", attendance.room)

    async def _finish(self, outcome: Awaitable[None]) -> None:
        try:
            await outcome
        except Exception:
            logger.exception("a function for the presence of a room has failed")

    # Time

    def sweep(self, now: float) -> None:
        """End the graces that are over, and send the beat that is due."""
        while self._leaving and self._leaving[0][0] <= now:
            due, _, attendance = heapq.heappop(self._leaving)
            if attendance.due != due:
                continue
            attendance.due = None
            if attendance.leaves_at is not None and attendance.leaves_at <= now:
                self._leave(attendance)
            elif attendance.leaves_at is not None:
                self._look_later(attendance, attendance.leaves_at)
        if now >= self._beat_at and self._beating is None and not self._is_closed:
            self._beat_at = now + self._beat_seconds
            self._beating = self._loop.create_task(self._beat())

    async def begin(self) -> None:
        """Send the first beat, unless it was sent, and wait until it is answered."""
        self.sweep(self._hub.now())
        if self._beating is not None:
            await asyncio.wait([self._beating])

    async def _beat(self) -> None:
        try:
            await self._say_alive()
        finally:
            self._beating = None

    async def _say_alive(self) -> bool:
        """Send a beat once the one before has ended. Return False if there was no answer."""
        async with self._saying:
            try:
                await self._beat_once()
            except BrokerError:
                return False
            except Exception:
                logger.exception("the beat of the node has failed")
                return False
            return True

    async def _beat_once(self) -> None:
        """Send a beat, and do what its answer asks for."""
        beat = await self._source.presence_beat()
        if not beat.is_known:
            self._enter_anew(self._concerned(beat), is_lost=beat.epoch != self._epoch)
        elif beat.lost:
            lost = set(beat.lost)
            self._enter_anew([one for one in self._attendances if one.entry.id in lost], is_lost=False)
        self._epoch = beat.epoch
        self._beat_seconds = beat.next_in
        for node in beat.dead:
            await self._take_over(node)
        await self._check_count(beat)

    def _concerned(self, beat: Beat) -> list[Attendance]:
        """Return the members that are to be entered again, or have left, because a beat says so.

        Those that came after the node had been taken for dead are there still.
        """
        concerns, kept = beat.concerns, beat.kept
        return [
            one
            for one in self._attendances
            if one.entry.id not in kept and (concerns is None or concerns(room_channel(one.room)))
        ]

    def _enter_anew(self, attendances: Sequence[Attendance], *, is_lost: bool) -> None:
        """Enter members again.

        Args:
            attendances: those of the members.
            is_lost: whether the store has lost all entries. Otherwise other nodes have said that the members have left,
                so they join again. Those that are gone, and whose grace lasts, have left already.
        """
        for attendance in attendances:
            if not is_lost and attendance.leaves_at is not None:
                self._remove(attendance)
            elif attendance.is_stored and attendance.is_present:
                attendance.is_stored = False
                # If the member leaves before that, it leaves all the same.
                attendance.is_uncertain = True
                attendance.is_new = not is_lost
                self._note(attendance)

    def _remove(self, attendance: Attendance) -> None:
        """Remove an entry, if it is there, and tell nobody: another node has taken the member over, or nobody knew."""
        attendance.is_stored = True
        # Whose join was not told has not left either.
        attendance.is_new = True
        self._leave(attendance)

    async def _take_over(self, node: str) -> None:
        """Let the members of a dead node leave, once their grace is over."""
        while taken := await self._source.presence_take_over(node):
            self._taken_over += len(taken)
            for channel, entry in taken:
                room = channel.removeprefix(ROOM_CHANNELS)
                attendance = Attendance(room, entry, member_of(entry))
                attendance.is_stored = True
                attendance.is_new = False
                self._attendances[attendance] = None
                self._leave_later(attendance)

    async def _check_count(self, beat: Beat) -> None:
        """Compare what the store has with what it is to have, if it differs and nothing changes at present."""
        expected = sum(attendance.is_stored for attendance in self._attendances)
        is_right = beat.entry_count is None or not beat.is_known or beat.dead or beat.entry_count == expected
        self._wrong_counts = 0 if is_right or self._changed or self._telling else self._wrong_counts + 1
        if self._wrong_counts < WRONG_COUNTS:
            return
        self._wrong_counts = 0
        versions = {attendance: attendance.version for attendance in self._attendances if attendance.is_stored}
        found = {entry.id: (channel, entry) for channel, entry in await self._source.presence_own()}
        known = {attendance.entry.id for attendance in self._attendances}
        for name, (channel, entry) in found.items():
            if name not in known:
                self._note_left_over(channel, entry)
        for attendance, version in versions.items():
            if attendance.entry.id not in found and attendance.version == version and attendance.is_stored:
                attendance.is_stored = False
                self._note(attendance)

    def _note_left_over(self, channel: str, entry: PresenceEntry) -> None:
        """Remove an entry that a failed call has left behind; or let one leave that was taken over by such a call."""
        attendance = Attendance(channel.removeprefix(ROOM_CHANNELS), entry, member_of(entry))
        self._attendances[attendance] = None
        if entry.id.startswith(f"{self._node}/"):
            attendance.is_stored = True
            attendance.is_new = False
            self._leave_later(attendance)
        else:
            self._remove(attendance)

    # Questions

    async def read(self, room: str, cursor: str, limit: int) -> PresencePage:
        """Return some members of a room. Raises ``BrokerError``."""
        self.check(room)
        found = await self._source.presence_read(room_channel(room), cursor, limit)
        return PresencePage(members=tuple(member_of(entry) for entry in found.entries), cursor=found.cursor)

    async def counts(self, room: str) -> PresenceCounts:
        """Return how many are in a room. Raises ``BrokerError``."""
        self.check(room)
        return await self._source.presence_counts(room_channel(room))

    def check(self, room: str) -> None:
        """Raise ``MisuseError`` if a room has no presence."""
        if self.config_of(room) is None:
            raise MisuseError(f"the room {room!r} has no presence: call hub.configure_room(..., presence=True)")

    def stats(self) -> PresenceStats:
        """Return the counts."""
        pending = len(self._changed) + self._in_progress
        return PresenceStats(members=len(self._members), pending=pending, taken_over=self._taken_over)

    async def close(self, timeout: float) -> None:
        """Let the other nodes take the members over: they may come back there, within the grace."""
        self._is_closed = True
        # A join that the store knows and that nobody was told would be followed by a leave.
        last = min(timeout, LAST_SECONDS)
        await wait_for_some([self._telling], last)
        await wait_for_some(self._calls, last)
        for task in (self._telling, self._beating, *self._calls):
            if task is not None:
                task.cancel()
        try:
            async with asyncio.timeout(timeout):
                await self._source.presence_beat(is_leaving=True)
        except (BrokerError, TimeoutError):
            # They notice it by themselves.
            pass


async def wait_for_some(tasks: Iterable[asyncio.Task[None] | None], timeout: float) -> None:
    """Wait until tasks have ended, but not longer than so many seconds."""
    waiting = [task for task in tasks if task is not None]
    if waiting:
        await asyncio.wait(waiting, timeout=timeout)


def entry_of(name: str, member: Member) -> PresenceEntry:
    """Return the entry of a member, under a name of its own."""
    data = json.dumps([member.node, member.connection, member.user, member.info], ensure_ascii=False)
    user = f"u{member.user}" if member.user is not None else f"c{name}"
    return PresenceEntry(name, user, data.encode(errors="surrogatepass"))


def member_of(entry: PresenceEntry) -> Member:
    """Return the member of an entry."""
    node, connection, user, info = json.loads(entry.data)
    return Member(node, connection, user, info)
