"""Coroutine handlers: the first step at once, a task only for those that suspend."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

__all__ = ["SpareTask"]


class SpareTask:
    """A task that waits to be given a coroutine which has been started already and has suspended.

    The first step of a coroutine handler is made in place, with ``task`` as the current task, so that all that
    asyncio offers works in it. Most handlers end with that step, and the task stays spare. One that suspends is
    handed over with what it waits for, and goes on in ``task`` as if it had been started there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._gate: asyncio.Future[None] = loop.create_future()
        self._started: _Started | None = None
        self.task: asyncio.Task[Any] = loop.create_task(self._run(), name="wshub handler")

    def hand_over(self, coroutine: Coroutine[Any, Any, Any], awaited: Any, context: Context) -> None:
        """Let the task go on with ``coroutine``, which waits for ``awaited`` and runs in ``context``."""
        self._started = _Started(coroutine, awaited, context)
        if not self._gate.done():
            self._gate.set_result(None)

    async def _run(self) -> Any:
        try:
            await self._gate
        except asyncio.CancelledError as cancelled:
            if self._started is None:
                raise
            self._started.error = cancelled
        started = self._started
        assert started is not None
        # What a handler raises refers to this frame: it must not lead back to the task, which keeps the exception.
        del self
        return await started


class _Started:
    """Awaits the rest of a coroutine whose first step was made elsewhere."""

    __slots__ = ("awaited", "context", "coroutine", "error")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], awaited: Any, context: Context) -> None:
        self.coroutine = coroutine
        self.awaited = awaited
        self.context = context
        self.error: BaseException | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        try:
            while True:
                error = self.error
                if error is None:
                    try:
                        yield self.awaited
                    except GeneratorExit:
                        self.coroutine.close()
                        raise
                    except BaseException as thrown:
                        error = thrown
                self.error = None
                try:
                    if error is None:
                        self.awaited = self.context.run(self.coroutine.send, None)
                    else:
                        self.awaited = self.context.run(self.coroutine.throw, error)
                except StopIteration as stop:
                    return stop.value
        finally:
            # Its traceback refers to this frame: all of the connection would wait for the garbage collector.
            error = None
