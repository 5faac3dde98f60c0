"""The histories that this worker owns: stores, and sends what it has stored to those that have subscribed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace

from wshub.brokers.envelope import encode_stored
from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.history_store import HistoryStore
from wshub.brokers.interface import PATTERN_CHANNELS, BrokerEvents, Published
from wshub.brokers.workers_history_records import Found, Read, Store, StoreOutcome
from wshub.brokers.workers_mesh import Mesh
from wshub.brokers.workers_owner_records import Refused
from wshub.brokers.workers_patterns import Patterns
from wshub.brokers.workers_peer import Peer

__all__ = ["Keeper"]

logger = logging.getLogger("wshub.broker")

ANSWER_BYTES = 4 << 20
"""Bytes of envelopes in one answer to another worker. Readers ask for the rest."""

RETRY_BYTES = 64 << 10
"""Bytes of envelopes in an answer for which there was no space."""

SWEEP_SECONDS = 1.0


class Keeper:
    """The stores of the slots that this node owns.

    Args:
        loop: the event loop of the session.
        events: the hub's side.
        mesh: sends envelopes to the nodes that have subscribed.
        patterns: take the envelopes of the patterns that this node has subscribed to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, events: BrokerEvents, mesh: Mesh, patterns: Patterns) -> None:
        self.stores: dict[int, HistoryStore] = {}
        self._loop = loop
        self._events = events
        self._mesh = mesh
        self._patterns = patterns
        # Envelopes for the hub of this node: it is never called from within send().
        self._arriving: deque[tuple[str, bytes]] = deque()
        self._swept_at = 0.0
        self._is_closed = False

    def close(self) -> None:
        """Give the hub nothing more."""
        self._is_closed = True
        self._arriving.clear()
        self.stores.clear()

    @property
    def kept(self) -> tuple[int, int]:
        """The number of envelopes in all stores, and that of their bytes."""
        stores = tuple(self.stores.values())
        return sum(store.kept for store in stores), sum(store.kept_bytes for store in stores)

    def forget(self, slot: int) -> None:
        """Forget the histories of a slot that has another owner."""
        store = self.stores.pop(slot, None)
        if store is not None and len(store):
            logger.warning("another worker owns %d histories that this one has kept: they begin new epochs", len(store))

    def store(self, slot: int, body: Store) -> Published:
        """Store an envelope, and send it to each node that has subscribed."""
        stored = self._store_of(slot).store(body.channel, body.envelope, body.config, self._events.now(), body.key)
        position = stored.position
        if stored.is_duplicate:
            return Published(receivers=0, position=position, is_duplicate=True)
        envelope = encode_stored(body.envelope, offset=position.offset, previous=stored.previous, epoch=position.epoch)
        peers, _ = self._mesh.send_to_each(body.channel, envelope)
        channels = self._patterns.matching(body.channel)
        if self._mesh.has_subscribed(body.channel):
            channels.append(body.channel)
        receives = bool(channels)
        if receives:
            if not self._arriving:
                self._loop.call_soon(self._deliver)
            self._arriving.extend((channel, envelope) for channel in channels)
        return Published(receivers=len(peers) + receives, position=position)

    def read(self, slot: int, body: Read, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel."""
        return self._store_of(slot).read(body.channel, body.config, query, self._events.now())

    def serve(self, peer: Peer, slot: int, body: Store | Read) -> None:
        """Serve a request of another node, and answer it.

        An answer for which there is no space is not sent: the node then does not know what has become of its request.
        """
        if isinstance(body, Store):
            published = self.store(slot, body)
            if body.number:
                peer.send_history(StoreOutcome(body.number, published).encode())
            return
        for max_bytes in (ANSWER_BYTES, RETRY_BYTES):
            query = replace(body.query, max_bytes=min(body.query.max_bytes, max_bytes))
            found = self.read(slot, body, query)
            if peer.send_history(Found(body.number, found).encode()):
                return
        self.refuse(peer, body, "too much waits for this worker")

    def refuse(self, peer: Peer, body: Store | Read, reason: str) -> None:
        """Answer that nothing was done."""
        if body.number:
            peer.send_history(Refused(body.number, reason).encode())

    def sweep(self, now: float) -> None:
        """Forget what is too old."""
        if now >= self._swept_at + SWEEP_SECONDS:
            self._swept_at = now
            for slot, store in tuple(self.stores.items()):
                store.sweep(now)
                if not len(store):
                    del self.stores[slot]

    def _store_of(self, slot: int) -> HistoryStore:
        store = self.stores.get(slot)
        if store is None:
            store = self.stores[slot] = HistoryStore()
        return store

    def _deliver(self) -> None:
        """Give the hub of this node what was stored in the last iteration of the loop."""
        arriving, self._arriving = self._arriving, deque()
        for channel, envelope in arriving:
            if self._is_closed:
                return
            if channel.startswith(PATTERN_CHANNELS):
                self._patterns.receive(channel, envelope)
            elif self._mesh.has_subscribed(channel):
                self._events.receive(envelope)
