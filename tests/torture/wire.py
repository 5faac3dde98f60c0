"""The messages of the torture test. Each has its sender, its number in the sender's stream, and a checksum.

A stream is the messages of one sender to one room, one connection or all connections, under one policy. A message is
binary, or text with the same bytes in base64: the first byte of a binary message is never ASCII.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from typing import NamedTuple

__all__ = [
    "ALL",
    "APPLICATION",
    "DIRECT",
    "ECHO",
    "JOIN",
    "LEAVE",
    "LOSSY",
    "POLICIES",
    "ROOM",
    "TAME",
    "WILD",
    "DamagedError",
    "Message",
    "as_text",
    "decode",
    "draw_policy",
    "encode",
    "filler",
    "room_name",
]

ECHO = 0x80  # a client's message, which comes back
JOIN = 0x81  # a client asks to enter a room; the answer has the number of the application's last message there
LEAVE = 0x82  # a client asks to leave a room; the answer is the same
ROOM = 0x83  # a message to a room
ALL = 0x84  # a message to all connections
DIRECT = 0x85  # a message to one connection

POLICIES = ("close", "drop_newest", "drop_oldest", "latest", None)
"""The policies of messages. With None, the policy of the room or the hub applies."""

APPLICATION = 0
"""The sender for the application's event loop. Threads have numbers from 1 on, clients from 1000."""

TAME = range(8)
"""Rooms that a client enters and leaves only when it asks to."""

LOSSY = range(4)
"""Tame rooms that get no message with "close". Their connections live long enough to have messages dropped."""

WILD = range(8, 12)
"""Rooms that the application has clients enter and leave at any time."""

HEADER = struct.Struct("!BBHIIIHI")  # the fields of a Message, checksum


class DamagedError(Exception):
    """A message differs from the one that was sent."""


class Message(NamedTuple):
    kind: int
    policy: int = 0  # its index in POLICIES
    room: int = 0
    sender: int = APPLICATION
    number: int = 0  # in its stream, from 1 on
    serial: int = 0  # among all messages of its sender, from 1 on
    key: int = 0


def room_name(room: int) -> str:
    return f"room-{room}"


def encode(message: Message, filler: bytes) -> bytes:
    checksum = zlib.crc32(repr(message).encode() + filler)
    return HEADER.pack(*message, checksum) + filler


def decode(payload: bytes) -> Message:
    """Decode a payload. Raises DamagedError."""
    if payload[:1] < b"\x80":
        # It is in quotes if it was sent as JSON.
        payload = base64.b64decode(payload.strip(b'"'), validate=True)
    *fields, checksum = HEADER.unpack_from(payload)
    message = Message(*fields)
    if zlib.crc32(repr(message).encode() + payload[HEADER.size :]) != checksum:
        raise DamagedError(f"the checksum of {message} with {len(payload)} bytes is wrong")
    return message


def draw_policy(chance: random.Random, room: int | None) -> int:
    """Draw a policy for a message to a room, or to none."""
    lossless = room in TAME and room not in LOSSY
    weights = (0 if room in LOSSY else 4 if lossless else 0.3, 1, 1, 1, 1)
    return chance.choices(range(len(POLICIES)), weights)[0]


def as_text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def filler(chance: random.Random, largest: int) -> bytes:
    """Return some bytes: compressible or not."""
    size = min(largest, chance.choice((0, 1, 40, 90, 100, 300, 1000, 5000, 20_000)))
    if chance.random() < 0.3:
        return chance.randbytes(size)
    words = b"the price of %d is %d; " % (chance.randrange(97), chance.randrange(1000))
    return (words * (size // len(words) + 1))[:size]
