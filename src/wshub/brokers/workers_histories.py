"""The histories of the workers of one machine: requests of this node, and the slots that it owns.

A request goes to the owner of its channel's slot, over the one connection of the two nodes. So the requests of a node
on a channel arrive in order. While the owner is unknown, leaves or cannot be reached, requests wait in that order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from wshub.brokers.interface import BrokerEvents, HistoryConfig, NodeInfo, Position, Published, StoredHistory
from wshub.brokers.workers_history_records import (
    Claim,
    Fenced,
    Found,
    Leave,
    Moved,
    Moving,
    Owners,
    Read,
    Ready,
    Refused,
    Store,
    StoreOutcome,
    Taken,
    decode_body,
)
from wshub.brokers.workers_keeper import Keeper
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_mesh import Mesh
from wshub.brokers.workers_moving import Moves
from wshub.brokers.workers_owners import slot_of
from wshub.brokers.workers_peer import Peer
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["Histories"]
REQUEST_SECONDS = 5.0
"""Seconds that a request waits to be sent, and as many that it waits for its answer."""

REQUEST_CHARGE = 256
"""Bytes that a waiting request counts for, besides its envelope."""

MAX_UNANSWERED = 65536
"""Requests without an answer."""

MAX_ENVELOPE = 64 << 20
"""Bytes of the longest envelope that can be stored: a record has other fields too."""

FULL = "too much waits for the worker that keeps the history"
TOO_LARGE = f"the message is longer than {MAX_ENVELOPE} bytes"

RETRY_SECONDS = 0.02
"""Seconds until waiting requests are sent again that have found too much waiting for their owner."""


@dataclass(eq=False, slots=True)
class Request:
    """A request of this node."""

    body: Store | Read
    slot: int
    expires_at: float
    answer: asyncio.Future[Published | StoredHistory] | None = None
    """None if nobody waits for it."""
    sent_to: str = ""
    """The id of the node that is to answer."""

    @property
    def charge(self) -> int:
        """The bytes that it counts for while it waits."""
        return REQUEST_CHARGE + (len(self.body.envelope) if isinstance(self.body, Store) else 0)

    def fail(self, error: BrokerError) -> None:
        """Have the caller see an error."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)
            # The caller may have been cancelled: then nothing else retrieves the exception.
            self.answer.exception()


