"""Copies of the entries that a worker keeps as an owner. Another worker has them, the standby.

When a slot gets another owner, each worker gives that one the copies that it has of the former owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owners import rendezvous
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_presence_keeper import PresenceKeeper, parts_of
from wshub.brokers.workers_presence_records import Copied, CopiedAnew, Uncopied, UncopiedSlot
from wshub.brokers.workers_presence_tables import SlotEntries, send_paced

__all__ = ["Copies"]


class Copies:
    """The copies that this node's standby has, and those that this node has of others.

    Args:
        loop: the event loop of the session.
        members: who is there.
        keeper: the slots that this node owns. It says what changes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, members: Membership, keeper: PresenceKeeper) -> None:
        self.standby = ""
        """The id of the node that has copies of this one; empty if there is no other."""
        self._loop = loop
        self._members = members
        self._keeper = keeper
        # Whether the standby may lack something.
        self._is_stale = False
        self._sending: asyncio.Task[None] | None = None
        # By owner, and by the node that has the entries.
        self._of_others: dict[str, dict[str, SlotEntries]] = {}

    # Copies of this node

    def add(self, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Have entries of a node copied. The standby knows its own."""
        if node_id != self.standby:
            self._tell(Copied(node_id, channel, tuple(entries)))

    def remove(self, node_id: str, channel: str, ids: Iterable[str]) -> None:
        """Have the copies of entries of a node forgotten."""
        if node_id != self.standby:
            self._tell(Uncopied(node_id, channel, tuple(ids)))

    def drop(self, slot: int) -> None:
        """Have the copies of a slot forgotten, which another node owns now."""
        self._tell(UncopiedSlot(slot))

    def choose(self) -> None:
        """Choose a standby if there is none that can be reached."""
        candidates = self._members.candidates()
        if self.standby in candidates:
            return
        former = self._members.peer(self.standby)
        if former is not None:
            former.send_presence(CopiedAnew().encode(), always=True)
        others = [node_id for node_id in candidates if node_id != self._members.own_id]
        self.standby = rendezvous(f"copies of {self._members.own_id}", others) if others else ""
        self._is_stale = True
        self.sweep()

    def peer_up(self, peer: Peer) -> None:
        """Have a node that was away forget what it may still have."""
        peer.send_presence(CopiedAnew().encode(), always=True)
        if peer.node_id == self.standby:
            self._is_stale = True
        self.choose()
        self.sweep()

    def sweep(self) -> None:
        """Send everything again if the standby may lack something."""
        if self._is_stale and self._sending is None and self._members.reachable(self.standby) is not None:
            self._sending = self._loop.create_task(self._send_all())

    def close(self) -> None:
        """Send nothing more."""
        if self._sending is not None:
            self._sending.cancel()

    def _tell(self, body: Copied | Uncopied | UncopiedSlot) -> None:
        peer = self._members.reachable(self.standby)
        if peer is not None and not peer.send_presence(body.encode()):
            self._is_stale = True

    async def _send_all(self) -> None:
        try:
            while self._is_stale:
                peer = self._members.reachable(self.standby)
                if peer is None:
                    return
                self._is_stale = False
                if not await send_paced(peer, self._bodies(peer.node_id)):
                    self._is_stale = True
                    return
        finally:
            self._sending = None

    def _bodies(self, standby: str) -> Iterator[bytes]:
        yield CopiedAnew().encode()
        for slot, owned in tuple(self._keeper.slots.items()):
            for node_id, channel, entries in parts_of(owned):
                if self._keeper.slots.get(slot) is not owned:
                    # Another node owns it by now, and the standby was told to forget it.
                    break
                if node_id != standby:
                    yield Copied(node_id, channel, entries).encode()

    # Copies of others

    def received(self, peer: Peer, body: CopiedAnew | Copied | Uncopied | UncopiedSlot) -> None:
        """Keep what an owner says."""
        if isinstance(body, CopiedAnew):
            self._of_others.pop(peer.node_id, None)
        elif isinstance(body, Copied):
            self.keep(peer.node_id, body.node_id, body.channel, body.entries)
        elif isinstance(body, Uncopied):
            copies = self._of_others.get(peer.node_id, {}).get(body.node_id)
            if copies is not None:
                copies.remove(body.channel, body.ids)
        else:
            for copies in self._of_others.get(peer.node_id, {}).values():
                copies.drop(body.slot)

    def keep(self, owner: str, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Keep copies of what an owner knows about a node."""
        self._of_others.setdefault(owner, {}).setdefault(node_id, SlotEntries()).add(channel, entries)

    def slots_of(self, owner: str) -> set[int]:
        """Return the slots of which this node has copies of an owner's."""
        return {slot for copies in self._of_others.get(owner, {}).values() for slot in copies.slots}

    @property
    def slots(self) -> set[int]:
        """The slots of which this node has copies."""
        return {slot for owner in self._of_others for slot in self.slots_of(owner)}

    def __contains__(self, slot: int) -> bool:
        return any(slot in copies for of_owner in self._of_others.values() for copies in of_owner.values())

    def take(self, slot: int, owner: str) -> Iterator[tuple[str, str, tuple[PresenceEntry, ...]]]:
        """Yield the nodes, channels and entries of former owners of a slot, for this one. Then forget them."""
        for former, of_owner in tuple(self._of_others.items()):
            if former == owner:
                continue
            for node_id, copies in tuple(of_owner.items()):
                for channel, entries in copies.parts(slot):
                    yield node_id, channel, entries
                copies.drop(slot)
                if not copies.slots:
                    of_owner.pop(node_id, None)
            if not of_owner:
                self._of_others.pop(former, None)
