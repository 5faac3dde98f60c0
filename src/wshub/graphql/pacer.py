"""Spreads the starts of GraphQL operations over the iterations of an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Pacer"]

BUDGET = 0.001
"""Seconds of synchronous work after which the next operation waits for another loop iteration."""


class Pacer:
    """Lets operations of all connections start in the order in which they asked, for about 1 ms without a pause.

    Parsing, validating and starting an operation cannot be interrupted. The pacer lets timers and other connections run
    between operations. It belongs to one event loop, since its lock does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = asyncio.Lock()
        self._spent = 0.0

    async def wait(self) -> None:
        """Wait until it is the caller's turn. The caller then works under ``charge``, before it awaits anything else.

        The pause comes before the work. A caller that is cancelled in it has nothing to clean up.
        """
        async with self._lock:
            if self._spent >= BUDGET:
                await asyncio.sleep(0)
                self._spent = 0.0

    @contextmanager
    def charge(self) -> Iterator[None]:
        """Count the time of the block against the budget."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent += time.perf_counter() - started
