"""The messages of the chat, in an SQLite database, so that a restart of the server loses none."""

import secrets
import sqlite3
import time
from pathlib import Path
from typing import TypedDict

KEPT_MESSAGES = 1_000
"""Messages that a room keeps: the newest."""

MAX_ROOMS = 100
"""Rooms that keep messages. Together with the other limits, it bounds the size of the database."""

MAX_TEXT = 2_000
"""Characters of a message."""

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS messages ("
    "room TEXT, number INTEGER, id TEXT, name TEXT, text TEXT, time INTEGER, "
    "PRIMARY KEY (room, number), UNIQUE (room, id)) WITHOUT ROWID"
)
ENTRY = "SELECT number, id, name, text, time FROM messages WHERE room = ?"


class Entry(TypedDict):
    """A message as clients get it."""

    number: int
    """1, 2, 3, ... in each room. A client that misses a number asks for it."""

    id: str
    """The id that its sender has given it."""

    name: str
    text: str

    time: int
    """When the server has stored it, in milliseconds since 1970."""


class Refused(Exception):
    """A message that is not stored. Its text tells the user why."""


class History:
    """The newest messages of each room. One process at a time may use a file.

    The calls block the event loop for some microseconds: the write-ahead log is not synchronised with the disk at each
    commit. A crash of the server loses nothing; a crash of the machine may lose the last messages.

    Args:
        file: the database, which is created if it does not exist. ``":memory:"`` ends with the process.
    """

    epoch: int
    """A random number of this database. In another database, the numbers that clients know mean nothing."""

    def __init__(self, file: Path | str) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(SCHEMA)
        [self.epoch] = self._database.execute("PRAGMA user_version").fetchone()
        if self.epoch == 0:
            self.epoch = secrets.randbelow(2**31 - 1) + 1
            self._database.execute(f"PRAGMA user_version = {self.epoch}")
        newest = self._database.execute("SELECT room, max(number) FROM messages GROUP BY room")
        self._newest: dict[str, int] = dict(newest.fetchall())

    def add(self, room: str, message_id: str, name: str, text: str) -> tuple[Entry, bool]:
        """Store a message, unless the room has one with that id.

        Returns:
            The message as it is stored, and whether it is new.

        Raises:
            Refused: the message is empty or too long, or it would be the first of too many rooms.
        """
        if not 0 < len(text) <= MAX_TEXT:
            raise Refused(f"A message has 1 to {MAX_TEXT:,} characters.")
        if room not in self._newest and len(self._newest) >= MAX_ROOMS:
            raise Refused("There are too many rooms. Write in one that has messages.")
        number = self.newest_number(room) + 1
        stored = self._database.execute(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (room, id) DO NOTHING",
            (room, number, message_id, name, text, time.time_ns() // 1_000_000),
        )
        is_new = stored.rowcount == 1
        if is_new:
            self._newest[room] = number
            self._database.execute(
                "DELETE FROM messages WHERE room = ? AND number <= ?", (room, number - KEPT_MESSAGES)
            )
        [entry] = self._entries(f"{ENTRY} AND id = ?", (room, message_id))
        return entry, is_new

    def after(self, room: str, number: int, limit: int) -> list[Entry]:
        """Return the first messages of a room after that number, in order."""
        return self._entries(f"{ENTRY} AND number > ? ORDER BY number LIMIT ?", (room, number, limit))

    def newest_number(self, room: str) -> int:
        """Return the number of the newest message of a room; 0 if there is none."""
        return self._newest.get(room, 0)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _entries(self, query: str, values: tuple[str | int, ...]) -> list[Entry]:
        return [
            Entry(number=number, id=message_id, name=name, text=text, time=stored_at)
            for number, message_id, name, text, stored_at in self._database.execute(query, values)
        ]