class Histories:
    """The histories of one session.

    Args:
        loop: the event loop of the session.
        node: this node.
        events: the hub's side.
        mesh: sends envelopes to the nodes that have subscribed.
        max_pending: bytes that may wait, for each peer, and for owners that are not there yet.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, node: NodeInfo, events: BrokerEvents, mesh: Mesh, max_pending: int
    ) -> None:
        self.members = Membership(node, self._owner_changed)
        self.keeper = Keeper(loop, events, mesh)
        self.moves = Moves(loop, self.members, self.keeper, events)
        self.dropped: Counter[str] = Counter()
        """Envelopes of ``send()`` that were dropped, by reason."""
        self._loop = loop
        self._events = events
        self._max_pending = max_pending
        self._numbers = count(1)
        # Requests that wait for their owner, in order, by slot.
        self._held: dict[int, deque[Request]] = {}
        self._held_bytes = 0
        # Requests that were sent, by number.
        self._unanswered: dict[int, Request] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[None] | None = None
        self._is_closed = False

    # What the broker calls

    def send(self, channel: str, envelope: bytes, config: HistoryConfig) -> bool:
        """Store an envelope and send it, and forget it. Return False if it was dropped."""
        problem = self._submit(self._request(Store(0, 0, channel, config, "", envelope)))
        if problem is not None:
            self.dropped["full" if problem == FULL else "too_large" if problem == TOO_LARGE else "disconnected"] += 1
        return problem is None

    async def publish(self, channel: str, envelope: bytes, config: HistoryConfig, key: str) -> Published:
        """Store an envelope and send it, and return its position. Raises ``BrokerError``."""
        body = Store(next(self._numbers), 0, channel, config, key, envelope)
        published = await self._ask(body)
        assert isinstance(published, Published)
        return published

    async def read(
        self,
        channel: str,
        config: HistoryConfig,
        *,
        since: Position | None,
        limit: int,
        max_bytes: int,
        reverse: bool,
        is_own: bool,
        mark: bytes,
    ) -> StoredHistory:
        """Return what is stored of a channel. Raises ``BrokerUnavailable``."""
        body = Read(next(self._numbers), 0, channel, config, since, limit, max_bytes, reverse, is_own, mark)
        try:
            found = await self._ask(body)
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None
        assert isinstance(found, StoredHistory)
        return found

    async def leave(self, seconds: float) -> None:
        """Have the requests of this node served, in so many seconds, and hand its histories over."""
        await self._settle(seconds)
        if not self._is_closed:
            await self.moves.leave()

    def abandon(self) -> None:
        """Give up everything: the loop was closed."""
        self._is_closed = True
        self._held.clear()
        self._unanswered.clear()
        self.keeper.close()

    def close(self) -> None:
        """Have all requests fail."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        self.keeper.close()
        self.moves.close()
        for slot in tuple(self._held):
            self._fail_held(slot, "the broker was closed")
        for request in tuple(self._unanswered.values()):
            self._lose(request, "the broker was closed before the answer came")

    def sweep(self, now: float) -> None:
        """Fail what has waited for too long, and forget what is too old."""
        for request in tuple(self._unanswered.values()):
            if now >= request.expires_at:
                self._lose(request, "the worker that keeps the history has not answered in time")
        for slot, held in tuple(self._held.items()):
            while held and now >= held[0].expires_at:
                self._fail(self._pop(slot), "the worker that keeps the history could not be reached in time")
            if slot in self._held:
                self.members.seek(slot, now)
        self.keeper.sweep(now)

    # What the session calls

    def started(self) -> None:
        """Note that this node knows the others: requests need wait no longer."""
        self.members.started()
        self._send_held()

    def peer_up(self, peer: Peer) -> None:
        """Note a connection. Both sides say what they know."""
        self.members.peer_up(peer)
        self._send_held()

    def peer_down(self, peer: Peer) -> None:
        """Note that a connection was lost, or that the node has said GOODBYE."""
        if not self.members.peer_down(peer):
            return
        self.moves.peer_down(peer)
        for request in tuple(self._unanswered.values()):
            if request.sent_to == peer.node_id:
                self._lose(request, "the connection to the worker that keeps the history was lost")
        self._send_held()

    def node_ended(self, node_id: str) -> None:
        """Note that a node has ended. Its histories are lost unless it has handed them over."""
        self.members.node_ended(node_id)
        self._send_held()

    def received(self, peer: Peer, data: bytes) -> None:
        """Take a HISTORY record. Raises ``ValueError`` if it is malformed."""
        body = decode_body(data)
        if isinstance(body, Store | Read):
            self._serve(peer, body)
        elif isinstance(body, StoreOutcome):
            self._answered(peer, body.number, body.published)
        elif isinstance(body, Found):
            self._answered(peer, body.number, body.found)
        elif isinstance(body, Refused):
            request = self._unanswered.get(body.number)
            if request is not None and request.sent_to == peer.node_id:
                del self._unanswered[body.number]
                self._fail(request, body.reason)
        elif isinstance(body, Owners):
            for owned in body.owned:
                self.members.learn(owned)
        elif isinstance(body, Claim):
            self.members.claimed(peer, body)
        elif isinstance(body, Ready):
            self.members.is_ready(peer)
            self._send_held()
        elif isinstance(body, Leave):
            self.members.leaves(peer)
            peer.send_history(Fenced().encode(), always=True)
            self._send_held()
        elif isinstance(body, Fenced | Moving | Moved | Taken):
            self.moves.received(peer, body)

    # Requests of this node

    def _request(self, body: Store | Read, answer: asyncio.Future[Published | StoredHistory] | None = None) -> Request:
        return Request(body, slot_of(body.channel), self._events.now() + REQUEST_SECONDS, answer)

    async def _ask(self, body: Store | Read) -> Published | StoredHistory:
        answer: asyncio.Future[Published | StoredHistory] = self._loop.create_future()
        request = self._request(body, answer)
        problem = self._submit(request)
        if problem is not None:
            raise BrokerUnavailable(f"nothing was stored: {problem}")
        try:
            return await answer
        finally:
            self._unanswered.pop(body.number, None)
            self._note_settled()
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer, request

    def _submit(self, request: Request) -> str | None:
        """Send a request, or have it wait for its owner. Return why it was dropped, or None."""
        if self._is_closed or self.members.is_leaving:
            return "the broker is being closed"
        if isinstance(request.body, Store) and len(request.body.envelope) > MAX_ENVELOPE:
            return TOO_LARGE
        if len(self._unanswered) >= MAX_UNANSWERED:
            return FULL
        slot = request.slot
        if slot not in self._held:
            if self.members.has_started and not self.members.owners.owner(slot):
                self.members.seek(slot, self._events.now())
            outcome = self._dispatch(request)
            if outcome is not None:
                return outcome or None
        if not self.members.has_keepers:
            return "no worker keeps histories"
        if self._held_bytes + request.charge > self._max_pending:
            return FULL
        self._held.setdefault(slot, deque()).append(request)
        self._held_bytes += request.charge
        return None

    def _dispatch(self, request: Request) -> str | None:
        """Have the owner serve a request. Return an empty string, or why it was not sent; None if it has to wait."""
        term, owner = self.members.route(request.slot)
        if owner == self.members.own_id:
            self._serve_own(request)
            return ""
        peer = self.members.reachable(owner)
        if peer is None:
            return None
        if not peer.send_history(replace(request.body, term=term).encode()):
            return FULL
        if request.answer is not None:
            request.sent_to = owner
            request.expires_at = self._events.now() + REQUEST_SECONDS
            self._unanswered[request.body.number] = request
        return ""

    def _serve_own(self, request: Request) -> None:
        body = request.body
        result: Published | StoredHistory
        if isinstance(body, Store):
            result = self.keeper.store(request.slot, body)
        else:
            result = self.keeper.read(request.slot, body, body.max_bytes)
        if request.answer is not None and not request.answer.done():
            request.answer.set_result(result)

    def _owner_changed(self, slots: Iterable[int]) -> None:
        """Note that slots have another owner, or none."""
        for slot in slots:
            # Histories that are handed over stay until all of them have been sent.
            if self.members.owners.owner(slot) != self.members.own_id and not self.moves.is_frozen:
                self.keeper.forget(slot)
            self._send_held_of(slot)

    def _send_held(self) -> None:
        for slot in tuple(self._held):
            self._send_held_of(slot)

    def _send_held_of(self, slot: int) -> None:
        """Send the requests of a slot that wait, as far as its owner takes them."""
        if slot not in self._held or self._is_closed:
            return
        if self.members.has_started and not self.members.owners.owner(slot):
            self.members.seek(slot, self._events.now())
        while slot in self._held:
            request = self._held[slot][0]
            outcome = None if request.answer is None or not request.answer.done() else ""
            if outcome is None:
                outcome = self._dispatch(request)
            if outcome == "":
                self._pop(slot)
                continue
            if outcome is not None and self._retry is None:
                self._retry = self._loop.call_later(RETRY_SECONDS, self._send_again)
            return

    def _send_again(self) -> None:
        self._retry = None
        self._send_held()

    def _pop(self, slot: int) -> Request:
        """Take the oldest request of a slot that waits."""
        held = self._held[slot]
        request = held.popleft()
        self._held_bytes -= request.charge
        if not held:
            del self._held[slot]
        self._note_settled()
        return request

    def _fail_held(self, slot: int, reason: str) -> None:
        while slot in self._held:
            self._fail(self._pop(slot), reason)

    def _fail(self, request: Request, reason: str) -> None:
        """Fail a request that has done nothing."""
        if request.answer is None:
            self.dropped["disconnected"] += 1
        request.fail(BrokerUnavailable(f"nothing was stored: {reason}"))

    def _lose(self, request: Request, reason: str) -> None:
        """Fail a request that may have done something."""
        self._unanswered.pop(request.body.number, None)
        request.fail(BrokerUncertain(reason))
        self._note_settled()

    def _answered(self, peer: Peer, number: int, result: Published | StoredHistory) -> None:
        request = self._unanswered.get(number)
        if request is None or request.sent_to != peer.node_id or request.answer is None:
            return
        if isinstance(result, Published) != isinstance(request.body, Store):
            raise ValueError("a worker has answered something else than it was asked")
        del self._unanswered[number]
        if not request.answer.done():
            request.answer.set_result(result)
        self._note_settled()

    async def _settle(self, seconds: float) -> None:
        """Return once no request of this node waits, or after so many seconds."""
        if self._held or self._unanswered:
            self._settled = self._loop.create_future()
            await asyncio.wait([self._settled], timeout=seconds)
            self._settled = None

    def _note_settled(self) -> None:
        if self._settled is not None and not self._held and not self._unanswered and not self._settled.done():
            self._settled.set_result(None)

    # Requests of others

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
