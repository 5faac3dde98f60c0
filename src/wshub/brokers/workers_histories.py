"""The histories of the workers of one machine: requests of this node, and the slots that it owns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import count

from wshub.brokers.history_interface import HistoryQuery, StoredHistory
from wshub.brokers.interface import BrokerEvents, HistoryConfig, NodeInfo, Published
from wshub.brokers.workers_history_records import (
    Fenced,
    Found,
    Moved,
    Moving,
    Read,
    Store,
    StoreOutcome,
    Taken,
    decode_body,
)
from wshub.brokers.workers_keeper import Keeper
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_mesh import Mesh
from wshub.brokers.workers_moving import Moves
from wshub.brokers.workers_owner_records import Claim, Leave, Owners, Ready, Refused
from wshub.brokers.workers_owners import slot_of
from wshub.brokers.workers_patterns import Patterns
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_requests import FULL, Request, Requests, Subject
from wshub.errors import BrokerUnavailable, BrokerUncertain

__all__ = ["Histories"]

MAX_ENVELOPE = 64 << 20
"""Bytes of the longest envelope that can be stored: a record has other fields too."""

TOO_LARGE = f"the message is longer than {MAX_ENVELOPE} bytes"

SUBJECT = Subject(undone="nothing was stored", kept="history", keepers="histories")


class Histories:
    """The histories of one session.

    Args:
        loop: the event loop of the session.
        node: this node.
        events: the hub's side.
        mesh: sends envelopes to the nodes that have subscribed.
        patterns: take the envelopes of the patterns that this node has subscribed to.
        max_pending: bytes that may wait, for each peer, and for owners that are not there yet.
        barrier: returns once every peer has handled what was queued for it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: NodeInfo,
        events: BrokerEvents,
        mesh: Mesh,
        patterns: Patterns,
        max_pending: int,
        barrier: Callable[[], Awaitable[None]],
    ) -> None:
        self.members = Membership(node, self._owner_changed, Peer.send_history)
        self.keeper = Keeper(loop, events, mesh, patterns)
        self.moves = Moves(loop, self.members, self.keeper, events)
        self._requests = Requests(loop, events.now, self.members, max_pending, self._serve_own, SUBJECT)
        self._numbers = count(1)
        self._loop = loop
        self._barrier = barrier
        self._starting: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def dropped(self) -> Counter[str]:
        """Envelopes of ``send()`` that were dropped, by reason."""
        return self._requests.dropped

    # What the broker calls

    def send(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it, and forget it. Return False if it was dropped."""
        if len(envelope) > MAX_ENVELOPE:
            self.dropped["too_large"] += 1
            return False
        problem = self._requests.send(Store(0, 0, channel, config, "", envelope))
        if problem is not None:
            self.dropped["full" if problem == FULL else "disconnected"] += 1
        return problem is None

    async def publish(self, channel: str, envelope: bytes, config: HistoryConfig, key: str) -> Published:
        """Store an envelope and send it, and return its position. Raises ``BrokerError``."""
        if len(envelope) > MAX_ENVELOPE:
            raise BrokerUnavailable(f"nothing was stored: {TOO_LARGE}")
        published = await self._requests.ask(Store(next(self._numbers), 0, channel, config, key, envelope))
        assert isinstance(published, Published)
        return published

    async def read(self, channel: str, config: HistoryConfig, query: HistoryQuery) -> StoredHistory:
        """Return what is stored of a channel. Raises ``BrokerUnavailable``."""
        body = Read(next(self._numbers), 0, channel, config, query)
        try:
            found = await self._requests.ask(body)
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None
        assert isinstance(found, StoredHistory)
        return found

    async def leave(self, seconds: float) -> None:
        """Have the requests of this node served, in so many seconds, and hand its histories over."""
        await self._requests.settle(seconds)
        if not self._is_closed:
            await self.moves.leave()

    def abandon(self) -> None:
        """Give up everything: the loop was closed."""
        self._is_closed = True
        self._requests.abandon()
        self.keeper.close()

    def close(self) -> None:
        """Have all requests fail."""
        self._is_closed = True
        self.keeper.close()
        self.moves.close()
        self._requests.close()
        if self._starting is not None:
            self._starting.cancel()

    def sweep(self, now: float) -> None:
        """Fail what has waited for too long, and forget what is too old."""
        self._requests.sweep(now)
        self.keeper.sweep(now)

    # What the session calls

    def started(self) -> None:
        """Note that this node is connected to the others. Requests wait until it knows which of them may own slots."""
        if not self._is_closed:
            self._starting = self._loop.create_task(self._meet())

    async def _meet(self) -> None:
        await self.members.meet(self._barrier)
        if not self._is_closed:
            self.members.started()
            self._requests.started()

    async def met(self) -> None:
        """Return when the others know that this node takes part, if it does, or after two seconds."""
        if self._starting is not None:
            await asyncio.wait([self._starting])

    def peer_up(self, peer: Peer) -> None:
        """Note a connection. Both sides say what they know."""
        assert peer.hello is not None
        if peer.hello.knows_histories:
            self.members.peer_up(peer)
        self._requests.send_held()

    def peer_down(self, peer: Peer) -> None:
        """Note that a connection was lost, or that the node has said GOODBYE."""
        if not self.members.peer_down(peer):
            return
        self.moves.peer_down(peer)
        self._requests.peer_down(peer)
        self._requests.send_held()

    def node_ended(self, node_id: str) -> None:
        """Note that a node has ended. Its histories are lost unless it has handed them over."""
        self.members.node_ended(node_id)
        self._requests.send_held()

    def received(self, peer: Peer, data: bytes) -> None:
        """Take a HISTORY record. Raises ``ValueError`` if it is malformed."""
        body = decode_body(data)
        if isinstance(body, Store | Read):
            self._serve(peer, body)
        elif isinstance(body, StoreOutcome):
            self._requests.answered(peer, body.number, Store, body.published)
        elif isinstance(body, Found):
            self._requests.answered(peer, body.number, Read, body.found)
        elif isinstance(body, Refused):
            self._requests.refused(peer, body.number, body.reason)
        elif isinstance(body, Owners):
            for owned in body.owned:
                self.members.learn(owned)
        elif isinstance(body, Claim):
            self.members.claimed(peer, body)
        elif isinstance(body, Ready):
            self.members.is_ready(peer)
            self._requests.send_held()
        elif isinstance(body, Leave):
            self.members.leaves(peer)
            peer.send_history(Fenced().encode(), always=True)
            self._requests.send_held()
        elif isinstance(body, Fenced | Moving | Moved | Taken):
            self.moves.received(peer, body)

    # Requests

    def _owner_changed(self, slots: Iterable[int]) -> None:
        """Note that slots have another owner, or none."""
        for slot in slots:
            # Histories that are handed over stay until all of them have been sent.
            if self.members.owners.owner(slot) != self.members.own_id and not self.moves.is_frozen:
                self.keeper.forget(slot)
            self._requests.send_held_of(slot)

    def _serve_own(self, request: Request) -> None:
        body = request.body
        if isinstance(body, Store):
            request.succeed(self.keeper.store(request.slot, body))
        else:
            request.succeed(self.keeper.read(request.slot, body, body.query))

    def _serve(self, peer: Peer, body: Store | Read) -> None:
        """Serve a request of another node, or refuse it."""
        slot = slot_of(body.channel)
        if self.members.owners.owner(slot) != self.members.own_id and not self.moves.is_frozen:
            # The node that has chosen this one has told the sender first.
            self.members.adopt(slot, body.term)
        owners = self.members.owners
        is_owned = owners.owner(slot) == self.members.own_id and owners.term(slot) == body.term
        if not is_owned or self.moves.is_frozen:
            self.keeper.refuse(peer, body, "the worker does not keep this history any more")
        else:
            self.keeper.serve(peer, slot, body)
