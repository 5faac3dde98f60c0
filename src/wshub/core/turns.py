"""Turns: work that comes in pieces has the loop to itself only for a few of them at a time."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Turns"]


class Turns:
    """Lets some of the tasks that wait go on in each iteration of the loop, the longest waiting first.

    Args:
        loop: the event loop.
        per_iteration: tasks that go on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, per_iteration: int) -> None:
        self._loop = loop
        self._per_iteration = per_iteration
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Return when it is the caller's turn. The turn ends with the caller's next ``await``."""
        turn = self._loop.create_future()
        if not self._waiting:
            self._loop.call_soon(self._give)
        self._waiting.append(turn)
        await turn

    def _give(self) -> None:
        given = 0
        while self._waiting and given < self._per_iteration:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                given += 1
        if self._waiting:
            self._loop.call_soon(self._give)
