"""The requests of this node to the owners of slots, and the order in which they wait.

A request goes to the owner of its channel's slot, over the one connection of the two nodes. So the requests of a node
on a channel arrive in order. While the owner is unknown, leaves or cannot be reached, requests wait in that order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wshub.brokers.workers_membership import Membership
from wshub.brokers.workers_owners import slot_of
from wshub.brokers.workers_peer import Peer
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["FULL", "REQUEST_SECONDS", "Request", "RequestBody", "Requests", "Subject"]

REQUEST_SECONDS = 5.0
"""Seconds that a request waits to be sent, and as many that it waits for its answer."""

REQUEST_CHARGE = 256
"""Bytes that a waiting request counts for, besides its body."""

MAX_UNANSWERED = 65536
"""Requests without an answer."""

RETRY_SECONDS = 0.02
"""Seconds until waiting requests are sent again that have found too much waiting for their owner."""

FULL = "too much waits for the worker that keeps it"


class RequestBody(Protocol):
    """The body of a request."""

    @property
    def number(self) -> int: ...

    @property
    def channel(self) -> str: ...

    @property
    def size(self) -> int:
        """About how many bytes it has."""

    def with_term(self, term: int) -> RequestBody:
        """Return it for an owner with that term."""

    def encode(self) -> bytes: ...


@dataclass(eq=False, slots=True)
class Request:
    """A request of this node."""

    body: Any
    slot: int
    seconds: float
    expires_at: float
    answer: asyncio.Future[Any] | None = None
    """None if nobody waits for it."""
    take: Callable[[Any], None] | None = None
    """Called with the answer at once: whoever waits for the future runs later."""
    sent_to: str = ""
    """The id of the node that is to answer."""
    term: int = 0
    """Its term then."""

    @property
    def charge(self) -> int:
        """The bytes that it counts for while it waits."""
        return REQUEST_CHARGE + int(self.body.size)

    def succeed(self, result: Any) -> None:
        """Give the caller the answer."""
        if self.take is not None:
            self.take(result)
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: BrokerError) -> None:
        """Have the caller see an error."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)
            # The caller may have been cancelled: then nothing else retrieves the exception.
            self.answer.exception()


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of requests, for errors."""

    undone: str
    """For a request that was not sent: ``nothing was stored``."""
    kept: str
    """The thing that an owner keeps: ``history``."""
    keepers: str
    """The same in plural: ``histories``."""
    follows_terms: bool = False
    """Whether an answer is worth nothing if the slot has another owner when it arrives."""


class Requests:
    """The requests of one session about one subject.

    Args:
        loop: the event loop of the session.
        now: returns the time in seconds.
        members: who owns which slot.
        max_pending: bytes that may wait for owners that are not there yet.
        serve: serves a request of this node that is the owner.
        subject: what requests are about.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        members: Membership,
        max_pending: int,
        serve: Callable[[Request], None],
        subject: Subject,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        """Requests without an answer that were dropped, by reason."""
        self._loop = loop
        self._now = now
        self._members = members
        self._max_pending = max_pending
        self._serve = serve
        self._subject = subject
        # Requests that wait for their owner, in order, by slot.
        self._held: dict[int, deque[Request]] = {}
        self._held_bytes = 0
        # Requests that were sent, by number.
        self._unanswered: dict[int, Request] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._settled: asyncio.Future[None] | None = None
        self._is_closed = False

    # New ones

    def send(self, body: RequestBody) -> str | None:
        """Send a request that gets no answer. Return why it was dropped, or None."""
        return self._submit(self._request(body, REQUEST_SECONDS))

    async def ask(
        self,
        body: RequestBody,
        *,
        seconds: float = REQUEST_SECONDS,
        take: Callable[[Any], None] | None = None,
    ) -> Any:
        """Send a request, and return its answer. Raises ``BrokerError``.

        Args:
            body: of the request.
            seconds: for which it waits to be sent, and as many for its answer.
            take: called with the answer as soon as it is there.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        request = self._request(body, seconds)
        request.answer, request.take = answer, take
        problem = self._submit(request)
        if problem is not None:
            raise BrokerUnavailable(f"{self._subject.undone}: {problem}")
        try:
            return await answer
        finally:
            self._unanswered.pop(body.number, None)
            self._note_settled()
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer, request

    def _request(self, body: RequestBody, seconds: float) -> Request:
        return Request(body, slot_of(body.channel), seconds, self._now() + seconds)

    def _submit(self, request: Request) -> str | None:
        """Send a request, or have it wait for its owner. Return why it was dropped, or None."""
        if self._is_closed or self._members.is_leaving:
            return "the broker is being closed"
        if len(self._unanswered) >= MAX_UNANSWERED:
            return FULL
        slot = request.slot
        if slot not in self._held:
            self._seek(slot)
            outcome = self._dispatch(request)
            if outcome is not None:
                return outcome or None
        if not self._members.has_keepers:
            return self._nobody
        if self._held_bytes + request.charge > self._max_pending:
            return FULL
        self._held.setdefault(slot, deque()).append(request)
        self._held_bytes += request.charge
        return None

    def _seek(self, slot: int) -> None:
        if self._members.has_started and not self._members.owners.owner(slot):
            self._members.seek(slot, self._now())

    def _dispatch(self, request: Request) -> str | None:
        """Have the owner serve a request. Return an empty string, or why it was not sent; None if it has to wait."""
        term, owner = self._members.route(request.slot)
        if owner == self._members.own_id:
            self._serve(request)
            return ""
        peer = self._members.reachable(owner)
        if peer is None:
            return None
        if not self._members.send(peer, request.body.with_term(term).encode()):
            return FULL
        if request.answer is not None:
            request.sent_to, request.term = owner, term
            request.expires_at = self._now() + request.seconds
            self._unanswered[request.body.number] = request
        return ""

    # What happens to them

    def answered(self, peer: Peer, number: int, kind: Any, result: Any) -> None:
        """Take the answer of a peer to a request whose body is of that kind. Raises ``ValueError`` if it is not."""
        request = self._unanswered.get(number)
        if request is None or request.sent_to != peer.node_id or request.answer is None:
            return
        if not isinstance(request.body, kind):
            raise ValueError("a worker has answered something else than it was asked")
        if self._subject.follows_terms and self._members.owners.term(request.slot) != request.term:
            self._lose(request, f"another worker keeps the {self._subject.kept} since")
            return
        del self._unanswered[number]
        request.succeed(result)
        self._note_settled()

    def refused(self, peer: Peer, number: int, reason: str) -> None:
        """Note that a peer has done nothing."""
        request = self._unanswered.get(number)
        if request is not None and request.sent_to == peer.node_id:
            del self._unanswered[number]
            self._fail(request, reason)

    def peer_down(self, peer: Peer) -> None:
        """Note that a connection was lost: its requests get no answer."""
        for request in tuple(self._unanswered.values()):
            if request.sent_to == peer.node_id:
                self._lose(request, f"the connection to the worker that keeps the {self._subject.kept} was lost")

    def sweep(self, now: float) -> None:
        """Fail what has waited for too long."""
        for request in tuple(self._unanswered.values()):
            if now >= request.expires_at:
                self._lose(request, f"the worker that keeps the {self._subject.kept} has not answered in time")
        for slot, held in tuple(self._held.items()):
            while held and now >= held[0].expires_at:
                self._fail(
                    self._pop(slot), f"the worker that keeps the {self._subject.kept} could not be reached in time"
                )
            if slot in self._held:
                self._members.seek(slot, now)

    def abandon(self) -> None:
        """Give up everything: the loop was closed."""
        self._is_closed = True
        self._held.clear()
        self._unanswered.clear()

    def close(self) -> None:
        """Have all requests fail."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._fail_held("the broker was closed")
        for request in tuple(self._unanswered.values()):
            self._lose(request, "the broker was closed before the answer came")

    async def settle(self, seconds: float) -> None:
        """Return once no request waits, or after so many seconds."""
        if self._held or self._unanswered:
            self._settled = self._loop.create_future()
            await asyncio.wait([self._settled], timeout=seconds)
            self._settled = None

    # Those that wait for their owner

    def started(self) -> None:
        """Send the requests that wait, now that the other workers are known. Fail them if none of these is an owner."""
        if not self._members.has_keepers:
            self._fail_held(self._nobody)
        self.send_held()

    def send_held(self) -> None:
        """Send the requests that wait, as far as their owners take them."""
        for slot in tuple(self._held):
            self.send_held_of(slot)

    def send_held_of(self, slot: int) -> None:
        """Send those of a slot."""
        if slot not in self._held or self._is_closed:
            return
        self._seek(slot)
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
        self.send_held()

    def _pop(self, slot: int) -> Request:
        """Take the oldest request of a slot that waits."""
        held = self._held[slot]
        request = held.popleft()
        self._held_bytes -= request.charge
        if not held:
            del self._held[slot]
        self._note_settled()
        return request

    @property
    def _nobody(self) -> str:
        return f"no worker keeps {self._subject.keepers}"

    def _fail_held(self, reason: str) -> None:
        for slot in tuple(self._held):
            while slot in self._held:
                self._fail(self._pop(slot), reason)

    def _fail(self, request: Request, reason: str) -> None:
        """Fail a request that has done nothing."""
        if request.answer is None:
            self.dropped["disconnected"] += 1
        request.fail(BrokerUnavailable(f"{self._subject.undone}: {reason}"))

    def _lose(self, request: Request, reason: str) -> None:
        """Fail a request that may have done something."""
        self._unanswered.pop(request.body.number, None)
        request.fail(BrokerUncertain(reason))
        self._note_settled()

    def _note_settled(self) -> None:
        if self._settled is not None and not self._held and not self._unanswered and not self._settled.done():
            self._settled.set_result(None)
