"""Copies of entries that one worker both has and keeps: nobody else would know of them if it died.

Another worker has them, the standby. If a node dies, its standby hands the copies to the next owners.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owners import rendezvous
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_presence_records import Copied, CopiedAnew, Uncopied, UncopiedSlot
from wshub.brokers.workers_presence_tables import SlotEntries, send_paced

__all__ = ["Copies"]


class Copies:
    """The copies of this node's entries that its standby has, and those that this node has of others.

    Args:
        loop: the event loop of the session.
        members: who is there.
        own: the entries of this node.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, members: Membership, own: SlotEntries) -> None:
        self.standby = ""
        """The id of the node that has copies of this one; empty if there is no other."""
        self._loop = loop
        self._members = members
        self._own = own
        # Whether the standby may lack something.
        self._is_stale = False
        self._sending: asyncio.Task[None] | None = None
        self._of_others: dict[str, SlotEntries] = {}

    # Copies of this node

    def add(self, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Have entries copied."""
        self._tell(Copied(channel, tuple(entries)))

    def remove(self, channel: str, ids: Iterable[str]) -> None:
        """Have the copies of entries forgotten."""
        self._tell(Uncopied(channel, tuple(ids)))

    def drop(self, slot: int) -> None:
        """Have the copies of a slot forgotten, which another node owns now."""
        self._tell(UncopiedSlot(slot))

    def choose(self) -> None:
        """Choose a standby if there is none that can be reached."""
        candidates = self._members.candidates()
        if self.standby in candidates:
            return
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
                if not await send_paced(peer, self._bodies()):
                    self._is_stale = True
                    return
        finally:
            self._sending = None

    def _bodies(self) -> Iterator[bytes]:
        yield CopiedAnew().encode()
        for slot in self._own.slots:
            if self._members.owners.owner(slot) == self._members.own_id:
                for channel, entries in self._own.parts(slot):
                    yield Copied(channel, entries).encode()

    # Copies of others

    def received(self, peer: Peer, body: CopiedAnew | Copied | Uncopied | UncopiedSlot) -> None:
        """Keep what a node says."""
        if isinstance(body, CopiedAnew):
            self._of_others.pop(peer.node_id, None)
            return
        copies = self._of_others.setdefault(peer.node_id, SlotEntries())
        if isinstance(body, Copied):
            copies.add(body.channel, body.entries)
        elif isinstance(body, Uncopied):
            copies.remove(body.channel, body.ids)
        else:
            copies.drop(body.slot)

    def take(self, node_id: str) -> SlotEntries:
        """Return the copies of a node that has ended, and forget them."""
        return self._of_others.pop(node_id, None) or SlotEntries()
