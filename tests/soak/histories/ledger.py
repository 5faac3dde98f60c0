"""The checks of rooms with history: at each client, and for all clients together."""

from __future__ import annotations

from collections import Counter

from tests.soak.histories.wire import is_short, room_name

__all__ = ["Ledger", "Place", "View"]

Place = tuple[str, int]
"""An epoch and an offset."""


class Ledger:
    """The messages of all clients and publishers. It notes each failure as soon as it happens.

    Args:
        may_lose: whether the engine loses messages that it has taken, and that members have got. Then another message
            may take the place of a lost one. That epoch must end, so that each client is told.
    """

    def __init__(self, *, may_lose: bool = False) -> None:
        self.failures: list[str] = []
        self._may_lose = may_lose
        self._replaced: set[tuple[int, str]] = set()
        """The rooms and epochs in which a message has taken the place of a lost one."""
        self.counts: Counter[str] = Counter()
        self.messages: dict[tuple[int, str], dict[int, str]] = {}
        """The data of each message that was seen or stored, by room and epoch, and by offset."""
        self._offsets: dict[tuple[int, str], dict[str, int]] = {}

    def fail(self, text: str) -> None:
        self.failures.append(text)

    def epochs(self, room: int) -> set[str]:
        """Return the epochs of a room that were seen."""
        return {epoch for number, epoch in self.messages if number == room}

    def note(self, room: int, place: Place, data: str, who: str) -> None:
        """Note that a message stands at a place. Another message there, or the same one elsewhere, is a failure."""
        epoch, offset = place
        known = self.messages.setdefault((room, epoch), {}).setdefault(offset, data)
        if known != data:
            self._differ(room, epoch, f"{data!r} is at {place} to {who}, and {known!r} was there")
        elsewhere = self._offsets.setdefault((room, epoch), {}).setdefault(data, offset)
        if elsewhere != offset:
            self._differ(room, epoch, f"{data!r} is at {place} to {who}, and was at {elsewhere}")

    def _differ(self, room: int, epoch: str, text: str) -> None:
        if self._may_lose:
            self._replaced.add((room, epoch))
        else:
            self.fail(f"{room_name(room)}: {text}")

    @property
    def replaced(self) -> int:
        """The number of epochs in which a message has taken the place of a lost one."""
        return len(self._replaced)

    def stored(self, room: int, place: Place, data: str) -> None:
        """Note that a publisher was told where its message stands."""
        self.counts["stored"] += 1
        # If the message is lost before any member has got it, no node knows that it was there.
        if not self._may_lose:
            self.note(room, place, data, "its publisher")

    def check_orders(self) -> None:
        """Check that the messages of each publisher stand in the order in which it has sent them."""
        for (room, epoch), messages in self.messages.items():
            if (room, epoch) in self._replaced:
                continue
            last: dict[str, int] = {}
            for offset in sorted(messages):
                publisher, number = messages[offset].split(".")
                if int(number) <= last.get(publisher, -1):
                    self.fail(f"{room_name(room)}: {messages[offset]!r} at {(epoch, offset)} came after a later one")
                last[publisher] = int(number)

    def check_ends(self, ends: dict[int, Place]) -> None:
        """Check that the last message of each room stands behind all others of its epoch."""
        for room, (epoch, offset) in ends.items():
            newest = max(self.messages[room, epoch])
            if newest > offset:
                self.fail(f"{room_name(room)}: {newest} was stored in {epoch}, and the last message is {offset}")
            if (room, epoch) in self._replaced:
                self.fail(f"{room_name(room)}: messages have taken the place of lost ones in {epoch}, which goes on")


class View:
    """A room as one client has seen it, over all its connections.

    Args:
        ledger: of all clients.
        room: the number of the room.
        who: the client, for messages.
    """

    def __init__(self, ledger: Ledger, room: int, who: str) -> None:
        self.position: Place | None = None
        self.is_member = False
        self._ledger = ledger
        self._room = room
        self._who = who
        # A gap that the client was told as a member. The next message need not follow.
        self._gap = ""

    def cut_off(self) -> None:
        """Note that the connection has ended."""
        self.is_member = False
        self._gap = ""

    def message(self, place: Place, data: str) -> None:
        """Take a message of the room."""
        self._ledger.counts["messages"] += 1
        if not self.is_member:
            self._ledger.counts["messages recovered"] += 1
        if self.position is None:
            self._fail(f"got {place} before it was a member")
        elif self._gap or place != (self.position[0], self.position[1] + 1):
            self._check_gap(place)
        self._gap = ""
        self.position = place
        self._ledger.note(self._room, place, data, self._who)

    def _check_gap(self, place: Place) -> None:
        assert self.position is not None
        (epoch, offset), (last_epoch, last_offset) = place, self.position
        if self._gap == "epoch" and epoch != last_epoch:
            return
        if self._gap == "trimmed" and epoch == last_epoch and offset > last_offset + 1:
            return
        self._fail(f"got {place} after {self.position}, and was told {self._gap or 'nothing'}")

    def gap(self, gap: str) -> None:
        """Take a gap that members are told."""
        self._count(gap)
        # Of several gaps without a message in between, a new epoch counts most.
        if self._gap != "epoch":
            self._gap = gap

    def back(self, gap: str, place: Place) -> None:
        """Take the outcome of a recovery."""
        self.is_member = True
        if gap:
            self._check_missed(gap, place)
            self._count(gap)
        elif self.position is None:
            self._ledger.counts["first visits"] += 1
        elif self.position != place:
            self._fail(f"came back to {place}, and has {self.position}")
        else:
            self._ledger.counts["recoveries"] += 1
        self.position = place

    def _check_missed(self, gap: str, place: Place) -> None:
        """Check that a client that was told a gap has missed something."""
        assert self.position is not None
        (epoch, offset), (last_epoch, last_offset) = place, self.position
        if (epoch == last_epoch) == (gap == "epoch") or (gap != "epoch" and offset <= last_offset):
            self._fail(f"came back to {place}, has {self.position}, and was told {gap}")

    def _count(self, gap: str) -> None:
        self._ledger.counts[f"gaps: {gap}"] += 1
        if gap != "epoch" and not is_short(self._room):
            self._fail(f"was told {gap}, and the room keeps everything")

    def _fail(self, text: str) -> None:
        self._ledger.fail(f"{room_name(self._room)}: {self._who} {text}")
