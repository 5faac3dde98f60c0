"""A plain Python model of a hub's behaviour: queues, policies, rooms and delivery counters.

The model does not know how many bytes the kernel accepts; the test reports that with ``Queue.take_down_to``. Everything
else follows from the calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["MAX_SEND_BUFFER", "Frame", "HubModel", "LinkCounters", "Queue", "RoomModel", "wire_length"]

MAX_SEND_BUFFER = 20_000
LEAST_CHARGE = 64  # the bytes that a shorter frame counts for against that limit
REASONS = ("closed", "slow", "newest", "oldest", "replaced")


def wire_length(payload: int) -> int:
    """Return the size of a server's frame with a payload of that size (RFC 6455 section 5.2)."""
    return payload + (2 if payload < 126 else 4)


@dataclass
class LinkCounters:
    """The delivery counters of a hub or a room."""

    accepted: int = 0
    delivered: int = 0
    pending: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_stats(self) -> dict[str, object]:
        return {
            "messages_accepted": self.accepted,
            "messages_delivered": self.delivered,
            "messages_pending": self.pending,
            "dropped": {reason: self.dropped[reason] for reason in REASONS},
        }


@dataclass(frozen=True)
class Frame:
    """A queued frame; ``number`` is None if it carries no message."""

    number: int | None
    size: int
    key: object = None
    droppable: bool = False
    counters: tuple[LinkCounters, ...] = ()

    @property
    def charge(self) -> int:
        """The bytes that the frame counts for against the limit."""
        return max(self.size, LEAST_CHARGE)

    def is_accepted(self) -> None:
        if self.number is not None:
            for counters in self.counters:
                counters.accepted += 1
                counters.pending += 1

    def is_delivered(self) -> None:
        if self.number is not None:
            for counters in self.counters:
                counters.pending -= 1
                counters.delivered += 1

    def is_dropped(self, reason: str) -> None:
        if self.number is not None:
            for counters in self.counters:
                counters.pending -= 1
                counters.dropped[reason] += 1


