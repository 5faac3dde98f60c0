"""Publishing through the engines of a cluster: each envelope goes to the engine that owns its partition."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from wshub.brokers.envelope import encode_stored
from wshub.brokers.interface import Published
from wshub.brokers.redis_cluster_following import IS_REDIRECTED, ClusterRoutes, Following, ignore
from wshub.brokers.redis_commands import publish_command
from wshub.brokers.redis_partitions import ShardedNames
from wshub.brokers.redis_publishing import ANSWER_SECONDS, settle
from wshub.brokers.redis_session import RedisSession
from wshub.brokers.redis_subscriptions import REDIRECTION
from wshub.brokers.sequence_numbers import SequenceNumbers
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["ClusterPublishing"]

logger = logging.getLogger("wshub.broker")

# Seconds for which envelopes of a partition wait for the connection to its new engine.
PARKING_SECONDS = 5.0

# How often an envelope is sent again, if each engine names another one as the owner of the slot. From the second time
# on it rests for some seconds before: the engines do not agree yet.
MAX_REDIRECTIONS = 5
DISAGREEMENT_SECONDS = 0.5

# Envelopes that the owner of a slot must have taken one after the other until the next ones leave together again.
DIRECT_ENVELOPES = 16

Answered: TypeAlias = Callable[[Any], None]


class Outgoing:
    """A command whose last word is an envelope, on its way to the engine that owns the partition."""

    __slots__ = ("done", "envelope", "head", "partition", "redirections", "stored_on", "waits_alone")

    def __init__(self, partition: int, head: bytes, envelope: bytes, done: Answered, stored_on: str | None) -> None:
        self.partition = partition
        self.head = head
        self.envelope = envelope
        self.done = done
        """Called once with the answer, which may be an error."""
        self.stored_on = stored_on
        """The channel, if the command is the call of the script that stores the envelope."""
        self.waits_alone = False
        """Whether later envelopes overtake it while its keys move."""
        self.redirections = 0


class Move:
    """A partition between two engines. Envelopes for it wait.

    An envelope that the old engine refuses was sent before those that wait. So these leave once the old engine has
    answered all that it was sent.
    """

    __slots__ = ("fences", "is_slow", "not_before", "parked", "parked_bytes", "refused", "rest", "until")

    def __init__(self, until: float) -> None:
        self.rest = self.not_before = 0.0
        """Seconds of rest after the last answer of the old engine, and when they are over."""
        self.fences = 0
        """Answers that are waited for."""
        self.is_slow = False
        """Whether one envelope leaves at a time: the engine has some of the keys, and another one has the rest."""
        self.until = until
        self.refused: deque[Outgoing] = deque()
        """Sent already, and refused."""
        self.parked: deque[Outgoing] = deque()
        self.parked_bytes = 0

    def pop(self) -> Outgoing | None:
        """Return the envelope that is to leave first; None if none waits."""
        if self.refused:
            return self.refused.popleft()
        if not self.parked:
            return None
        outgoing = self.parked.popleft()
        self.parked_bytes -= len(outgoing.envelope)
        return outgoing


class ClusterPublishing:
    """Sends envelopes to the engines of a cluster.

    Each envelope counts once, as for one engine. Envelopes that are not stored get a sequence number.

    Args:
        names: of the channels.
        routes: to the engines.
        max_pending: bytes that may wait for one engine.
        now: returns the time in seconds.
    """

    def __init__(self, names: ShardedNames, routes: ClusterRoutes, max_pending: int, now: Callable[[], float]) -> None:
        self.dropped: Counter[str] = Counter()
        self.published = 0
        """Envelopes that engines have taken, out of those whose answers were waited for."""
        self.redirected = 0
        """Envelopes that engines have taken from ``send()`` and refused."""
        self.sent = [0] * names.partitions.number
        """Envelopes that were sent to each partition, without those that were redirected."""
        self._names = names
        self._routes = routes
        self._max_pending = max_pending
        self._now = now
        self._numbers = SequenceNumbers(names.partitions.number)
        self._following = Following(routes, now)
        self._moves: dict[int, Move] = {}
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_detached = False
        self._is_refusal_logged = False

    # Envelopes

    def send(self, channel: str, envelope: bytes) -> bool:
        """Send an envelope. Return False if it was dropped."""
        partition = self._names.group(channel)
        numbered = self._numbers.add_head(partition, envelope)
        return self._send(partition, self._names.publish_head(channel), numbered, None)

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has answered. Raise BrokerUnavailable if it was dropped."""
        partition = self._names.group(channel)
        numbered = self._numbers.add_head(partition, envelope)
        return Published(receivers=await self._ask(partition, self._names.publish_head(channel), numbered, None))

    def store(self, channel: str, head: bytes, envelope: bytes) -> bool:
        """Do what ``KeyCommands.store`` does."""
        return self._send(self._names.group(channel), head, envelope, channel)

    async def ask_to_store(self, channel: str, head: bytes, envelope: bytes, *, has_key: bool) -> Any:
        """Do what ``KeyCommands.ask_to_store`` does.

        While a slot moves, new keys belong to the new engine, and the room may still be at the old one. Then an
        envelope with an idempotency key waits for the end of the move, and later ones do not wait for it.
        """
        return await self._ask(self._names.group(channel), head, envelope, channel, waits_alone=has_key)

    async def _ask(
        self, partition: int, head: bytes, envelope: bytes, stored_on: str | None, *, waits_alone: bool = False
    ) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        outgoing = Outgoing(partition, head, envelope, partial(self._take_answer, answer), stored_on)
        outgoing.waits_alone = waits_alone
        why = self._send_outgoing(outgoing)
        if why:
            raise BrokerUnavailable(why)
        return await self._wait(answer)

    def _send(self, partition: int, head: bytes, envelope: bytes, stored_on: str | None) -> bool:
        """Send an envelope, and count the answer. Return False if it was dropped."""
        if self._moves and partition in self._moves:
            return not self._send_outgoing(Outgoing(partition, head, envelope, self._count_answer, stored_on))
        kept = (self._take_refused, partition, head, envelope, stored_on)
        return not self._send_to_owner(partition, head, envelope, kept, calls=stored_on is not None)

    def _send_outgoing(self, outgoing: Outgoing) -> str:
        """Send an envelope whose answer is waited for. Return why it was dropped, or an empty text."""
        move = self._moves.get(outgoing.partition)
        if move is not None:
            return self._park(move, outgoing)
        on_answer = partial(self._take_reply, outgoing)
        calls = outgoing.stored_on is not None
        return self._send_to_owner(outgoing.partition, outgoing.head, outgoing.envelope, on_answer, calls=calls)

    def _send_to_owner(self, partition: int, head: bytes, envelope: bytes, on_answer: Any, *, calls: bool) -> str:
        owner = self._routes.owner(partition)
        if owner is None or self._is_detached:
            self.dropped["disconnected"] += 1
            return "there is no connection to the engine"
        if calls:
            owner.calls.load()
        if owner.publishing.send_command(head, envelope, on_answer):
            self.sent[partition] += 1
            return ""
        return owner.publishing.why_dropped

    def _park(self, move: Move, outgoing: Outgoing) -> str:
        if move.parked_bytes >= self._max_pending:
            self.dropped["full"] += 1
            return "too many bytes wait for an engine that takes over slots"
        move.parked.append(outgoing)
        move.parked_bytes += len(outgoing.envelope)
        return ""

    # Other commands about keys

    async def request(self, partition: int, command: bytes, *, calls: bool) -> Any:
        """Send a command without an envelope, and return the answer. Raises ``BrokerError``."""
        if self._is_detached:
            raise BrokerUnavailable("there is no connection to the engine")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._begin(self._request(partition, command, answer, calls=calls))
        return await self._wait(answer)

    async def _request(self, partition: int, command: bytes, answer: asyncio.Future[Any], *, calls: bool) -> None:
        try:
            settle(answer, await self._following.send(partition, (command,), calls=calls))
        finally:
            settle(answer, BrokerUncertain("the broker was closed"))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Answers

    async def _wait(self, answer: asyncio.Future[Any]) -> Any:
        """Return an answer. Raise BrokerUncertain if it takes too long."""
        self._waiting.append((self._now() + ANSWER_SECONDS, answer))
        try:
            return await answer
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

    def _take_answer(self, answer: asyncio.Future[Any], reply: Any) -> None:
        self._count_answer(reply)
        settle(answer, reply)

    def _count_answer(self, reply: Any) -> None:
        if isinstance(reply, BrokerUncertain):
            self.dropped["unanswered"] += 1
        elif isinstance(reply, BrokerUnavailable):
            # It was counted where it was dropped.
            pass
        elif isinstance(reply, BrokerError):
            self._count_refusal(reply)
        else:
            self.published += 1

    def _count_refusal(self, error: BrokerError) -> None:
        self.dropped["refused"] += 1
        if not self._is_refusal_logged:
            self._is_refusal_logged = True
            logger.warning("the engine refuses messages, which are dropped and counted: %s", error)

    def _take_reply(self, outgoing: Outgoing, reply: Any) -> None:
        """Take the answer to an envelope, which leaves once more if it was redirected."""
        if not isinstance(reply, BrokerError) or not self._send_again(outgoing, str(reply)):
            outgoing.done(reply)

    def _take_refused(self, kept: tuple[Any, int, bytes, bytes, str | None], error: BrokerError) -> None:
        """Take back an envelope that an engine has refused."""
        _, partition, head, envelope, stored_on = kept
        self.redirected += 1
        self._take_reply(Outgoing(partition, head, envelope, self._count_answer, stored_on), error)

    # Moves

    def _send_again(self, outgoing: Outgoing, text: str) -> bool:
        """Send an envelope once more, before all that was sent after it. Return False if an engine has refused it."""
        if not text.startswith(IS_REDIRECTED) or outgoing.redirections >= MAX_REDIRECTIONS or self._is_detached:
            return False
        partition = outgoing.partition
        self.sent[partition] -= 1
        is_moved = text.startswith(REDIRECTION)
        if outgoing.waits_alone and not is_moved:
            self._begin(self._send_alone(outgoing))
            return True
        if is_moved:
            outgoing.redirections += 1
            self._routes.redirected(text, partition)
        move = self._moves.get(partition)
        if move is None or not is_moved or outgoing.redirections > 1:
            # The owner may be the same: engines that do not agree pass the slot to and fro.
            rest = DISAGREEMENT_SECONDS if is_moved and outgoing.redirections > 1 else 0.0
            move = self.begin_move(partition, self._routes.owner(partition), rest)
        move.is_slow = move.is_slow or not is_moved
        move.refused.append(outgoing)
        return True

    def begin_move(self, partition: int, old: RedisSession | None, rest: float = 0.0) -> Move:
        """Hold back what is sent to a partition until its old engine has answered all that it was sent.

        Args:
            partition: that moves.
            old: the session at its old engine.
            rest: seconds to wait after that.
        """
        move = self._moves.get(partition)
        if move is None:
            move = self._moves[partition] = Move(self._now() + PARKING_SECONDS)
        connection = old.connection if old is not None else None
        move.rest = max(move.rest, rest)
        move.not_before = self._now() + move.rest
        if connection is not None:
            move.fences += 1
            connection.request(b"*1\r\n$4\r\nPING\r\n", partial(self._pass_fence, partition, move))
        else:
            asyncio.get_running_loop().call_soon(self._finish_move, partition, move)
        return move

    def _pass_fence(self, partition: int, move: Move, reply: Any) -> None:
        move.fences -= 1
        move.not_before = self._now() + move.rest
        self._finish_move(partition, move)

    def finish_moves(self) -> None:
        """Send what has waited for connections that are open now."""
        for partition, move in list(self._moves.items()):
            self._finish_move(partition, move)

    def _finish_move(self, partition: int, move: Move) -> None:
        owner = self._routes.owner(partition)
        if self._moves.get(partition) is not move or move.fences or self._now() < move.not_before:
            return
        if owner is None or not owner.is_connected:
            return
        if move.is_slow:
            move.fences += 1
            self._begin(self._send_slowly(partition, move))
            return
        del self._moves[partition]
        while (outgoing := move.pop()) is not None:
            why = self._send_outgoing(outgoing)
            if why:
                outgoing.done(BrokerUnavailable(why))

    async def _send_slowly(self, partition: int, move: Move) -> None:
        """Send what waits, one envelope after the other: so they keep their order wherever each of them has to go."""
        directly = 0
        try:
            while directly < DIRECT_ENVELOPES and (outgoing := move.pop()) is not None:
                move.until = self._now() + PARKING_SECONDS
                followed = self._following.count
                if outgoing.waits_alone:
                    self._begin(self._send_alone(outgoing))
                    continue
                await self._send_alone(outgoing)
                directly = directly + 1 if self._following.count == followed else 0
        finally:
            move.is_slow = False
            move.fences -= 1
            self._finish_move(partition, move)

    async def _send_alone(self, outgoing: Outgoing) -> None:
        reply: Any = BrokerUncertain("the broker was closed")
        try:
            words = outgoing.head, publish_command(b"", outgoing.envelope)
            calls = outgoing.stored_on is not None
            imported = partial(self._pass_on, outgoing)
            reply = await self._following.send(outgoing.partition, words, calls=calls, imported=imported)
        finally:
            if isinstance(reply, BrokerUnavailable):
                self._drop(outgoing, reply)
            else:
                self.sent[outgoing.partition] += not isinstance(reply, BrokerError)
                outgoing.done(reply)

    def _pass_on(self, outgoing: Outgoing, reply: Any) -> None:
        """Publish an envelope at the owner of its slot, since an engine that takes the slot over has stored it.

        The nodes are subscribed to the channel at the owner.
        """
        owner = self._routes.owner(outgoing.partition)
        if outgoing.stored_on is None or not isinstance(reply, list) or owner is None or owner.connection is None:
            return
        offset, epoch, is_duplicate, _ = reply
        if not is_duplicate:
            stored = encode_stored(outgoing.envelope, offset=offset, previous=offset - 1, epoch=epoch.decode())
            head = self._names.publish_head(outgoing.stored_on)
            owner.connection.request(publish_command(head, stored), ignore)

    def _give_up(self, partition: int, why: str) -> None:
        move = self._moves[partition]
        if move.fences:
            # The old engine may still refuse envelopes, and later ones must not overtake them.
            move.until = self._now() + PARKING_SECONDS
        else:
            del self._moves[partition]
        while (outgoing := move.pop()) is not None:
            self._drop(outgoing, BrokerUnavailable(why))

    def _drop(self, outgoing: Outgoing, error: BrokerUnavailable) -> None:
        self.dropped["disconnected"] += 1
        outgoing.done(error)

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for a move to end."""
        return sum(move.parked_bytes for move in self._moves.values())

    # Time

    def sweep(self, now: float) -> None:
        """Send what has rested, and end what has waited too long."""
        self.finish_moves()
        for partition in [partition for partition, move in self._moves.items() if move.until <= now]:
            self._give_up(partition, "there is no connection to the engine that has taken over slots")
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= now):
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(BrokerUncertain(f"the engine has not answered within {ANSWER_SECONDS:g} s"))

    def detach(self) -> None:
        """Drop envelopes from now on."""
        self._is_detached = True
        for task in self._tasks:
            task.cancel()
        for partition in list(self._moves):
            self._give_up(partition, "the broker was closed")
