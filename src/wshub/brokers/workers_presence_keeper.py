"""The slots whose presence this worker keeps.

A new owner first gets the entries of all other nodes again. Requests wait meanwhile, and notice no more than that.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.presence_store import PresenceEntries, former_id, taken_id
from wshub.brokers.workers_presence_records import Enter, Leave, Read, RequestBody
from wshub.brokers.workers_presence_tables import ENTRIES_AT_ONCE

__all__ = ["OwnedSlot", "PresenceKeeper", "parts_of"]

READ_AT_ONCE = 1000
"""Entries of one page at most."""

REQUEST_CHARGE = 256


class CopiesOfEntries(Protocol):
    """Takes each entry that comes, and the id of each that goes."""

    def add(self, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None: ...

    def remove(self, node_id: str, channel: str, ids: Iterable[str]) -> None: ...


class Waiting:
    """A request that waits until all nodes have resent their entries."""

    __slots__ = ("body", "node_id", "refuse", "reply")

    def __init__(
        self, node_id: str, body: RequestBody, reply: Callable[[Any], object], refuse: Callable[[str], object]
    ) -> None:
        self.node_id = node_id
        self.body = body
        self.reply = reply
        self.refuse = refuse

    @property
    def charge(self) -> int:
        return REQUEST_CHARGE + self.body.size


class OwnedSlot:
    """A slot that this node owns."""

    __slots__ = ("awaited", "doubtful", "entries", "resending", "term", "unconfirmed", "waiting")

    def __init__(self) -> None:
        self.term = 0
        self.entries = PresenceEntries()
        self.awaited: set[str] = set()
        """Nodes that have not resent their entries yet."""
        self.waiting: deque[Waiting] = deque()
        self.resending: Counter[str] = Counter()
        """How often each node is about to resend its entries."""
        self.unconfirmed: dict[str, set[tuple[str, str]]] = {}
        """Channels and ids of entries that were there before, and that have not come yet."""
        self.doubtful: dict[str, list[tuple[str, tuple[PresenceEntry, ...]]]] = {}
        """Copies of entries of awaited nodes, which may have ended: then nobody else knows these entries."""

    def confirm(self, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Note that a node has these entries."""
        unconfirmed = self.unconfirmed.get(node_id)
        if unconfirmed:
            unconfirmed.difference_update((channel, entry.id) for entry in entries)

    def forget_resending(self, node_id: str) -> None:
        """Expect no more from a node: its connection is lost."""
        self.resending.pop(node_id, None)
        self.unconfirmed.pop(node_id, None)


def parts_of(owned: OwnedSlot) -> Iterator[tuple[str, str, tuple[PresenceEntry, ...]]]:
    """Yield nodes and channels with some entries each. Those that are removed before their turn are left out."""
    for node_id in owned.entries.nodes:
        for channel, entries in owned.entries.parts(node_id, ENTRIES_AT_ONCE):
            yield node_id, channel, entries


