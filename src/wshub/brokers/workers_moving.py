"""How a worker that leaves hands its histories over to the others.

It tells all that it leaves. They send it no more requests, and say so behind the last one; their further requests wait.
Then nothing can be stored here, and each next owner gets its histories. Once it has all of them it tells the others,
which send it what waits. A history of which nobody knows whether it has arrived begins a new epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import BrokerEvents
from wshub.brokers.workers_history_records import Fenced, Moved, Moving, Taken
from wshub.brokers.workers_keeper import Keeper
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owner_records import Owned
from wshub.brokers.workers_owners import HANDED_OVER_TERMS, check_slot, rendezvous
from wshub.brokers.workers_peer import Peer

__all__ = ["HANDOVER_SECONDS", "Moves"]

logger = logging.getLogger("wshub.broker")

FENCE_SECONDS = 1.0
"""Seconds that the others have to send their last requests."""

HANDOVER_SECONDS = 3.0
"""Seconds in which histories are handed over."""

HANDOVER_BYTES = 256 << 20
"""Bytes of envelopes that are handed over. Histories beyond keep their offsets, and lose their oldest envelopes."""

MAX_TAKEN_BYTES = 2 * HANDOVER_BYTES
"""Bytes that a worker takes from another one."""

PART_BYTES = 256 << 10
"""Bytes of a record; the kernel takes one after the other, so that other records have their turn."""


class Moves:
    """The histories that leave this node, and those that come.

    Args:
        loop: the event loop of the session.
        members: who is there.
        keeper: the histories.
        events: the hub's side.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, members: Membership, keeper: Keeper, events: BrokerEvents
    ) -> None:
        self.is_frozen = False
        """Whether nothing can be stored here any more."""
        self._loop = loop
        self._members = members
        self._keeper = keeper
        self._events = events
        # Nodes that may still have requests under way, and the wait for them.
        self._unfenced: set[str] = set()
        self._fenced: asyncio.Future[None] | None = None
        # By node: the wait for its Taken.
        self._taking: dict[str, asyncio.Future[bool]] = {}
        # Nodes that take no histories.
        self._refusing: set[str] = {members.own_id}
        # By node: what it has sent so far, by slot, and the bytes of that.
        self._coming: dict[str, dict[int, HistoryStore]] = {}
        self._coming_bytes: defaultdict[str, int] = defaultdict(int)

    # This node leaves

    async def leave(self) -> None:
        """Hand all histories over to the nodes that stay, as far as time allows."""
        members = self._members
        slots = members.owners.slots_of(members.own_id)
        if slots:
            self._unfenced = {peer.node_id for peer in members.peers}
        members.leave()
        if self._unfenced:
            self._fenced = self._loop.create_future()
            await asyncio.wait([self._fenced], timeout=FENCE_SECONDS)
        self.is_frozen = True
        deadline = self._loop.time() + HANDOVER_SECONDS
        slots = [slot for slot in slots if slot in self._keeper.stores]
        while slots and (candidates := self._candidates()) and self._loop.time() < deadline:
            groups: defaultdict[str, list[int]] = defaultdict(list)
            for slot in slots:
                groups[rendezvous(slot, candidates)].append(slot)
            outcomes = await asyncio.gather(
                *(self._hand_over(node_id, group, deadline) for node_id, group in groups.items())
            )
            slots = [slot for refused in outcomes for slot in refused]
        if slots:
            logger.warning("the histories of %d slots are lost: no worker has taken them", len(slots))

    def _candidates(self) -> list[str]:
        return [node_id for node_id in self._members.candidates() if node_id not in self._refusing]

    async def _hand_over(self, node_id: str, slots: list[int], deadline: float) -> list[int]:
        """Send the histories of slots to a node. Return the slots if it has certainly not taken them."""
        peer = self._members.reachable(node_id)
        if peer is None:
            return slots
        now = self._events.now()
        left = HANDOVER_BYTES
        under_way = 0
        for slot in slots:
            for part in self._keeper.stores[slot].parts(now, PART_BYTES, left):
                left -= sum(len(stored.envelope) for stored in part.envelopes)
                body = Moving(slot, part).encode()
                if not peer.send_history(body, always=True):
                    return slots
                under_way += len(body)
                if under_way < PART_BYTES:
                    continue
                under_way = 0
                done, _ = await asyncio.wait([peer.departure()], timeout=max(deadline - self._loop.time(), 0))
                if not done:
                    return []
        term = self._members.owners.term
        owned = tuple(Owned(slot, term(slot) + HANDED_OVER_TERMS, node_id) for slot in slots)
        taken = self._taking[node_id] = self._loop.create_future()
        if not peer.send_history(Moved(owned).encode(), always=True):
            return slots
        await asyncio.wait([taken], timeout=max(deadline - self._loop.time(), 0))
        del self._taking[node_id]
        if not taken.done() or taken.cancelled():
            # It may have taken them: nobody else may have the same epoch.
            return []
        if not taken.result():
            self._refusing.add(node_id)
            return slots
        for slot in slots:
            self._keeper.stores.pop(slot, None)
        self._members.handed_over(owned)
        return []

    # What others say

    def peer_down(self, peer: Peer) -> None:
        """Wait for this node no more, and forget what it has sent."""
        self._note_fenced(peer)
        self._forget_coming(peer.node_id)
        taken = self._taking.get(peer.node_id)
        if taken is not None and not taken.done():
            taken.cancel()

    def received(self, peer: Peer, body: Fenced | Moving | Moved | Taken) -> None:
        """Take a record. Raises ``ValueError`` if it is malformed."""
        if isinstance(body, Fenced):
            self._note_fenced(peer)
        elif isinstance(body, Moving):
            self._take_part(peer, body)
        elif isinstance(body, Moved):
            is_taken = self._take(peer, body.owned)
            self._forget_coming(peer.node_id)
            peer.send_history(Taken(is_taken).encode(), always=True)
        else:
            taken = self._taking.get(peer.node_id)
            if taken is not None and not taken.done():
                taken.set_result(body.is_taken)

    def close(self) -> None:
        """Wait for nothing, and keep nothing."""
        self._coming.clear()
        if self._fenced is not None and not self._fenced.done():
            self._fenced.set_result(None)
        for taken in self._taking.values():
            taken.cancel()

    def _note_fenced(self, peer: Peer) -> None:
        self._unfenced.discard(peer.node_id)
        if not self._unfenced and self._fenced is not None and not self._fenced.done():
            self._fenced.set_result(None)

    def _take_part(self, peer: Peer, body: Moving) -> None:
        check_slot(body.slot)
        self._coming_bytes[peer.node_id] += sum(len(stored.envelope) for stored in body.part.envelopes)
        if self._members.is_leaving or self._coming_bytes[peer.node_id] > MAX_TAKEN_BYTES:
            self._coming.pop(peer.node_id, None)
            return
        store = self._coming.setdefault(peer.node_id, {}).setdefault(body.slot, HistoryStore())
        store.restore(body.part, self._events.now())

    def _take(self, peer: Peer, owned: tuple[Owned, ...]) -> bool:
        """Own slots from now on. Return False if this node does not."""
        members = self._members
        if members.is_leaving or self._coming_bytes[peer.node_id] > MAX_TAKEN_BYTES:
            return False
        stores = self._coming.get(peer.node_id, {})
        for one in owned:
            check_slot(one.slot)
            if one.node_id != members.own_id:
                raise ValueError("a slot is handed over that is for another worker")
            if one.term <= members.owners.term(one.slot):
                return False
        for one in owned:
            if one.slot in stores:
                self._keeper.stores[one.slot] = stores[one.slot]
        members.handed_over(owned)
        return True

    def _forget_coming(self, node_id: str) -> None:
        self._coming.pop(node_id, None)
        self._coming_bytes.pop(node_id, None)
