"""Publishing through an engine: bounded, counted, and answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from wshub.brokers.interface import Published
from wshub.brokers.redis_commands import ChannelNames
from wshub.brokers.redis_connection import RedisConnection
from wshub.brokers.redis_sender import EnvelopeSender
from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain

__all__ = ["Publishing"]

logger = logging.getLogger("wshub.broker")

# Seconds after which publish() waits no longer for its answer.
ANSWER_SECONDS = 5.0


class Publishing(EnvelopeSender):
    """Sends envelopes over the connection that is open.

    Each envelope counts once: as sent, or as dropped. It may count as sent until the engine refuses it, or until the
    connection ends before the answer.

    Args:
        names: the names of the channels in the engine.
        max_pending: bytes that may wait to be sent. While as many do, a further envelope is dropped.
        now: returns the time in seconds.
    """

    def __init__(self, names: ChannelNames, max_pending: int, now: Callable[[], float]) -> None:
        super().__init__(names, max_pending)
        self.connection: RedisConnection | None = None
        """The connection that is open; None if there is none."""
        self.max_pending = max_pending
        self._names = names
        self.published = 0
        """Envelopes that were taken, and whose answers ``count_answer()`` counts."""
        self._now = now
        # Answers that are waited for, and until when.
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._is_refusal_logged = False

    async def publish(self, channel: str, envelope: bytes) -> Published:
        """Send an envelope, and return when the engine has answered. Raise BrokerUnavailable if it was dropped."""
        head = self._names.publish_head(channel)
        return Published(receivers=await self.wait(self._send_for_answer(head, envelope)))

    def _send_for_answer(self, head: bytes, envelope: bytes) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.send_command(head, envelope, partial(self._take_answer, answer)):
            raise BrokerUnavailable(self.why_dropped)
        self.published += 1
        return answer

    async def request(self, command: bytes) -> Any:
        """Send a command without an envelope, and return the answer. Raises ``BrokerError``."""
        return await self.wait(self._request_answer(command))

    def _request_answer(self, command: bytes) -> asyncio.Future[Any]:
        if self.connection is None:
            raise BrokerUnavailable("there is no connection to the engine")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.connection.request(command, partial(settle, answer))
        return answer

    async def wait(self, answer: asyncio.Future[Any]) -> Any:
        """Return an answer, or raise it. Raise BrokerUncertain if it takes too long."""
        self._waiting.append((self._now() + ANSWER_SECONDS, answer))
        try:
            return await answer
        finally:
            # An error of this future holds the traceback, and so this frame and the future: only the collector would
            # free them.
            del answer

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
        self.attach(connection.stream, connection.reader)
        self._is_refusal_logged = False

    def disconnected(self) -> None:
        """Drop envelopes from now on: there is no connection."""
        self.connection = None
        self.detach()

    def count_answer(self, reply: Any) -> None:
        """Count the answer to an envelope that counts as published."""
        if isinstance(reply, BrokerUncertain):
            self.dropped["unanswered"] += 1
        elif isinstance(reply, BrokerUnavailable):
            self.published -= 1
            self.dropped["disconnected"] += 1
        elif isinstance(reply, BrokerError):
            self.refused(reply)

    def _take_answer(self, answer: asyncio.Future[Any], reply: Any) -> None:
        self.count_answer(reply)
        settle(answer, reply)


def settle(answer: asyncio.Future[Any], reply: Any) -> None:
    """Give a reply to what waits for it. An error is raised there."""
    if answer.done():
        return
    if isinstance(reply, BrokerError):
        # Each caller raises an error of its own.
        answer.set_exception(type(reply)(*reply.args))
    else:
        answer.set_result(reply)
