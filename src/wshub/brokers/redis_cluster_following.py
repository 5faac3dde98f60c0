"""Commands about keys of a cluster: sent to the engine that has them, wherever the engines send them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from wshub.brokers.redis_key_commands import LOST_SCRIPT
from wshub.brokers.redis_publishing import ANSWER_SECONDS
from wshub.brokers.redis_session import RedisSession
from wshub.brokers.redis_subscriptions import REDIRECTION
from wshub.errors import BrokerError, BrokerUnavailable

__all__ = ["IS_REDIRECTED", "ClusterRoutes", "Following", "ignore"]

ASK = "ASK "
TRY_AGAIN = "TRYAGAIN"

IS_REDIRECTED = (REDIRECTION, ASK, TRY_AGAIN, LOST_SCRIPT)
"""How the errors begin with which an engine says that it has not carried out a command, which another attempt may be.

While a slot moves, its keys move one by one. The old engine answers ``ASK`` for those that are gone. The new one
carries out a command about them that follows ``ASKING``. With ``TRYAGAIN``, some keys of a command are gone.
"""

ASKING = b"*1\r\n$6\r\nASKING\r\n"

# Seconds until a command is sent again whose keys are about to move, and attempts to send it.
AGAIN_SECONDS = 0.05
MAX_ATTEMPTS = 100


class ClusterRoutes(Protocol):
    """The ways to the engines of a cluster."""

    def owner(self, partition: int) -> RedisSession | None:
        """Return the session at the engine that owns a partition; None if none does."""

    def redirected(self, text: str, partition: int) -> None:
        """Take the error ``MOVED`` of the present owner."""

    def importer(self, text: str, partition: int) -> RedisSession | None:
        """Return a session at the engine that an error ``ASK`` names; None if the error cannot be read."""


class Following:
    """Sends commands, and follows redirections.

    Args:
        routes: to the engines.
        now: returns the time in seconds.
    """

    def __init__(self, routes: ClusterRoutes, now: Callable[[], float]) -> None:
        self.count = 0
        """Redirections that were followed."""
        self._routes = routes
        self._now = now

    async def send(
        self, partition: int, words: Sequence[bytes], *, calls: bool, imported: Callable[[Any], None] | None = None
    ) -> Any:
        """Send a command about keys of a partition. Return the answer; an error is a BrokerError.

        Args:
            partition: of the keys.
            words: parts of the command as an engine reads it.
            calls: whether it calls a script.
            imported: called with an answer that is no error, if an engine has given it that takes the slot over.
        """
        until = self._now() + ANSWER_SECONDS
        importer: RedisSession | None = None
        text = ""
        for _ in range(MAX_ATTEMPTS):
            session = importer or self._routes.owner(partition)
            if session is None or session.connection is None:
                if not text or self._now() >= until:
                    return BrokerUnavailable("there is no connection to the engine")
                # The engine has become the owner just now.
                importer = None
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            reply = await self._send(session, words, asks=importer is not None, calls=calls)
            text = str(reply) if isinstance(reply, BrokerError) else ""
            if not text.startswith(IS_REDIRECTED):
                if imported is not None and importer is not None and not text:
                    imported(reply)
                return reply
            was_asked, importer = importer is not None, self._follow(text, partition, session)
            if importer is None and (was_asked or self._routes.owner(partition) is session):
                await asyncio.sleep(AGAIN_SECONDS)
            if self._now() >= until:
                break
        return BrokerUnavailable(f"the keys are moving to another engine, or the engines do not agree: {text}")

    def _follow(self, text: str, partition: int, session: RedisSession) -> RedisSession | None:
        """Take a redirection. Return the session at the engine that has the keys although it does not own the slot."""
        self.count += 1
        if text.startswith(REDIRECTION):
            self._routes.redirected(text, partition)
        elif text.startswith(LOST_SCRIPT):
            session.calls.forget()
        elif text.startswith(ASK):
            importer = self._routes.importer(text, partition)
            if importer is not None and importer.connection is not None:
                return importer
        return None

    async def _send(self, session: RedisSession, words: Sequence[bytes], *, asks: bool, calls: bool) -> Any:
        connection = session.connection
        assert connection is not None
        if calls:
            session.calls.load()
        if asks:
            connection.request(ASKING, ignore)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def take(reply: Any) -> None:
            if not answer.done():
                answer.set_result(reply)

        connection.request(b"".join(words), take)
        return await answer


def ignore(reply: Any) -> None:
    """Do nothing about an answer."""
