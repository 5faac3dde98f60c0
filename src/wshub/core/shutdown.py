"""The orderly end of connections: of all of a hub, or of those that came through one server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wshub.core.handler_table import HandlerTable
    from wshub.core.hub_core import HubCore

__all__ = ["Shutdown", "WaitingHandlers"]

CLOSE_STEP = 0.02
"""Seconds between two steps of closes that are spread over a time."""


class WaitingHandlers:
    """The connections whose handlers wait for the hub, or a server of it, to close.

    No shutdown waits for these handlers, nor cancels them: each would wait for the other.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._joined: list[asyncio.Future[None]] = []

    @contextmanager
    def joined_by(self, connection_id: int | None) -> Iterator[None]:
        """Have a connection among them during the block; nothing for None."""
        if connection_id is None:
            yield
            return
        self._ids.append(connection_id)
        for future in self._joined:
            if not future.done():
                future.set_result(None)
        try:
            yield
        finally:
            self._ids.remove(connection_id)

    @contextmanager
    def next_one(self) -> Iterator[asyncio.Future[None]]:
        """Return a future that is done when one more connection is among them."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joined.append(future)
        try:
            yield future
        finally:
            self._joined.remove(future)

    def __contains__(self, connection_id: object) -> bool:
        return connection_id in self._ids


class Shutdown:
    """Closes connections, and waits until they are gone and their handlers have ended.

    Args:
        hub: that the connections belong to.
        waiting: the handlers that are neither waited for nor cancelled.
        handlers: only the connections with these handlers end, which are those of one server; None means all.
    """

    def __init__(self, hub: HubCore, waiting: WaitingHandlers, handlers: HandlerTable | None = None) -> None:
        self._hub = hub
        self._waiting = waiting
        self._handlers = handlers

    async def run(self, payload: bytes) -> None:
        """Close with the payload of a close frame. Abort connections and cancel handlers that take too long."""
        timeout = self._hub.config.close_timeout_ms / 1000
        await self._spread_closes(payload)
        self._hub._close_all(payload, self._handlers)
        await self._all_gone(timeout)
        self._hub._abort_all(self._handlers)
        await self._all_gone(timeout)
        if not await self._handlers_end(timeout):
            self._cancel_handlers()
            await self._handlers_end(timeout)

    def hurry(self) -> None:
        """Abort what is left of the connections, and cancel the handlers."""
        self._hub._abort_all(self._handlers)
        self._cancel_handlers()

    async def _spread_closes(self, payload: bytes) -> None:
        """Close one connection after the other, evenly over the configured time."""
        spread = self._hub.config.shutdown_spread_ms / 1000
        steps = min(round(spread / CLOSE_STEP), len(self._hub._connections_of(self._handlers)))
        for left in range(steps, 0, -1):
            if not self._hub._connections_of(self._handlers):
                return
            self._hub._close_share(left, payload, self._handlers)
            await asyncio.sleep(spread / steps)

    async def _all_gone(self, timeout: float) -> None:
        """Wait until none of the connections is left, for ``timeout`` seconds at most."""
        if self._handlers is None:
            await asyncio.wait([self._hub._when_empty()], timeout=timeout)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for connection in self._hub._connections_of(self._handlers):
                    await connection.wait_closed()

    def _cancel_handlers(self) -> None:
        for task in self._tasks():
            task.cancel()

    def _tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks of the suspended handlers that have to end."""
        return [
            task for task, connection_id in self._hub._tasks_of(self._handlers) if connection_id not in self._waiting
        ]

    async def _handlers_end(self, timeout: float) -> bool:
        """Wait until no handler is suspended, except those that wait for the close; False if time runs out."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while tasks := self._tasks():
                    ended = loop.create_task(_all_end(tasks))
                    with self._waiting.next_one() as joined:
                        try:
                            await asyncio.wait((ended, joined), return_when=asyncio.FIRST_COMPLETED)
                        finally:
                            ended.cancel()
                return True
        return False


async def _all_end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
