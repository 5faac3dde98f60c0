"""Waits until every peer has handled what was queued for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wshub.errors import BrokerUnavailable

__all__ = ["Barriers"]


class Barriers:
    """The waits of one session. Each sends a PING to every peer, whose PONG comes after all records before it.

    All callers of one iteration of the loop share a wait.

    Args:
        loop: the event loop of the session.
        send: sends a PING to each peer. Returns its number, and the ids of the nodes that are to answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[], tuple[int, set[str]]]) -> None:
        self._loop = loop
        self._send = send
        self._next: asyncio.Future[None] | None = None
        # By number, in order.
        self._waiting: dict[int, tuple[set[str], asyncio.Future[None]]] = {}
        self._closed = False

    async def wait(self) -> None:
        """Return when every peer has handled what is queued for it now, or is gone.

        Raises:
            BrokerUnavailable: the session was closed.
        """
        if self._closed:
            raise BrokerUnavailable("the broker is closed")
        if self._next is None:
            self._next = self._loop.create_future()
            self._loop.call_soon(self._begin)
        # One caller that is cancelled must not cancel the wait of the others.
        await asyncio.shield(self._next)

    @property
    def awaited(self) -> set[str]:
        """The ids of the nodes that a wait is for."""
        return {node_id for awaited, _ in self._waiting.values() for node_id in awaited}

    def number_for(self, node_id: str) -> int:
        """Return the number of the PING that a node should get which has only now said HELLO; 0 if none."""
        return max((number for number, (awaited, _) in self._waiting.items() if node_id in awaited), default=0)

    def answered(self, node_id: str, number: int) -> None:
        """Note the PONG of a node. It answers every PING up to that number."""
        for waiting in [waiting for waiting in self._waiting if waiting <= number]:
            self._discard(waiting, node_id)

    def gone(self, node_id: str) -> None:
        """Wait for this node no more."""
        for waiting in tuple(self._waiting):
            self._discard(waiting, node_id)

    def close(self) -> None:
        """Have all waits fail."""
        self._closed = True
        futures = [future for _, future in self._waiting.values()]
        if self._next is not None:
            futures.append(self._next)
        self._waiting.clear()
        self._next = None
        for future in futures:
            future.set_exception(BrokerUnavailable("the broker was closed"))
            # Its callers may have been cancelled: then nothing else retrieves the exception.
            future.exception()

    def _begin(self) -> None:
        future, self._next = self._next, None
        if future is None:
            return
        number, awaited = self._send()
        if awaited:
            self._waiting[number] = (awaited, future)
        else:
            future.set_result(None)

    def _discard(self, number: int, node_id: str) -> None:
        awaited, future = self._waiting[number]
        awaited.discard(node_id)
        if not awaited:
            del self._waiting[number]
            future.set_result(None)
