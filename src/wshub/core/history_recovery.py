"""A client comes back to a room with the position of the last message that it has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wshub.brokers.interface import Gap, Position
from wshub.core.histories import Histories
from wshub.core.history_types import Recovery
from wshub.core.room_history import RoomHistory
from wshub.errors import BrokerUnavailable, MisuseError

if TYPE_CHECKING:
    from wshub.core.connection import Connection

__all__ = ["recover"]

LIVE_SECONDS = 10.0
"""Seconds that a room has to catch up itself before its clients can."""


async def recover(
    histories: Histories, connection: Connection, room: str, position: Position | None, limit: int
) -> Recovery:
    """Send a client what it has missed, and have it join the room. See ``Connection.recover``."""
    histories.config_of(room)
    key = (connection.id, room)
    if key in histories.coming_back:
        raise MisuseError(f"recover(): the connection comes back to the room {room!r} already")
    histories.coming_back.add(key)
    try:
        # To a member, new messages could overtake those that it has missed.
        connection.leave(room)
        history = histories.hold(room)
        try:
            await wait_live(history)
            recovery = await catch_up(histories, history, connection, position, limit)
        finally:
            histories.release(history)
    finally:
        histories.coming_back.discard(key)
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


async def catch_up(
    histories: Histories, history: RoomHistory, connection: Connection, position: Position | None, limit: int
) -> Recovery:
    """Send a client what is behind its position, and have it join without a message in between."""
    if position is None:
        return join(history, connection, 0, "")
    gap = gap_before(history, position)
    if gap and await histories.is_newer_elsewhere(history, position):
        # The client was at another node, which is ahead of this one.
        history.interrupt()
        await wait_live(history)
        gap = gap_before(history, position)
    if not gap and position.offset < history.offset:
        await histories.ensure_window(history)
        gap = gap_before(history, position)
    offset, sent = position.offset, 0
    while not gap and offset < history.offset:
        # Nothing waits between the end of this loop and join().
        if history.window is None or not history.window.reaches(offset):
            gap = "trimmed"
        elif history.window.count_since(offset) > limit - sent:
            gap = "too_much"
        else:
            for prepared in history.window.since(offset):
                offset = prepared.offset
                if prepared.message is not None:
                    connection.send(prepared.message, compress=prepared.compress)
                    sent += 1
                if connection.buffered > connection.hub.config.max_send_buffer // 2:
                    break
            else:
                # Some of the newest messages may not be in the window, since they could not be made.
                offset = history.offset
            if offset < history.offset:
                await connection.wait_writable()
                gap = gap_before(history, Position(offset, position.epoch))
    return join(history, connection, sent, gap)


def gap_before(history: RoomHistory, position: Position) -> Gap:
    """Return why nothing can be told about what is behind a position; empty if it can."""
    if position.epoch != history.epoch or not 0 <= position.offset <= history.offset:
        return "epoch"
    return ""


def join(history: RoomHistory, connection: Connection, sent: int, gap: Gap) -> Recovery:
    """Have the client join the room, at the room's position."""
    connection.join(history.name)
    return Recovery(position=history.position, sent=sent, gap=gap)
