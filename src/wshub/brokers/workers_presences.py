"""The presence of the workers of one machine: each room has an owner that keeps its entries.

The node that has the connection knows an entry, and so do the owner of the room and the owner's standby. So no single
node takes the knowledge of an entry with it. A new owner gets the entries from the others again. It answers nothing
before it has all of them: so each join and leave is told once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from wshub.brokers.history_store import new_epoch
from wshub.brokers.interface import BrokerEvents, NodeInfo
from wshub.brokers.presence_interface import Beat, PresenceCounts, PresenceEntry, StoredPresence
from wshub.brokers.presence_store import check_cursor
from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owner_records import Claim, Owners, Ready, Refused
from wshub.brokers.workers_owners import check_slot, slot_of
from wshub.brokers.workers_peer import Peer
from wshub.brokers.workers_presence_copies import Copies
from wshub.brokers.workers_presence_keeper import OwnedSlot, PresenceKeeper, parts_of
from wshub.brokers.workers_presence_records import (
    Copied,
    CopiedAnew,
    Counted,
    Counts,
    Enter,
    Found,
    Leave,
    Lost,
    NodeLeaves,
    Outcome,
    Read,
    RequestBody,
    Resending,
    Resent,
    ResentAll,
    Uncopied,
    UncopiedSlot,
    decode_body,
)
from wshub.brokers.workers_presence_tables import SlotEntries, send_paced
from wshub.brokers.workers_requests import REQUEST_SECONDS, Request, Requests, Subject
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["PRESENCE_BEAT_SECONDS", "Presences"]

PRESENCE_BEAT_SECONDS = 0.5
"""Seconds between two beats of a hub. They cost nothing here: no other node is asked."""

CHANGE_SECONDS = 2.0
"""Seconds that a change waits for its owner before the hub tries again, with all that has changed since."""

RETRY_SECONDS = 0.02
"""Seconds until a request is made again whose owner has gone, or was not the owner any more."""

SUBJECT = Subject(undone="nothing was changed", kept="presence", keepers="presences", follows_terms=True)


class Presences:
    """The presence of one session.

    Args:
        loop: the event loop of the session.
        node: this node.
        events: the hub's side.
        max_pending: bytes that may wait for owners that are not there yet.
        dead_seconds: for which a node may be away before it counts as dead.
        barrier: returns once every peer has handled what was queued for it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: NodeInfo,
        events: BrokerEvents,
        max_pending: int,
        dead_seconds: float,
        barrier: Callable[[], Awaitable[None]],
    ) -> None:
        self.members = Membership(node, self._owner_changed, Peer.send_presence)
        self.keeper = PresenceKeeper(node.id, max_pending)
        self.own = SlotEntries()
        """The entries that this node has entered."""
        self.copies = self.keeper.copies = Copies(loop, self.members, self.keeper)
        self._loop = loop
        self._events = events
        self._dead_seconds = dead_seconds
        self._barrier = barrier
        self._requests = Requests(loop, events.now, self.members, max_pending, self._serve_own, SUBJECT)
        self._numbers = count(1)
        self._epoch = new_epoch()
        self._connected: set[str] = set()
        # Nodes that were lost and may come back: the seconds for which nothing was heard of them.
        self._absent: dict[str, float] = {}
        # Entries that others have taken over since this node was taken for dead.
        self._lost: dict[str, None] = {}
        # Slots whose entries are to be resent, by the connection to their owner.
        self._due: dict[Peer, dict[int, None]] = {}
        self._resending: dict[Peer, asyncio.Task[None]] = {}
        self.takes_part = False
        """Whether the hub has rooms with presence, and knows the others."""
        self._session_has_started = False
        self._starting: asyncio.Task[None] | None = None
        self._is_closed = False

    # What the broker calls

    async def enter(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Add entries of this node. See ``PresenceSource.presence_enter``."""

        def take(outcome: list[bool]) -> None:
            self.own.add(channel, entries)

        return await self._change(partial(Enter, channel=channel, entries=tuple(entries)), len(entries), take)

    async def leave(self, channel: str, entries: Sequence[PresenceEntry]) -> list[bool]:
        """Remove entries of this node. See ``PresenceSource.presence_leave``."""

        def take(outcome: list[bool]) -> None:
            self.own.remove(channel, [entry.id for entry in entries])

        # The owner needs no data.
        make = partial(Leave, channel=channel, entries=tuple(entry._replace(data=b"") for entry in entries))
        return await self._change(make, len(entries), take)

    def beat(self) -> Beat:
        """Return which nodes are dead, and which entries of this one are lost."""
        self._take_part()
        lost = tuple(self._lost)
        self._lost.clear()
        return Beat(
            is_known=True,
            epoch=self._epoch,
            dead=tuple(self.keeper.dead(self._is_alive)),
            lost=lost,
            next_in=PRESENCE_BEAT_SECONDS,
        )

    def take_over(self, node_id: str) -> list[tuple[str, PresenceEntry]]:
        """Make entries of a dead node those of this one, as far as this node owns their slots."""
        if self._is_alive(node_id):
            return []
        taken = self.keeper.take_over(node_id)
        for channel, entry in taken:
            self.own.add(channel, [entry])
        return taken

    async def read(self, channel: str, cursor: str, limit: int) -> StoredPresence:
        """Return some entries of a channel. Raises ``BrokerUnavailable``."""
        check_cursor(cursor)
        found: StoredPresence = await self._read(partial(Read, channel=channel, cursor=cursor, limit=limit))
        return found

    async def counts(self, channel: str) -> PresenceCounts:
        """Return the number of entries and users of a channel. Raises ``BrokerUnavailable``."""
        counts: PresenceCounts = await self._read(partial(Counts, channel=channel))
        return counts

    async def _change(self, make: Callable[..., RequestBody], count: int, take: Callable[[Any], None]) -> list[bool]:
        outcome: list[bool] = await self._ask(make, CHANGE_SECONDS, take)
        if len(outcome) != count:
            raise BrokerUncertain(f"the owner has answered for {len(outcome)} entries, and not for {count}")
        return outcome

    async def _read(self, make: Callable[..., RequestBody]) -> Any:
        try:
            return await self._ask(make, REQUEST_SECONDS)
        except BrokerUncertain as error:
            raise BrokerUnavailable(str(error)) from None

    async def _ask(
        self, make: Callable[..., RequestBody], seconds: float, take: Callable[[Any], None] | None = None
    ) -> Any:
        """Make a request, and again while its owner changes. Each may be carried out several times."""
        self._take_part()
        deadline = self._events.now() + seconds
        is_uncertain = False
        while True:
            left = max(deadline - self._events.now(), RETRY_SECONDS)
            body = make(number=next(self._numbers), term=0)
            try:
                return await self._requests.ask(body, seconds=left, take=take)
            except BrokerError as error:
                is_uncertain = is_uncertain or isinstance(error, BrokerUncertain)
                if self._is_closed or self._events.now() + RETRY_SECONDS >= deadline:
                    if is_uncertain:
                        raise BrokerUncertain(str(error)) from None
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def hand_over(self, seconds: float) -> None:
        """Have other nodes own the slots of this one, and give them all entries, in so many seconds."""
        members = self.members
        if self._is_closed or not members.has_started or not self.takes_part:
            return
        deadline = self._loop.time() + seconds
        members.leave()
        for slot in members.owners.slots_of(members.own_id):
            self._keep_copies(slot)
        members.vacate(members.own_id)
        while members.candidates() and not self._has_handed_over() and self._loop.time() < deadline:
            self._seek_owners(self._events.now())
            await asyncio.sleep(RETRY_SECONDS)
        with contextlib.suppress(TimeoutError, BrokerUnavailable):
            async with asyncio.timeout_at(deadline):
                await self._barrier()

    def _keep_copies(self, slot: int) -> None:
        """Keep what this node knows as an owner of a slot, for the next owner."""
        own_id = self.members.own_id
        owned = self.keeper.slots.get(slot)
        if owned is not None:
            for node_id, channel, entries in parts_of(owned):
                if node_id != own_id:
                    self.copies.keep(own_id, node_id, channel, entries)

    def _has_handed_over(self) -> bool:
        """Return whether all slots of which this node knows entries have other owners, to which it has sent them."""
        own_id, owners = self.members.own_id, self.members.owners
        return not self._resending and all(owners.owner(slot) not in ("", own_id) for slot in self._known_slots())

    def abandon(self) -> None:
        """Give up everything: the loop was closed."""
        self._is_closed = True
        self._requests.abandon()

    def close(self) -> None:
        """Have all requests fail. The others take the entries of this node over."""
        self._is_closed = True
        self.keeper.close()
        self._requests.close()
        self.copies.close()
        for task in (self._starting, *self._resending.values()):
            if task is not None:
                task.cancel()

    def sweep(self, now: float, step: float) -> None:
        """Note that so many seconds have passed: nodes that were away for too long are dead."""
        for node_id in tuple(self._absent):
            self._absent[node_id] += step
            if self._absent[node_id] >= self._dead_seconds:
                self.node_ended(node_id)
        self._seek_owners(now)
        self._requests.sweep(now)
        self.copies.choose()
        self.copies.sweep()

    def _seek_owners(self, now: float) -> None:
        """Have owners chosen for the slots of which this node knows entries."""
        for slot in self._known_slots():
            if self.members.has_started and not self.members.owners.owner(slot):
                self.members.seek(slot, now)

    def _known_slots(self) -> set[int]:
        """Return the slots of which this node knows entries."""
        return {*self.own.slots, *self.copies.slots}

    def _take_part(self) -> None:
        """Say that this node takes part: its hub has rooms with presence, and looks after those that die."""
        if not self.takes_part:
            self.takes_part = True
            self._start()

    def _start(self) -> None:
        if self.takes_part and self._session_has_started and not self._is_closed:
            self._starting = self._loop.create_task(self._meet())

    async def _meet(self) -> None:
        await self.members.meet(self._barrier)
        if not self._is_closed:
            self.members.started()
            self._requests.started()

    # What the session calls

    def started(self) -> None:
        """Note that this node knows the others."""
        self._session_has_started = True
        self._start()

    async def met(self) -> None:
        """Return when the others know that this node takes part, if it does, or after two seconds."""
        if self._starting is not None:
            await asyncio.wait([self._starting])

    def peer_up(self, peer: Peer) -> None:
        """Note a connection. Both sides say what they know, and send their entries to the other as an owner."""
        assert peer.hello is not None
        self._absent.pop(peer.node_id, None)
        self._connected.add(peer.node_id)
        if not peer.hello.knows_presences:
            return
        self.members.peer_up(peer)
        self.copies.peer_up(peer)
        for slot in self.members.owners.slots_of(peer.node_id):
            self._resend(slot)
        self._requests.send_held()

    def peer_down(self, peer: Peer) -> None:
        """Note that a connection was lost, or that the node has said GOODBYE."""
        if peer.node_id in self._connected:
            self._connected.discard(peer.node_id)
            self._absent[peer.node_id] = peer.silent
            self.keeper.node_down(peer.node_id)
        if self.members.peer_down(peer):
            self.copies.choose()
            self._requests.peer_down(peer)
            self._requests.send_held()

    def node_ended(self, node_id: str) -> None:
        """Note that a node has ended, or that it hangs. Its slots get other owners, and its entries are taken over."""
        self._absent.pop(node_id, None)
        # A new owner serves nothing before it has the copies.
        for slot in self.copies.slots_of(node_id):
            self._update_owner(slot)
        self.members.node_ended(node_id)
        self.keeper.node_ended(node_id)
        self.copies.choose()
        self._requests.send_held()

    def _is_alive(self, node_id: str) -> bool:
        return node_id == self.members.own_id or node_id in self._connected or node_id in self._absent

    def received(self, peer: Peer, data: bytes) -> None:
        """Take a PRESENCE record. Raises ``ValueError`` if it is malformed."""
        body = decode_body(data)
        if isinstance(body, Enter | Leave | Read | Counts):
            self._serve(peer, body)
        elif isinstance(body, Outcome):
            self._requests.answered(peer, body.number, Enter | Leave, body.outcome)
        elif isinstance(body, Found):
            self._requests.answered(peer, body.number, Read, body.found)
        elif isinstance(body, Counted):
            self._requests.answered(peer, body.number, Counts, body.counts)
        elif isinstance(body, Refused):
            self._requests.refused(peer, body.number, body.reason)
        elif isinstance(body, Owners):
            for owned in body.owned:
                self.members.learn(owned)
        elif isinstance(body, Claim):
            self.members.claimed(peer, body)
        elif isinstance(body, Ready):
            self.members.is_ready(peer)
            self.copies.choose()
            self._requests.send_held()
        elif isinstance(body, NodeLeaves):
            self.members.leaves(peer)
            self.copies.choose()
            self.members.vacate(peer.node_id)
        elif isinstance(body, Resent | ResentAll | Resending):
            self._take_resent(peer, body)
        elif isinstance(body, Lost):
            # The hub enters those again that are still there.
            self.own.remove(body.channel, body.ids)
            self._lost.update(dict.fromkeys(body.ids))
        elif isinstance(body, CopiedAnew | Copied | Uncopied | UncopiedSlot):
            self.copies.received(peer, body)

    # Owners

    def _owns(self, slot: int) -> bool:
        return slot in self.keeper.slots

    def _owner_changed(self, slots: Iterable[int]) -> None:
        """Note that slots have another owner, or none, or the same one anew."""
        for slot in slots:
            if self.members.owners.owner(slot) != self.members.own_id and self._owns(slot):
                self.keeper.end(slot)
                if not self.members.is_leaving:
                    self.copies.drop(slot)
            self._update_owner(slot)
            self._requests.send_held_of(slot)

    def _update_owner(self, slot: int) -> None:
        """Give the owner of a slot all entries that it may not have."""
        owner = self.members.owners.owner(slot)
        if owner == self.members.own_id:
            self._begin(slot)
        elif owner:
            self._resend(slot)
        elif self.members.has_started and (slot in self.own or slot in self.copies):
            self.members.seek(slot, self._events.now())

    def _begin(self, slot: int) -> None:
        """Own a slot. The other nodes send their entries."""
        term = self.members.owners.term(slot)
        owned = self.keeper.slots.get(slot)
        if owned is None or owned.term != term:
            owned = self.keeper.begin(slot, term, self.members.others())
            for channel, entries in self.own.parts(slot):
                self.keeper.enter(owned, self.members.own_id, channel, entries)
        for node_id, channel, entries in self.copies.take(slot, self.members.own_id):
            self._enter_copies(owned, node_id, channel, entries)
        self.keeper.serve_waiting(owned)

    def _enter_copies(self, owned: OwnedSlot, node_id: str, channel: str, entries: Iterable[PresenceEntry]) -> None:
        """Add entries that a former owner has known."""
        if node_id != self.members.own_id:
            self.keeper.enter_copies(owned, node_id, channel, entries, is_connected=node_id in self._connected)

    # Entries for other owners

    def _resend(self, slot: int) -> None:
        """Send the owner of a slot all entries of this node, and the copies that it has of former owners."""
        peer = self.members.reachable(self.members.owners.owner(slot))
        if peer is None or self._is_closed or not self.takes_part:
            # All is sent once the node is connected.
            return
        due = self._due.setdefault(peer, {})
        if slot not in due:
            due[slot] = None
            # The owner drops entries that are not resent, except for those that this node enters from now on.
            peer.send_presence(Resending(slot, self.members.owners.term(slot)).encode(), always=True)
        if peer not in self._resending:
            self._resending[peer] = self._loop.create_task(self._resend_due(peer))

    async def _resend_due(self, peer: Peer) -> None:
        due = self._due[peer]
        try:
            while due:
                terms = {slot: self.members.owners.term(slot) for slot in due}
                # The former owner may have ended. This node handles all that it has sent before that.
                await self._barrier()
                if not await send_paced(peer, self._resent_bodies(peer, terms)):
                    return
        except BrokerUnavailable:
            # The session was closed.
            pass
        finally:
            del self._resending[peer], self._due[peer]

    def _resent_bodies(self, peer: Peer, terms: dict[int, int]) -> Iterator[bytes]:
        """Yield what is to be sent of slots that have had these terms since the last barrier."""
        due = self._due[peer]
        owners = self.members.owners
        for slot, term in terms.items():
            if owners.term(slot) != term or slot not in due:
                continue
            del due[slot]
            if owners.owner(slot) != peer.node_id:
                continue
            for channel, entries in self.own.parts(slot):
                yield Resent(slot, term, self.members.own_id, channel, entries).encode()
            for node_id, channel, entries in self.copies.take(slot, peer.node_id):
                yield Resent(slot, term, node_id, channel, entries).encode()
            yield ResentAll(slot, term).encode()

    def _take_resent(self, peer: Peer, body: Resent | ResentAll | Resending) -> None:
        """Take entries of another node."""
        check_slot(body.slot)
        owners = self.members.owners
        # The node that has chosen this one may have told the sender first.
        self.members.adopt(body.slot, body.term)
        owned = self.keeper.slots.get(body.slot)
        if owned is None or owners.owner(body.slot) != self.members.own_id or owners.term(body.slot) != body.term:
            return
        if isinstance(body, Resending):
            self.keeper.resend_begins(owned, peer.node_id)
            return
        if isinstance(body, ResentAll):
            self.keeper.resent_all(owned, peer.node_id)
            return
        if slot_of(body.channel) != body.slot:
            raise ValueError("an entry is resent that belongs to another slot")
        owned.confirm(body.node_id, body.channel, body.entries)
        if body.node_id != peer.node_id:
            self._enter_copies(owned, body.node_id, body.channel, body.entries)
        elif peer.node_id in owned.awaited:
            self.keeper.enter_missing(owned, body.node_id, body.channel, body.entries)
        else:
            # This node has kept the entries of that one, except for those that it has taken over. The answer to a
            # Leave may be under way.
            entries = owned.entries
            lost = tuple(
                entry.id
                for entry in body.entries
                if not entries.has(body.channel, entry.id) and not entries.has_left(body.channel, entry.id)
            )
            if lost:
                peer.send_presence(Lost(body.channel, lost).encode(), always=True)

    # Requests

    def _serve_own(self, request: Request) -> None:
        self.keeper.serve(
            request.slot,
            self.members.own_id,
            request.body,
            request.succeed,
            lambda reason: request.fail(BrokerUnavailable(f"{SUBJECT.undone}: {reason}")),
        )

    def _serve(self, peer: Peer, body: RequestBody) -> None:
        """Serve a request of another node, or refuse it."""
        slot = slot_of(body.channel)
        self.members.adopt(slot, body.term)
        owners = self.members.owners
        if owners.owner(slot) != self.members.own_id or owners.term(slot) != body.term or not self._owns(slot):
            self._refuse(peer, body, "the worker does not keep this presence any more")
            return
        self.keeper.serve(
            slot, peer.node_id, body, partial(self._answer, peer, body), partial(self._refuse, peer, body)
        )

    @staticmethod
    def _refuse(peer: Peer, body: RequestBody, reason: str) -> None:
        peer.send_presence(Refused(body.number, reason).encode())

    @staticmethod
    def _answer(peer: Peer, body: RequestBody, result: Any) -> None:
        """Answer a request. If there is no space for that, the node asks again."""
        answer: Outcome | Found | Counted
        if isinstance(body, Read):
            answer = Found(body.number, result)
        elif isinstance(body, Counts):
            answer = Counted(body.number, result)
        else:
            answer = Outcome(body.number, result)
        peer.send_presence(answer.encode())
