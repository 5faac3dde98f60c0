"""Entries by slot, and how many of them are sent to another worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wshub.brokers.presence_interface import PresenceEntry
from wshub.brokers.workers_owners import slot_of
from wshub.brokers.workers_peer import Peer

__all__ = ["ENTRIES_AT_ONCE", "SlotEntries", "send_paced"]

ENTRIES_AT_ONCE = 200
"""Entries of one record."""

PACE_BYTES = 256 << 10
"""Bytes that are queued before the kernel has taken the former ones, so that other records have their turn."""


class SlotEntries:
    """Entries of one node."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[str, dict[str, PresenceEntry]]] = {}

    @property
    def slots(self) -> list[int]:
        """The slots that have entries."""
        return list(self._slots)

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def add(self, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Add entries, or replace those of the same ids."""
        found = self._slots.setdefault(slot_of(channel), {}).setdefault(channel, {})
        for entry in entries:
            found[entry.id] = entry

    def remove(self, channel: str, ids: Iterable[str]) -> None:
        """Remove entries, as far as they are there."""
        slot = slot_of(channel)
        channels = self._slots.get(slot, {})
        found = channels.get(channel)
        if found is None:
            return
        for entry_id in ids:
            found.pop(entry_id, None)
        if not found:
            del channels[channel]
            if not channels:
                del self._slots[slot]

    def drop(self, slot: int) -> None:
        """Remove the entries of a slot."""
        self._slots.pop(slot, None)

    def parts(self, slot: int) -> Iterator[tuple[str, tuple[PresenceEntry, ...]]]:
        """Yield channels with some entries each. Those that are removed before their turn are left out."""
        for channel in list(self._slots.get(slot, {})):
            ids = list(self._slots.get(slot, {}).get(channel, {}))
            for first in range(0, len(ids), ENTRIES_AT_ONCE):
                found = self._slots.get(slot, {}).get(channel, {})
                part = tuple(found[each] for each in ids[first : first + ENTRIES_AT_ONCE] if each in found)
                if part:
                    yield channel, part


async def send_paced(peer: Peer, bodies: Iterator[bytes]) -> bool:
    """Send bodies of PRESENCE records as the kernel takes them. Return False if the connection is lost."""
    under_way = 0
    for body in bodies:
        if not peer.send_presence(body, always=True):
            return False
        under_way += len(body)
        if under_way >= PACE_BYTES:
            under_way = 0
            if not await peer.departure():
                return False
    return True
