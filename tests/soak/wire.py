"""What the server and the clients of the soak say to each other.

Every message begins with a byte that says its kind, and a room's number where it is about a room.
"""

from __future__ import annotations

import struct

__all__ = ["ALL", "ECHO", "JOIN", "LEAVE", "NUMBERED", "OF_ROOM", "POLICIES", "ROOM", "ROOMS", "policy_of", "room_name"]

ECHO = 0x45  # a client's number, which the server sends back
JOIN = 0x4A  # a client asks to enter a room; the server answers with the number of the room's last message
LEAVE = 0x4C  # the same for leaving
ROOM = 0x52  # a message to a room: the next number of that room
ALL = 0x41  # a message to everybody: the next number

NUMBERED = struct.Struct("!BQ")  # kind, number
OF_ROOM = struct.Struct("!BHQ")  # kind, room, number

ROOMS = 120
POLICIES = ("close", "drop_newest", "drop_oldest", "latest")


def policy_of(room: int) -> str:
    return POLICIES[room % len(POLICIES)]


def room_name(room: int) -> str:
    return f"room-{room}"
