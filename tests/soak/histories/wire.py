"""The messages between the application and the clients of the histories' soak test. Each is an array of JSON.

From a client:

- ``["enter", user]``: it is this user, and joins the room with presence of the user.
- ``["recover", room]``, ``["recover", room, offset, epoch]``: it comes to a room with history, or comes back.
- ``["publish", room, data]``: the data is the idempotency key too.

To a client:

- ``["back", room, gap, offset, epoch]``: the outcome of a recovery.
- ``["message", room, offset, epoch, data]``, ``["gap", room, gap]``: what members receive.
- ``["stored", data, offset, epoch]``, ``["failed", data]``: the outcome of a publication.
"""

from __future__ import annotations

from wshub import HistoryConfig

__all__ = ["HERE_ROOMS", "HISTORIES", "ROOMS", "SHORT_ROOMS", "TOKEN", "WORKERS", "here_of", "is_short", "room_name"]

WORKERS = 4
TOKEN = "token-of-the-soak-test"

ROOMS = 20

SHORT_ROOMS = 4
"""The first rooms, which keep so little that clients may miss messages. They must be told."""

HERE_ROOMS = 8

HISTORIES = {
    "short-*": HistoryConfig(size=10, ttl_ms=3_600_000),
    "long-*": HistoryConfig(size=50_000, max_bytes=64 << 20, ttl_ms=3_600_000),
}


def is_short(room: int) -> bool:
    return room < SHORT_ROOMS


def room_name(room: int) -> str:
    return f"{'short' if is_short(room) else 'long'}-{room}"


def here_of(user: str) -> str:
    """Return the room with presence that a user joins."""
    return f"here-{int(user) % HERE_ROOMS}"
