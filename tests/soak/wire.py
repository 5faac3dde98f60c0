"""The messages between the server and the clients of the soak test.

The first byte of a message is its kind. A message about a room has the room's number next.
"""

from __future__ import annotations

import struct

__all__ = ["ALL", "ECHO", "JOIN", "LEAVE", "NUMBERED", "OF_ROOM", "POLICIES", "ROOM", "ROOMS", "policy_of", "room_name"]

ECHO = 0x45  # a client's number, which the server sends back
JOIN = 0x4A  # a client asks to enter a room; the server answers with the number of the room's last message
LEAVE = 0x4C  # a client asks to leave a room; the answer is the same
ROOM = 0x52  # a message to a room: the next number of that room
ALL = 0x41  # a message to all connections: the next number

NUMBERED = struct.Struct("!BQ")  # kind, number
OF_ROOM = struct.Struct("!BHQ")  # kind, room, number

ROOMS = 120
POLICIES = ("close", "drop_newest", "drop_oldest", "latest")


def policy_of(room: int) -> str:
    return POLICIES[room % len(POLICIES)]


def room_name(room: int) -> str:
    return f"room-{room}"