class PresenceKeeper:
    """The entries of the slots that this node owns.

    Args:
        own_id: the id of this node.
        max_pending: bytes of requests that may wait.
    """

    def __init__(self, own_id: str, max_pending: int) -> None:
        self.copies: CopiesOfEntries
        """Set before anything is called."""
        self.slots: dict[int, OwnedSlot] = {}
        self._own_id = own_id
        self._max_pending = max_pending
        self._waiting_bytes = 0

    def begin(self, slot: int, term: int, awaited: Iterable[str]) -> OwnedSlot:
        """Own a slot from now on, or again since another term. The entries of these nodes will come."""
        owned = self.slots.get(slot)
        if owned is None:
            owned = self.slots[slot] = OwnedSlot()
        else:
            # Others may have given the copies to another owner.
            self._copy_again(owned)
        owned.term = term
        owned.awaited = set(awaited)
        owned.resending.clear()
        owned.unconfirmed.clear()
        owned.doubtful.clear()
        return owned

    def end(self, slot: int) -> None:
        """Forget a slot that has another owner."""
        owned = self.slots.pop(slot, None)
        if owned is not None:
            for waiting in self._take_waiting(owned):
                waiting.refuse("another worker keeps this presence")

    def close(self) -> None:
        """Keep nothing."""
        for slot in tuple(self.slots):
            self.end(slot)

    # Entries

    def enter(self, owned: OwnedSlot, node_id: str, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of a node. Return for each whether it was the only one of its user."""
        outcome = owned.entries.enter(node_id, channel, entries)
        if entries:
            self.copies.add(node_id, channel, entries)
        return outcome

    def enter_missing(self, owned: OwnedSlot, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Add entries that are not there yet."""
        self.enter(owned, node_id, channel, [entry for entry in entries if not owned.entries.has(channel, entry.id)])

    def enter_copies(
        self, owned: OwnedSlot, node_id: str, channel: str, entries: Iterable[PresenceEntry], *, is_connected: bool
    ) -> None:
        """Add entries of a node that another one has copied, unless the node itself says what it has."""
        if is_connected:
            if node_id in owned.awaited:
                owned.doubtful.setdefault(node_id, []).append((channel, tuple(entries)))
            return
        known = owned.entries
        missing = [
            entry
            for entry in entries
            # This node may have taken an entry over already.
            if not any(known.has(channel, name) or known.has_left(channel, name) for name in self._names_of(entry))
        ]
        self.enter(owned, node_id, channel, missing)

    def _copy_again(self, owned: OwnedSlot) -> None:
        for node_id, channel, entries in parts_of(owned):
            self.copies.add(node_id, channel, entries)

    def _names_of(self, entry: PresenceEntry) -> tuple[str, str]:
        return entry.id, taken_id(self._own_id, entry.id)

    # Nodes

    def resend_begins(self, owned: OwnedSlot, node_id: str) -> None:
        """Note that a node will resend all its entries. It may have removed some without this node."""
        owned.resending[node_id] += 1
        owned.unconfirmed.setdefault(node_id, set()).update(owned.entries.names_of(node_id))

    def resent_all(self, owned: OwnedSlot, node_id: str) -> None:
        """Note that a node has resent all its entries."""
        owned.resending[node_id] -= 1
        if owned.resending[node_id] <= 0:
            for channel, entry_id in owned.unconfirmed.get(node_id, ()):
                owned.entries.drop(node_id, channel, entry_id)
                self.copies.remove(node_id, channel, [entry_id])
            owned.forget_resending(node_id)
        owned.awaited.discard(node_id)
        owned.doubtful.pop(node_id, None)
        self.serve_waiting(owned)

    def node_down(self, node_id: str) -> None:
        """Note that the connection to a node is lost. It resends its entries when it is back."""
        for owned in self.slots.values():
            owned.forget_resending(node_id)

    def node_ended(self, node_id: str) -> None:
        """Wait no more for the entries of a node. Those that others have copied are all that is known."""
        for owned in tuple(self.slots.values()):
            if node_id in owned.awaited:
                for channel, entries in owned.doubtful.pop(node_id, ()):
                    self.enter_copies(owned, node_id, channel, entries, is_connected=False)
                owned.awaited.discard(node_id)
                self.serve_waiting(owned)

    def dead(self, is_alive: Callable[[str], bool]) -> list[str]:
        """Return the nodes that have entries, and are not alive."""
        nodes = {node_id for owned in self.slots.values() if not owned.awaited for node_id in owned.entries.nodes}
        return sorted(node_id for node_id in nodes if not is_alive(node_id))

    def take_over(self, node_id: str) -> list[tuple[str, PresenceEntry]]:
        """Make some entries of a dead node those of this one."""
        for owned in self.slots.values():
            taken = owned.entries.take(self._own_id, node_id) if not owned.awaited else []
            channels: defaultdict[str, list[PresenceEntry]] = defaultdict(list)
            for channel, entry in taken:
                channels[channel].append(entry)
            for channel, entries in channels.items():
                self.copies.remove(node_id, channel, [former_id(entry.id) for entry in entries])
                self.copies.add(self._own_id, channel, entries)
            if taken:
                return taken
        return []

    # Requests

    def serve(
        self,
        slot: int,
        node_id: str,
        body: RequestBody,
        reply: Callable[[Any], object],
        refuse: Callable[[str], object],
    ) -> None:
        """Carry a request of a node out, now or once all entries are there. Then call ``reply`` or ``refuse``."""
        owned = self.slots[slot]
        if not owned.awaited:
            reply(self._answer(owned, node_id, body))
            return
        waiting = Waiting(node_id, body, reply, refuse)
        if self._waiting_bytes + waiting.charge > self._max_pending:
            refuse("too much waits for the worker that keeps this presence")
            return
        self._waiting_bytes += waiting.charge
        owned.waiting.append(waiting)

    def serve_waiting(self, owned: OwnedSlot) -> None:
        """Serve the requests that wait if no entries are to come any more."""
        if owned.awaited:
            return
        for waiting in self._take_waiting(owned):
            waiting.reply(self._answer(owned, waiting.node_id, waiting.body))

    def _take_waiting(self, owned: OwnedSlot) -> deque[Waiting]:
        waiting, owned.waiting = owned.waiting, deque()
        self._waiting_bytes -= sum(each.charge for each in waiting)
        return waiting

    def _answer(self, owned: OwnedSlot, node_id: str, body: RequestBody) -> Any:
        if isinstance(body, Enter):
            owned.confirm(node_id, body.channel, body.entries)
            return self.enter(owned, node_id, body.channel, body.entries)
        if isinstance(body, Leave):
            self.copies.remove(node_id, body.channel, [entry.id for entry in body.entries])
            return owned.entries.leave(node_id, body.channel, body.entries)
        if isinstance(body, Read):
            return owned.entries.read(body.channel, body.cursor, min(body.limit, READ_AT_ONCE))
        return owned.entries.counts(body.channel)
