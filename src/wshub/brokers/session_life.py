"""The beginning and the end of a session of a broker."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from wshub.errors import BrokerUnavailable, ConfigurationError

__all__ = ["SessionLife"]


class SessionLife(ABC):
    """A session that starts once and closes once. Make it on the running loop.

    A subclass sets the result of ``_started``, or calls ``_fail()``.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_closed = False
        self._closed = asyncio.Event()
        self._started: asyncio.Future[None] = self.loop.create_future()

    async def start(self) -> None:
        """Return when the node's own channels are subscribed to and messages can be published.

        Raises:
            ConfigurationError: what was configured cannot work.
            BrokerUnavailable: ``close()`` was called.
        """
        try:
            await self._started
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Receive nothing more, send what waits, for a second at most, and end the connections."""
        if self.is_closed:
            await self._closed.wait()
            return
        self.is_closed = True
        self._fail(BrokerUnavailable("the broker was closed"))
        try:
            await self._end()
        finally:
            self._closed.set()

    @abstractmethod
    async def _end(self) -> None:
        """Do what ``close()`` says. It is called once."""

    def _fail(self, error: BrokerUnavailable | ConfigurationError) -> None:
        """Have ``start()`` raise an error, unless it has returned."""
        if not self._started.done():
            self._started.set_exception(error)
            # start() may have been cancelled: then nobody else asks for the error.
            self._started.exception()
