"""Publishing through an engine: bounded, counted, and answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from wshub.brokers.interface import Published
from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_connection import RedisConnection
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["Publishing"]

logger = logging.getLogger("wshub.broker")

# Seconds after which publish() waits no longer for its answer.
ANSWER_SECONDS = 5.0

# Bytes of the largest envelope. By default an engine ends each subscriber for which 32 MiB wait, so one message of that
# size would cut off all nodes.
LARGEST_ENVELOPE = 16 * 1024 * 1024


class Publishing:
    """Sends envelopes over the connection that is open.

    Each envelope counts once: as sent, or as dropped. It may count as sent until the engine refuses it, or until the
    connection ends before the answer.

    Args:
        names: the names of the channels in the engine.
        max_pending: bytes that may wait to be sent. While as many do, a further envelope is dropped.
        now: returns the time in seconds.
    """

    def __init__(self, names: ChannelNames, max_pending: int, now: Callable[[], float]) -> None:
        self.connection: RedisConnection | None = None
        """The open connection; None if there is none."""
        self.dropped: Counter[str] = Counter()
        self.published = 0
        """Envelopes that ``publish()`` has sent."""
        self._names = names
        self._heads = names.heads
        self._max_pending = max_pending
        self._now = now
        # Answers that are waited for, and until when.
        self._waiting: deque[tuple[float, asyncio.Future[int]]] = deque()
        self._is_refusal_logged = False
        # Why the last envelope that was dropped was.
        self._why_dropped = ""

    def send(self, channel: str, envelope: bytes, on_answer: Callable[[Any], None] | None = None) -> bool:
        """Send an envelope. Return False if it was dropped.

        Args:
            channel: the channel.
            envelope: the envelope.
            on_answer: called with what the engine answers. By default the answer is only counted.
        """
        connection = self.connection
        if connection is None:
            return self._drop("disconnected", "there is no connection to the engine")
        # Here calls of methods and properties of Python are half of the price of a message.
        stream = connection.stream
        if stream.pending_bytes >= self._max_pending:
            return self._drop("full", "too many bytes wait to be sent to the engine already")
        length = len(envelope)
        if length > LARGEST_ENVELOPE:
            return self._drop("too_large", f"an engine passes on at most {LARGEST_ENVELOPE} bytes, not {length}")
        try:
            head = self._heads.get(channel) or self._names.publish_head(channel)
            stream.write(b"%b$%d\r\n%b\r\n" % (head, length, envelope))
            connection.reader.expect(on_answer)
        except MemoryError:
            return self._drop("full", "there is no memory for the message")
        return True

    def _drop(self, reason: str, explanation: str) -> bool:
        self.dropped[reason] += 1
        self._why_dropped = explanation
        return False

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has answered. Raise BrokerUnavailable if it was dropped."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self.send(channel, envelope, partial(self._take_answer, answer)):
            raise BrokerUnavailable(self._why_dropped)
        self.published += 1
        self._waiting.append((self._now() + ANSWER_SECONDS, answer))
        return Published(receivers=await answer)

    def sweep(self, now: float) -> None:
        """End what has waited too long for its answer."""
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= now):
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(BrokerUncertain(f"the engine has not answered within {ANSWER_SECONDS:g} s"))

    def refused(self, error: BrokerError) -> None:
        """Count an envelope that the engine has refused."""
        self.dropped["refused"] += 1
        if not self._is_refusal_logged:
            self._is_refusal_logged = True
            logger.warning("the engine refuses messages, which are dropped and counted: %s", error)

    def connected(self, connection: RedisConnection) -> None:
        """Send over this connection from now on."""
        self.connection = connection
        self._is_refusal_logged = False

    def _take_answer(self, answer: asyncio.Future[int], reply: Any) -> None:
        if isinstance(reply, BrokerUncertain):
            self.dropped["unanswered"] += 1
        elif isinstance(reply, BrokerError):
            self.refused(reply)
        if answer.done():
            return
        if isinstance(reply, BrokerError):
            # Each caller raises an error of its own.
            answer.set_exception(type(reply)(*reply.args))
        else:
            answer.set_result(reply)
