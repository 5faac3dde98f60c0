"""The messages between the nodes and the clients of the cluster's soak test. The first byte of each is its kind.

A stream is the messages of one node to one room, to one user or to all connections, sent in one way. They are numbered
from 1.
"""

from __future__ import annotations

import struct

__all__ = [
    "ALL",
    "IDENTIFY",
    "INTERRUPTED",
    "JOIN",
    "LEAVE",
    "NODES",
    "NUMBERED",
    "PUBLISHED",
    "READY",
    "REQUEST",
    "RETURNED",
    "ROOM",
    "ROOMS",
    "SENT",
    "STREAMED",
    "USER",
    "USERS",
    "room_name",
    "user_name",
]

NODES = 4
RETURNED = "returned"
"""How the outcome of a publish() begins that has not failed."""

ROOMS = 40
USERS = 100

SENT = 0x4D  # a message of a stream
INTERRUPTED = 0x47  # the node may have missed messages; JSON follows: the time and the channels, null for all
IDENTIFY = 0x49  # a client names its user; the node answers once messages to the user arrive from all nodes
JOIN = 0x4A  # a client asks to enter a room; the node answers once messages to the room arrive from all nodes
LEAVE = 0x4C  # a client asks to leave a room; the node answers when it has

REQUEST = struct.Struct("!BH")  # kind, room or user
READY = struct.Struct("!BHd")  # kind, room or user, time of the answer

ROOM, PUBLISHED, USER, ALL = range(4)
"""The ways of a stream: broadcast() to a room, publish() to a room, send_to_user(), and broadcast() to all."""

STREAMED = struct.Struct("!BBBHQdd?")
"""Kind, node, way, room or user, number, time, time of the number before, whether it is the last one of the stream."""

NUMBERED = tuple[int, int, int]
"""A stream: node, way, room or user."""


def room_name(room: int) -> str:
    return f"room-{room}"


def user_name(user: int) -> str:
    return f"user-{user}"
