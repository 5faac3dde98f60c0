"""A client of the cluster's soak test. It finds what is missing in the streams that it receives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.soak.cluster.wire import (
    ALL,
    IDENTIFY,
    INTERRUPTED,
    JOIN,
    LEAVE,
    NODES,
    PUBLISHED,
    READY,
    REQUEST,
    ROOM,
    SENT,
    STREAMED,
    USER,
    room_name,
    user_name,
)
from tests.support.frame_protocol import FrameProtocol

__all__ = ["Client", "Gap"]

BINARY = 2


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of a stream that are missing at a client, without an interruption of its node."""

    receiver: int
    """The number of the client's node."""
    node: int
    way: int
    number: int
    first: int
    last: int
    since: float
    """When the last message before the gap was sent."""
    until: float
    """When the last message in the gap was sent."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Stream:
    """A stream, as a client knows it."""

    __slots__ = ("interrupted_at", "last", "sent")

    def __init__(self, interrupted_at: float) -> None:
        self.last = 0
        self.sent = 0.0
        self.interrupted_at = interrupted_at
        """When the client's node was interrupted. Messages that were sent later may be missing. An older message may
        still arrive after the interruption, if it was held up on its way."""


class Client(FrameProtocol):
    """One connection.

    Args:
        node: the number of the node that it is connected to.
        user: the number of its user.
        found: takes each gap.
        heard: takes the stream and the number of each message that another node has published.
    """

    def __init__(
        self, node: int, user: int, found: Callable[[Gap], None], heard: Callable[[int, int, int], None]
    ) -> None:
        super().__init__()
        self.node = node
        self.user = user
        self.asked: set[tuple[int, int]] = set()
        """Requests without an answer: kind, and room or user."""
        self.rooms: dict[int, float] = {}
        """The rooms that it is in, each with a time. Messages that were sent later must have arrived."""
        self.interrupted_gaps = 0
        self._found = found
        self._heard = heard
        self._identified = math.inf
        self._streams: dict[tuple[int, int, int], Stream] = {}
        # When each channel was interrupted last; None stands for all of them. The first message of a stream may have
        # been held up on its way since before that.
        self._interruptions: dict[str | None, float] = {}
        self._ended: set[tuple[int, int, int]] = set()

    def ask(self, kind: int, number: int) -> None:
        """Ask for something. No other request about it may wait for its answer."""
        self.asked.add((kind, number))
        self.write(BINARY, REQUEST.pack(kind, number))

    @property
    def has_all(self) -> bool:
        """Whether it has the last message of each of its streams."""
        expected = {(node, USER, self.user) for node in range(NODES)}
        expected |= {(node, ALL, 0) for node in range(NODES)}
        expected |= {(node, way, room) for node in range(NODES) for way in (ROOM, PUBLISHED) for room in self.rooms}
        return self._ended >= expected

    def message_received(self, payload: bytes) -> None:
        kind = payload[0]
        if kind == SENT:
            _, *fields = STREAMED.unpack_from(payload)
            self._sent(*fields)
        elif kind == INTERRUPTED:
            self._interrupted(**json.loads(payload[1:]))
        else:
            _, number, time = READY.unpack(payload)
            self._answered(kind, number, time)

    def _answered(self, kind: int, number: int, time: float) -> None:
        self.asked.remove((kind, number))
        if kind == JOIN:
            self.rooms[number] = time
        elif kind == IDENTIFY:
            self._identified = time
        elif kind == LEAVE:
            del self.rooms[number]
            self._streams = {
                key: stream
                for key, stream in self._streams.items()
                if key[1] not in (ROOM, PUBLISHED) or key[2] != number
            }

    def _interrupted(self, time: float, channels: list[str] | None) -> None:
        self._interruptions.update(dict.fromkeys([None] if channels is None else channels, time))
        for (node, way, number), stream in self._streams.items():
            if node != self.node and (channels is None or channel_of(way, number) in channels):
                stream.interrupted_at = time
        # A stream whose first message is still to come has nothing to compare it with.
        self._identified = math.inf
        self.rooms = dict.fromkeys(self.rooms, math.inf)

    def _sent(self, node: int, way: int, number: int, sequence: int, sent: float, before: float, last: bool) -> None:
        if way == PUBLISHED and node != self.node:
            self._heard(node, number, sequence)
        if way in (ROOM, PUBLISHED):
            if number not in self.rooms:
                if (JOIN, number) not in self.asked:
                    raise AssertionError(f"a message of {room_name(number)}, which this client is not in")
                # Before the answer, messages may be missing.
                return
            complete_since = self.rooms[number]
        elif way == USER:
            if number != self.user:
                raise AssertionError(f"a message of {user_name(number)}, and the client is {user_name(self.user)}")
            if (IDENTIFY, number) in self.asked:
                return
            complete_since = self._identified
        else:
            complete_since = math.inf
        stream = self._streams.get((node, way, number))
        if stream is None:
            interrupted_at = 0.0 if node == self.node else self._last_interruption(channel_of(way, number))
            stream = self._streams[node, way, number] = Stream(interrupted_at)
            if before > complete_since:
                self._found(Gap(self.node, node, way, number, sequence - 1, sequence - 1, complete_since, before))
        elif sequence <= stream.last:
            raise AssertionError(f"{(node, way, number)}: message {sequence} came after {stream.last}")
        elif sequence > stream.last + 1:
            if stream.interrupted_at >= stream.sent:
                self.interrupted_gaps += 1
            else:
                self._found(Gap(self.node, node, way, number, stream.last + 1, sequence - 1, stream.sent, before))
        stream.last, stream.sent = sequence, sent
        if last:
            self._ended.add((node, way, number))

    def _last_interruption(self, channel: str) -> float:
        """Return when messages of a channel were interrupted last."""
        return max(self._interruptions.get(None, 0.0), self._interruptions.get(channel, 0.0))

    def describe(self) -> dict[str, Any]:
        """Return what may explain the connection's end."""
        return {
            name: getattr(self, name) for name in ("node", "user", "asked", "rooms", "received", "close_code", "error")
        }


def channel_of(way: int, number: int) -> str:
    """Return the broker's channel of a stream."""
    if way == ALL:
        return "all"
    return f"user:{user_name(number)}" if way == USER else f"room:{room_name(number)}"
