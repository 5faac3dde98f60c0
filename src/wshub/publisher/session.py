"""A broker in use by a program without a hub, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from wshub.brokers.interface import Broker, NodeInfo
from wshub.errors import BrokerError, BrokerUnavailable, ConfigurationError, MisuseError
from wshub.links.link import LinkCounters
from wshub.links.reactors import create_reactor

if TYPE_CHECKING:
    from wshub.links.reactor_api import Reactor

__all__ = ["BrokerSession", "SessionEvents"]

logger = logging.getLogger("wshub.broker")

SWEEP_PERIOD = 1.0
"""Seconds between two sweeps of the broker."""

START_TIMEOUT = 10.0
"""Seconds that the first connection may take."""


class SessionEvents:
    """The ``BrokerEvents`` of a program that wants no messages. A subclass may take them.

    Args:
        loop: of the broker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reactor: Reactor = create_reactor(loop, LinkCounters(), native=True, clock=time.monotonic)

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def receive(self, envelope: bytes) -> None:
        """Take an envelope that has arrived."""

    def interrupted(self, channels: Collection[str] | None, reason: str) -> None:
        """Note that envelopes may have been lost."""

    def restored(self, channels: Collection[str] | None) -> None:
        """Note that envelopes arrive again."""

    def swept(self, now: float) -> None:
        """Do what is due, after each sweep of the broker."""


class BrokerSession:
    """A broker from its start to its end. It starts at once.

    Args:
        broker: that is not started.
        node: this program.
        events: what the broker is given.
        loop: the running loop.
    """

    def __init__(self, broker: Broker, node: NodeInfo, events: SessionEvents, loop: asyncio.AbstractEventLoop) -> None:
        self.broker = broker
        self.node = node
        self.loop = loop
        self.events = events
        self._started: asyncio.Future[None] = loop.create_future()
        self._starting = loop.create_task(self._start())
        self._sweeping = loop.create_task(self._sweep())
        self._closing: asyncio.Task[None] | None = None

    @property
    def has_started(self) -> bool:
        """Whether the broker has started."""
        return self._started.done() and self._started.exception() is None

    @property
    def has_failed(self) -> bool:
        """Whether the broker has not started, and is not going to."""
        return self._started.done() and self._started.exception() is not None

    async def wait_started(self, timeout: float | None = None) -> None:
        """Return when the broker has started.

        Args:
            timeout: seconds; None stands for ten.

        Raises:
            BrokerUnavailable: it takes too long, it has failed, or ``close()`` was called.
            ConfigurationError: it cannot work.
        """
        timeout = START_TIMEOUT if timeout is None else timeout
        # An error of asyncio.timeout() would be in a cycle, which only the collector frees.
        if not self._started.done():
            await asyncio.wait([self._started], timeout=timeout)
        if not self._started.done():
            raise BrokerUnavailable(f"the broker was not reached within {timeout:.0f} seconds")
        self._started.result()

    async def close(self) -> None:
        """Close the broker. If the call is cancelled, it is closed all the same."""
        if self.loop.is_closed():
            self.abandon()
            await self.broker.close()
            return
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
        await asyncio.shield(self._closing)

    def abandon(self) -> None:
        """End the connections of a session whose loop was closed without ``close()``. The broker may start again."""
        self.events.reactor.close()

    async def _start(self) -> None:
        try:
            await self.broker.start(self.node, self.events)
        except (BrokerError, ConfigurationError, MisuseError) as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the broker has failed to start")
            self._fail(BrokerUnavailable(f"the broker has failed to start: {error}"))
        except BaseException:
            self._fail(BrokerUnavailable("the broker was closed before it had started"))
            raise
        else:
            if not self._started.done():
                self._started.set_result(None)
            return
        # The next message starts anew, with another session.
        self._closing = self.loop.create_task(self._close())

    def _fail(self, error: Exception) -> None:
        if not self._started.done():
            self._started.set_exception(error)
            # Nobody may be waiting.
            self._started.exception()

    async def _sweep(self) -> None:
        is_logged = False
        while True:
            try:
                now = self.events.now()
                self.broker.sweep(now)
                self.events.reactor.resume_accepting()
                self.events.swept(now)
            except Exception:
                if not is_logged:
                    is_logged = True
                    logger.exception("the sweep of the broker has failed, and goes on")
            await asyncio.sleep(SWEEP_PERIOD)

    async def _close(self) -> None:
        self._fail(BrokerUnavailable("the broker was closed before it had started"))
        tasks = [self._starting, self._sweeping]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            await self.broker.close()
        except Exception:
            logger.exception("the broker could not be closed")
        finally:
            self.events.reactor.release()
