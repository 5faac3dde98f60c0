"""Keeps both connections of a node at the engine that Sentinels call the primary."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from wshub.brokers.redis_reconnecting import KeptConnection
from wshub.brokers.redis_url import RedisAddress
from wshub.errors import ConfigurationError

__all__ = ["FAILOVER", "PrimaryFollower"]

logger = logging.getLogger("wshub.broker")

# Seconds between two questions to the Sentinels, at most: nodes that were started together must not ask together.
INTERVAL = 4.0

# Why a connection to an old primary is replaced.
FAILOVER = "the Sentinels name another primary"


class PrimaryFollower:
    """Leaves an engine that is not the primary any more.

    An old primary may go on to accept connections, to answer and to pass messages on, for example if only the Sentinels
    have lost it. So the Sentinels are asked every few seconds. Envelopes that the old primary has taken since the last
    answers count as lost: other nodes may have left it before.

    Args:
        find: returns the address of the primary.
        subscriber, publisher: the connections.
        taken: returns the number of envelopes that engines have taken.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[RedisAddress]],
        subscriber: KeptConnection,
        publisher: KeptConnection,
        taken: Callable[[], int],
    ) -> None:
        self.lost = 0
        """Envelopes that an old primary has taken, and that may not have reached all nodes."""
        self._find = find
        self._subscriber = subscriber
        self._publisher = publisher
        self._taken = taken
        self._next_at = 0.0
        self._task: asyncio.Task[None] | None = None
        # Where the publisher leads, and the envelopes that were taken before the last two questions that confirmed it.
        # Sentinels do not all learn of a failover at once, so the last question alone proves too little.
        self._address: RedisAddress | None = None
        self._confirmed = self._asked = 0

    def publisher_opened(self) -> None:
        """Count what may be lost, if the publisher leads to another engine than before."""
        taken = self._taken()
        if self._address not in (None, self._publisher.address):
            self.lost += taken - self._confirmed
        if self._address != self._publisher.address:
            self._address = self._publisher.address
            self._confirmed = self._asked = taken
        self._join(self._publisher, self._subscriber)

    def subscriber_opened(self) -> None:
        """Have the publisher lead to the same engine."""
        self._join(self._subscriber, self._publisher)

    def _join(self, opened: KeptConnection, other: KeptConnection) -> None:
        """Replace the older connection, if the newer one leads elsewhere: it has asked the Sentinels later."""
        if other.connection is not None and other.address != opened.address:
            other.replace(FAILOVER)

    def sweep(self, now: float) -> None:
        """Ask the Sentinels, if it is time."""
        if now >= self._next_at and self._task is None:
            self._next_at = now + INTERVAL * random.uniform(0.7, 1)
            self._task = asyncio.get_running_loop().create_task(self._ask())

    async def close(self) -> None:
        """Ask no more."""
        self._next_at = float("inf")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _ask(self) -> None:
        try:
            asked, taken = self._publisher.address, self._taken()
            primary = await self._find()
        except (OSError, ConfigurationError) as error:
            # While no Sentinel answers, the connections stay where they are.
            logger.debug("no Sentinel has named the primary: %s", error)
            return
        finally:
            self._task = None
        if primary == asked == self._publisher.address:
            self._confirmed, self._asked = self._asked, taken
        for kept in (self._publisher, self._subscriber):
            if kept.connection is not None and kept.address != primary:
                kept.replace(FAILOVER)
