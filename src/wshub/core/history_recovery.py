"""A client comes back to a room with the position of the last message that it has.

It gets what it has missed in pieces. Each piece has a bounded number of messages and bytes, and is sent when the queue
of the connection has space. A few pieces are sent in each iteration of the loop, whichever connection they are for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wshub.brokers.interface import Gap, Position
from wshub.core.histories import PIECE_BYTES, PIECE_MESSAGES, Histories, Return
from wshub.core.history_types import Recovery
from wshub.core.room_history import RoomHistory
from wshub.errors import BrokerUnavailable, MisuseError

if TYPE_CHECKING:
    from wshub.core.connection import Connection

__all__ = ["recover", "wait_live"]

LIVE_SECONDS = 10.0
"""Seconds that a room has to catch up itself before its clients can."""


async def recover(
    histories: Histories, connection: Connection, room: str, position: Position | None, limit: int
) -> Recovery:
    """Send a client what it has missed, and have it join the room. See ``Connection.recover``."""
    histories.config_of(room)
    key = (connection.id, room)
    if key in histories.returning:
        raise MisuseError(f"recover(): the connection comes back to the room {room!r} already")
    # To a member, new messages could overtake those that it has missed.
    connection.leave(room)
    returning = histories.returning[key] = Return()
    try:
        history = histories.hold(room)
        try:
            await wait_live(history)
            recovery = await Recovering(histories, history, connection, returning, limit).run(position)
        finally:
            histories.release(history)
    finally:
        histories.returning.pop(key, None)
    histories.recoveries[recovery.gap] += 1
    histories.recovered += recovery.sent
    return recovery


async def wait_live(history: RoomHistory) -> None:
    """Return when the room's members have been sent all that has arrived."""
    if history.is_live:
        return
    try:
        async with asyncio.timeout(LIVE_SECONDS):
            await history.wait_live()
    except TimeoutError:
        raise BrokerUnavailable(f"the history of the room {history.name!r} could not be read in time") from None


def gap_before(history: RoomHistory, position: Position) -> Gap:
    """Return why nothing can be told about what is behind a position; empty if it can."""
    if position.epoch != history.epoch or not 0 <= position.offset <= history.offset:
        return "epoch"
    return ""


class Recovering:
    """The way of one client back to a room.

    Args:
        histories: of the hub.
        history: of the room, which is live.
        connection: of the client. It is no member.
        returning: whether the connection is to become one.
        limit: maximum number of messages to send.
    """

    def __init__(
        self, histories: Histories, history: RoomHistory, connection: Connection, returning: Return, limit: int
    ) -> None:
        self._histories = histories
        self._history = history
        self._connection = connection
        self._returning = returning
        self._limit = limit
        self._sent = 0

    async def run(self, position: Position | None) -> Recovery:
        """Send what is behind a position, and have the connection join without a message in between."""
        history = self._history
        if position is None:
            return self._end(history.position, "")
        gap = gap_before(history, position)
        if gap and await self._histories.is_newer_elsewhere(history, position):
            # The client was at another node, which is ahead of this one.
            history.interrupt()
            await wait_live(history)
            gap = gap_before(history, position)
        if not gap and await self._is_too_much(position):
            gap = "too_much"
        while not gap and self._returning.is_wanted and position.offset < history.offset:
            # Nothing waits between the end of this loop and the joining.
            position, gap = await self._advance(position)
            if gap == "epoch" and position.epoch == history.epoch:
                # The history was lost, and this node has not noticed it yet.
                history.interrupt()
                await wait_live(history)
            gap = gap or gap_before(history, position)
        return self._end(position, gap)

    async def _is_too_much(self, position: Position) -> bool:
        """Whether more is to be sent than the limit. Offsets may have holes, so it is counted if it may be."""
        if self._history.offset - position.offset <= self._limit:
            return False
        self._histories.keep_window(self._history)
        return await self._histories.has_more(self._history, position, self._limit)

    async def _advance(self, position: Position) -> tuple[Position, Gap]:
        """Send the next messages. Return the position behind them, and why no more can be sent."""
        history, connection = self._history, self._connection
        # Until the room has read again, nobody knows whether the engine still has what the client has had.
        await wait_live(history)
        await connection.wait_writable()
        await self._histories.turns.wait()
        self._check_current()
        gap = gap_before(history, position)
        if gap:
            return position, gap
        window = self._histories.keep_window(history)
        page = window.following(position.offset, PIECE_MESSAGES, PIECE_BYTES)
        if page is None:
            return position, await self._histories.read_page(history, position.offset)
        high_water = connection.hub.config.max_send_buffer // 2
        for prepared in page.messages:
            if connection.buffered > high_water:
                return position, ""
            if prepared.message is not None and prepared.excluded != connection.id:
                if self._sent >= self._limit:
                    return position, "too_much"
                connection.send(prepared.message, compress=prepared.compress)
                self._sent += 1
            position = Position(prepared.offset, position.epoch)
        return Position(page.end, position.epoch), ""

    def _end(self, position: Position, gap: Gap) -> Recovery:
        """Have the client join the room, unless the application has had it leave meanwhile."""
        if not self._returning.is_wanted:
            return Recovery(position=position, sent=self._sent, gap=gap)
        self._check_current()
        self._histories.join(self._connection, self._history.name, self._returning)
        return Recovery(position=self._history.position, sent=self._sent, gap=gap)

    def _check_current(self) -> None:
        """Raise ``MisuseError`` if the room has lost its history meanwhile, or has begun to keep one anew."""
        if not self._histories.is_current(self._history):
            room = self._history.name
            self._histories.config_of(room)
            raise MisuseError(f"the settings of the room {room!r} were changed while a client recovered: recover again")
