"""Envelopes that may have been lost: the nodes to blame, and the calls of the hub."""

from __future__ import annotations

from collections import Counter

from wshub.brokers.interface import BrokerEvents

__all__ = ["Losses"]


class Losses:
    """The nodes that were lost, and the interruptions.

    An interruption lasts until every node that was lost is connected again, or is known to have ended.

    Args:
        events: what the hub is told.
    """

    def __init__(self, events: BrokerEvents) -> None:
        self.interruptions: Counter[str] = Counter()
        self.reconnects = 0
        self.nodes: set[str] = set()
        """The ids of the nodes that were lost, and are neither connected again nor known to have ended."""

        self._events = events
        self._closed = False

    def node_lost(self, node_id: str) -> None:
        """Tell the hub that a node was lost, with envelopes that it had queued."""
        self.nodes.add(node_id)
        self._interrupt("lost")

    def node_connected(self, node_id: str) -> bool:
        """Note that a node is connected. Return whether it was lost before."""
        was_lost = node_id in self.nodes
        if was_lost:
            self.reconnects += 1
            self.node_ended(node_id)
        return was_lost

    def node_ended(self, node_id: str) -> None:
        """Note that no envelope of a node is missing from now on."""
        if node_id in self.nodes:
            self.nodes.discard(node_id)
            self._restore()

    def envelopes_dropped(self) -> None:
        """Tell the hub that a peer has dropped envelopes in this place, since this node did not read them in time."""
        self._interrupt("full")
        self._restore()

    def close(self) -> None:
        """Tell the hub nothing more."""
        self._closed = True

    def _interrupt(self, reason: str) -> None:
        self.interruptions[reason] += 1
        if not self._closed:
            self._events.interrupted(None, reason)

    def _restore(self) -> None:
        if not self.nodes and not self._closed:
            self._events.restored(None)
