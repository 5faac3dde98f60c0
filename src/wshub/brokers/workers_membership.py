"""The workers that keep histories, or presences, and how they agree on the owner of a slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from wshub.brokers.interface import NodeInfo
from wshub.brokers.workers_owner_records import Claim, Leave, Owned, Ready
from wshub.brokers.workers_owner_records import Owners as OwnersBody
from wshub.brokers.workers_owners import Owners, check_slot, rendezvous
from wshub.brokers.workers_peer import Peer
from wshub.errors import BrokerUnavailable

__all__ = ["Membership", "Send"]

MEET_SECONDS = 2.0
"""Seconds that a worker which does not answer keeps this node from taking part."""

UNKNOWN_SECONDS = 3.0
"""Seconds after which an owner that this node has never met is taken for ended."""


class Send(Protocol):
    """Queues a body for a peer, in a record of one kind: ``Peer.send_history`` or ``Peer.send_presence``."""

    def __call__(self, peer: Peer, body: bytes, /, *, always: bool = False) -> bool: ...


class Encodable(Protocol):
    """A body."""

    def encode(self) -> bytes: ...


class Membership:
    """The nodes that are there, as this node knows them, and the owners of slots.

    Args:
        node: this node.
        owner_changed: called with the slots that have another owner, or none.
        send: says something to a peer.
    """

    def __init__(self, node: NodeInfo, owner_changed: Callable[[Iterable[int]], None], send: Send) -> None:
        self.own_id = node.id
        self.send = send
        self.owners = Owners(node.id)
        self.has_started = False
        self.is_leaving = False
        self._is_announced = False
        self._owner_changed = owner_changed
        # Connections that are up, by node.
        self._peers: dict[str, Peer] = {}
        # Nodes that keep histories, this one too, until they have ended; those that know the others; those that leave.
        self._keepers: dict[str, NodeInfo] = {node.id: node} if node.receives else {}
        self._ready: set[str] = set()
        self._leaving: set[str] = set()
        # By slot: the coordinator that was asked for an owner, and the term.
        self._asked: dict[int, tuple[str, int]] = {}
        # Slots for which others have asked this node, and the term that they know.
        self._claims: dict[int, int] = {}
        # When an owner that was never met was looked for first.
        self._unknown: dict[str, float] = {}

    @property
    def has_keepers(self) -> bool:
        """Whether some node keeps histories, or may do so: a node that starts does not know."""
        return not self.has_started or bool(self._keepers)

    @property
    def peers(self) -> list[Peer]:
        """The connections that are up."""
        return list(self._peers.values())

    def others(self) -> list[str]:
        """Return the ids of the other nodes that know the others, until they have ended."""
        return [node_id for node_id in self._ready if node_id != self.own_id]

    def candidates(self) -> list[str]:
        """Return the ids of the nodes that can own a slot now."""
        return [
            node_id
            for node_id in self._keepers
            if node_id in self._ready
            and node_id not in self._leaving
            and (node_id == self.own_id or node_id in self._peers)
        ]

    def tell(self, body: Encodable) -> None:
        """Say something to every node."""
        encoded = body.encode()
        for peer in self._peers.values():
            self.send(peer, encoded, always=True)

    # Nodes

    def announce(self) -> None:
        """Tell all that this node may own slots."""
        if not self._is_announced:
            self._is_announced = True
            self._ready.add(self.own_id)
            self.tell(Ready())

    async def meet(self, barrier: Callable[[], Awaitable[None]]) -> None:
        """Return once all others know that this node may own slots, and it knows which of them may.

        Without that, two nodes that begin at the same time would choose two owners.
        """
        self.announce()
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout(MEET_SECONDS):
                await barrier()

    def started(self) -> None:
        """Note that this node knows the others: it may own slots, and choose owners."""
        self.announce()
        self.has_started = True
        self._choose_claimed()

    def leave(self) -> None:
        """Tell all that this node leaves."""
        self.is_leaving = True
        self._leaving.add(self.own_id)
        self.tell(Leave())

    def peer_up(self, peer: Peer) -> None:
        """Note a connection, and say what this node knows."""
        assert peer.hello is not None
        node = peer.hello.node
        self.owners.node_met(node.id)
        self._unknown.pop(node.id, None)
        self._peers[node.id] = peer
        if node.receives:
            self._keepers[node.id] = node
        known = self.owners.known()
        if known:
            self.send(peer, OwnersBody(known).encode(), always=True)
        if self._is_announced:
            self.send(peer, Ready().encode(), always=True)
        if self.is_leaving:
            self.send(peer, Leave().encode(), always=True)

    def peer_down(self, peer: Peer) -> bool:
        """Note that a connection is down. Return whether it was up."""
        if self._peers.get(peer.node_id) is not peer:
            return False
        del self._peers[peer.node_id]
        self._asked = {slot: asked for slot, asked in self._asked.items() if asked[0] != peer.node_id}
        return True

    def node_ended(self, node_id: str) -> None:
        """Note that a node has ended: its slots have no owner."""
        self._keepers.pop(node_id, None)
        self._ready.discard(node_id)
        self._leaving.discard(node_id)
        slots = self.owners.node_ended(node_id)
        self._owner_changed(slots)
        self._choose_claimed()

    def is_ready(self, peer: Peer) -> None:
        """Note that a node knows the others."""
        self._ready.add(peer.node_id)
        self._choose_claimed()

    def leaves(self, peer: Peer) -> None:
        """Note that a node leaves: it takes no more requests."""
        self._leaving.add(peer.node_id)
        self._choose_claimed()

    def vacate(self, node_id: str) -> None:
        """Note that a node that leaves owns no slots any more. Its slots have no owner."""
        slots = self.owners.vacate(node_id)
        self._owner_changed(slots)
        self._choose_claimed()

    # Owners

    def route(self, slot: int) -> tuple[int, str]:
        """Return the term and the owner of a slot; no owner before this node has started."""
        if not self.has_started:
            return 0, ""
        return self.owners.term(slot), self.owners.owner(slot)

    def reachable(self, node_id: str) -> Peer | None:
        """Return the connection to an owner that takes requests."""
        return None if node_id in self._leaving else self._peers.get(node_id)

    def peer(self, node_id: str) -> Peer | None:
        """Return the connection to a node, even if that leaves."""
        return self._peers.get(node_id)

    def seek(self, slot: int, now: float) -> None:
        """Have an owner chosen for a slot that has none."""
        owner = self.owners.owner(slot)
        if owner:
            self._doubt(owner, now)
            return
        coordinator = self._coordinator()
        if coordinator == self.own_id:
            self._choose(slot)
        elif coordinator in self._peers:
            asked = (coordinator, self.owners.term(slot))
            if self._asked.get(slot) != asked:
                self._asked[slot] = asked
                self.send(self._peers[coordinator], Claim(slot, asked[1]).encode(), always=True)

    def _doubt(self, owner: str, now: float) -> None:
        """Take an owner for ended that this node has not met for some seconds."""
        if owner in self._keepers or owner == self.own_id:
            return
        since = self._unknown.setdefault(owner, now)
        if now >= since + UNKNOWN_SECONDS:
            del self._unknown[owner]
            self.node_ended(owner)

    def learn(self, owned: Owned) -> None:
        """Note what another node says about a slot. Raises ``ValueError`` if there is no such slot."""
        if self.owners.is_denied(owned):
            self._own_anew(owned.slot)
            return
        if not self.owners.merge(owned):
            return
        if owned.node_id == self.own_id:
            self._accept(owned)
        self._owner_changed((owned.slot,))
        self._choose_claimed()

    def adopt(self, slot: int, term: int) -> None:
        """Own a slot for which another node has a request: it knows that this node was chosen, and by what term."""
        if term > self.owners.term(slot):
            self.learn(Owned(slot, term, self.own_id))

    def claimed(self, peer: Peer, claim: Claim) -> None:
        """Answer a node that looks for an owner. Raises ``ValueError`` if there is no such slot."""
        check_slot(claim.slot)
        term, owner = self.owners.term(claim.slot), self.owners.owner(claim.slot)
        if owner and term > claim.term:
            self.send(peer, OwnersBody((Owned(claim.slot, term, owner),)).encode(), always=True)
            return
        if owner and term == claim.term:
            # The other node was parted from the owner, and takes it for ended.
            denied = Owned(claim.slot, term, "")
            if owner == self.own_id:
                self.learn(denied)
                return
            if owner in self._peers:
                self.send(self._peers[owner], OwnersBody((denied,)).encode(), always=True)
        self._claims[claim.slot] = max(claim.term, self._claims.get(claim.slot, 0))
        self._choose_claimed()

    def handed_over(self, owned: tuple[Owned, ...]) -> None:
        """Note that slots were handed over, to this node or by it, and tell all."""
        for one in owned:
            self.owners.set(one)
        self.tell(OwnersBody(owned))
        self._owner_changed([one.slot for one in owned])

    def _own_anew(self, slot: int) -> None:
        """Tell all that this node still owns a slot: some have taken it for ended. Only a higher term is news to them.

        A node that leaves hands its slots over instead.
        """
        if not self.is_leaving:
            self.owners.set(owned := Owned(slot, self.owners.term(slot) + 1, self.own_id))
            self.tell(OwnersBody((owned,)))
            self._owner_changed((slot,))
            self._choose_claimed()

    def _accept(self, owned: Owned) -> None:
        """Tell all that this node owns a slot for which it was chosen, or that it does not since it leaves."""
        if self.is_leaving:
            owned = Owned(owned.slot, owned.term + 1, "")
            self.owners.set(owned)
        self.tell(OwnersBody((owned,)))

    def _coordinator(self) -> str:
        """Return the id of the node that chooses owners: the oldest one that stays; empty if there is none."""
        staying = [self._keepers[one] for one in self._ready - self._leaving if one in self._keepers]
        return min(staying, key=lambda node: (node.started_at, node.id)).id if staying else ""

    def _choose_claimed(self) -> None:
        """Choose owners for the slots that others look for, if that is for this node to do."""
        if not self._claims or not self.has_started or self._coordinator() != self.own_id:
            return
        for slot, term in tuple(self._claims.items()):
            if self.owners.owner(slot):
                if self.owners.term(slot) > term:
                    del self._claims[slot]
            else:
                del self._claims[slot]
                self._choose(slot, term)

    def _choose(self, slot: int, term: int = 0) -> None:
        """Choose the owner of a slot, and tell all."""
        if not self.has_started or not (candidates := self.candidates()):
            return
        owned = Owned(slot, max(term, self.owners.term(slot)) + 1, rendezvous(slot, candidates))
        self.owners.set(owned)
        self.tell(OwnersBody((owned,)))
        self._owner_changed((slot,))
