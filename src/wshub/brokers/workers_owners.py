"""The owners of histories: channels share slots, and a slot has one owner.

A slot keeps its owner until that leaves or ends. The oldest worker chooses the next one, by rendezvous hash over the
live workers, and tells all. Each change of the owner has a higher term, so that late news of a former owner is known as
such. Two workers that choose without knowing each other agree once they meet: the higher term counts, then the smaller
id.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Collection

from wshub.brokers.workers_owner_records import Owned

__all__ = ["HANDED_OVER_TERMS", "SLOTS", "Owners", "check_slot", "rendezvous", "slot_of"]

SLOTS = 1024

HANDED_OVER_TERMS = 2
"""By so much the term grows when a slot is handed over: it counts more than a choice of the same time."""

REMEMBERED_NODES = 256
"""Nodes that have ended, of which late news may still come."""


def check_slot(slot: int) -> None:
    """Raise ``ValueError`` if there is no such slot."""
    if slot >= SLOTS:
        raise ValueError(f"there is no slot {slot}")


def slot_of(channel: str) -> int:
    """Return the slot of a channel."""
    return zlib.crc32(channel.encode("utf-8", "surrogatepass")) % SLOTS


def rendezvous(slot: int | str, node_ids: Collection[str]) -> str:
    """Return the node that is to own a slot, or something with a name. If a node is missing, only its slots move."""
    return max(node_ids, key=lambda node_id: hashlib.blake2b(f"{slot}:{node_id}".encode(), digest_size=8).digest())


class Owners:
    """The owners of all slots, as one node knows them.

    Args:
        own_id: the id of this node.
    """

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        # Term, and id of the node; empty if it has ended.
        self._owners: list[tuple[int, str]] = [(0, "")] * SLOTS
        self._ended: deque[str] = deque(maxlen=REMEMBERED_NODES)

    def term(self, slot: int) -> int:
        """Return the term of a slot; 0 before its first owner."""
        return self._owners[slot][0]

    def owner(self, slot: int) -> str:
        """Return the id of the owner; empty if there is none."""
        return self._owners[slot][1]

    def set(self, owned: Owned) -> None:
        """Note an owner that this node has chosen, or become."""
        self._owners[owned.slot] = (owned.term, owned.node_id)

    def merge(self, owned: Owned) -> bool:
        """Note what another node says. Return whether it is news. Raises ``ValueError`` if there is no such slot."""
        check_slot(owned.slot)
        term, owner = self._owners[owned.slot]
        node_id = "" if owned.node_id in self._ended else owned.node_id
        if owned.term < term or (owned.term == term and node_id >= owner) or self.is_denied(owned):
            return False
        self._owners[owned.slot] = (owned.term, node_id)
        return True

    def is_denied(self, owned: Owned) -> bool:
        """Return whether another node has taken this one, which owns the slot, for ended."""
        check_slot(owned.slot)
        return not owned.node_id and (owned.term, self._own_id) == self._owners[owned.slot]

    def node_ended(self, node_id: str) -> list[int]:
        """Note that a node has ended. Return the slots that it has owned."""
        self._ended.append(node_id)
        return self.vacate(node_id)

    def vacate(self, node_id: str) -> list[int]:
        """Note that a node owns no slots any more. Return those that it has owned."""
        slots = self.slots_of(node_id)
        for slot in slots:
            self._owners[slot] = (self._owners[slot][0], "")
        return slots

    def node_met(self, node_id: str) -> None:
        """Note that a node is there."""
        if node_id in self._ended:
            self._ended.remove(node_id)

    def slots_of(self, node_id: str) -> list[int]:
        """Return the slots that a node owns."""
        return [slot for slot, (_, owner) in enumerate(self._owners) if owner == node_id]

    def known(self) -> tuple[Owned, ...]:
        """Return all that is known."""
        return tuple(Owned(slot, term, owner) for slot, (term, owner) in enumerate(self._owners) if term)