class Queue:
    """The frames that wait for one client."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.begun = 0  # bytes of the first frame that the kernel has accepted
        self.blocked = False  # the kernel accepts nothing until the client reads
        self.taken: list[int] = []  # the numbers of the messages that were written in full
        self.lost: list[Frame] = []  # the frames that were queued when the connection failed
        self.drops = 0  # the number of frames that a policy has dropped or replaced

    @property
    def charge(self) -> int:
        """The bytes that the queue counts for against the limit."""
        return sum(frame.charge for frame in self.frames) - self.begun

    @property
    def is_full(self) -> bool:
        return self.charge >= MAX_SEND_BUFFER

    def take_down_to(self, charge: int) -> None:
        """Remove what the kernel has accepted, until the queue counts for ``charge`` bytes."""
        while self.charge > charge:
            frame = self.frames[0]
            rest = frame.size - self.begun
            if self.charge - rest < charge:
                # The kernel has accepted a part of this frame.
                self.begun += self.charge - charge
                break
            self.frames.pop(0)
            self.begun = 0
            frame.is_delivered()
            if frame.number is not None:
                self.taken.append(frame.number)
        assert self.charge == charge

    def push(self, frame: Frame) -> None:
        frame.is_accepted()
        self.frames.append(frame)

    def droppable_places(self) -> list[int]:
        """Return the positions of the frames that may be dropped: no byte of them is written."""
        first = 1 if self.begun else 0
        return [place for place in range(first, len(self.frames)) if self.frames[place].droppable]

    def drop_all(self, reason: str, *, but_begun: bool = False) -> None:
        kept = self.frames[:1] if but_begun and self.begun else []
        for frame in self.frames[len(kept) :]:
            frame.is_dropped(reason)
            self.lost.append(frame)
        self.frames = kept
        self.begun = self.begun if kept else 0

    def add(self, frame: Frame, policy: str) -> str:
        """Queue a frame under that policy; return ``"queued"``, ``"dropped"`` or ``"overflow"``."""
        if policy == "latest" and self.blocked and frame.key is not None:
            places = [place for place in self.droppable_places() if self.frames[place].key == frame.key]
            if places:
                self.drops += 1
                self.frames[places[-1]].is_dropped("replaced")
                frame.is_accepted()
                self.frames[places[-1]] = frame
                return "queued"
        if self.is_full:
            assert self.blocked, "the queue is full before a write was tried"
            if policy == "close":
                frame.is_accepted()
                frame.is_dropped("slow")
                return "overflow"
            droppable = sum(self.frames[place].charge for place in self.droppable_places())
            if policy != "drop_newest" and self.charge - droppable < MAX_SEND_BUFFER:
                while self.is_full:
                    self.drops += 1
                    self.frames.pop(self.droppable_places()[0]).is_dropped("oldest")
            else:
                frame.is_accepted()
                frame.is_dropped("newest")
                return "dropped"
        self.push(frame)
        return "queued"


class RoomModel:
    """A room, which exists while it has members."""

    def __init__(self, policy: str | None) -> None:
        self.members: set[int] = set()
        self.counters = LinkCounters()
        self.policy = policy
        self.key = object()


class HubModel:
    """Clients by number, rooms by name, and the delivery counters of the hub."""

    def __init__(self, policy: str, room_policies: dict[str, str | None]) -> None:
        self.policy = policy
        self.room_policies = room_policies
        self.rooms: dict[str, RoomModel] = {}
        self.queues: dict[int, Queue] = {}
        self.open: set[int] = set()
        self.counters = LinkCounters()

    def add_client(self, client: int) -> None:
        self.queues[client] = Queue()
        self.open.add(client)

    def join(self, client: int, name: str) -> None:
        room = self.rooms.setdefault(name, RoomModel(self.room_policies[name]))
        room.members.add(client)

    def leave(self, client: int, name: str) -> None:
        room = self.rooms.get(name)
        if room is not None:
            room.members.discard(client)
            if not room.members:
                del self.rooms[name]

    def end(self, client: int) -> None:
        """Send no further messages to the client; the queued ones still go out."""
        self.open.discard(client)
        for name in list(self.rooms):
            self.leave(client, name)

    def close(self, client: int, reason: str = "") -> None:
        self.end(client)
        self.queues[client].push(Frame(None, wire_length(2 + len(reason))))

    def add(self, client: int, frame: Frame, policy: str) -> bool:
        """Queue a frame for a client; return True if it was queued."""
        outcome = self.queues[client].add(frame, policy)
        if outcome == "overflow":
            self.queues[client].drop_all("slow", but_begun=True)
            self.close(client, "too much is waiting to be sent")
        return outcome == "queued"

    def send(self, client: int, number: int, size: int, policy: str | None, key: str | None) -> bool:
        policy = policy or self.policy
        frame_key = None if key is None else ("private", key)
        return self.add(
            client, Frame(number, wire_length(size), frame_key, policy != "close", (self.counters,)), policy
        )

    def ping(self, client: int, size: int) -> bool:
        return self.add(client, Frame(None, wire_length(size)), self.policy)

    def receivers(self, name: str | None, exclude: int | None) -> set[int]:
        members = self.open if name is None else self.rooms[name].members if name in self.rooms else set()
        return members - {exclude}

    def broadcast(
        self, name: str | None, number: int, size: int, exclude: int | None, policy: str | None, key: str | None
    ) -> int:
        """Queue a message for all clients or for a room; return the number of clients."""
        room = self.rooms.get(name) if name is not None else None
        policy = policy or (room.policy if room is not None else None) or self.policy
        counters = (self.counters,) if room is None else (self.counters, room.counters)
        keyed = key is not None or (room is not None and policy == "latest")
        frame_key = ("all" if room is None else room.key, key) if keyed else None
        frame = Frame(number, wire_length(size), frame_key, policy != "close", counters)
        return sum(self.add(client, frame, policy) for client in self.receivers(name, exclude))
