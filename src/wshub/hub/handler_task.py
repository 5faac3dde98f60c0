"""The tasks of coroutine handlers, which start eagerly.

A coroutine handler runs in an asyncio task of its own, as if ``asyncio.eager_task_factory`` had made it. The first step
runs before the hub goes on. A handler that does not suspend costs no iteration of the loop.

Python 3.12 has such tasks. On Python 3.11 the loop's ``call_soon`` is replaced while the task is made. The task
schedules its first step there, and the step runs in place.

A task factory of the loop is respected. The tasks that it makes start when it says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

__all__ = ["start_handler_task"]

NAME = "wshub handler"


def start_handler_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], context: Context
) -> asyncio.Task[Any]:
    """Start a task for the coroutine; no other task may be running, and the context may not be entered.

    The task is done when this returns if the coroutine has not suspended. The task keeps an exception of the coroutine;
    ``KeyboardInterrupt`` and ``SystemExit`` are raised here as well.
    """
    if loop.get_task_factory() is not None:
        return loop.create_task(coroutine, name=NAME, context=context)
    # The task is at hand also if its first step raises: then its exception counts as seen.
    task: asyncio.Task[Any] = asyncio.Task.__new__(asyncio.Task)
    try:
        _start(task, loop, coroutine, context)
    except (KeyboardInterrupt, SystemExit):
        if task.done():
            task.exception()
        raise
    return task


if sys.version_info >= (3, 12):

    def _start(
        task: asyncio.Task[Any],
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        context: Context,
    ) -> None:
        task.__init__(coroutine, loop=loop, name=NAME, context=context, eager_start=True)  # type: ignore[misc]

else:

    def _start(
        task: asyncio.Task[Any],
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        context: Context,
    ) -> None:
        steps: list[Callable[[], None]] = []
        schedule = loop.call_soon
        # Without it, as in a loop of slots, the first step waits for the next iteration.
        attributes = getattr(loop, "__dict__", {})
        replaced = attributes.get("call_soon")

        def call_soon(callback: Any, *arguments: Any, context: Context | None = None) -> Any:
            if getattr(callback, "__self__", None) is task:
                steps.append(callback)
                return None
            # A finalizer that the garbage collector runs may have something to schedule too.
            return schedule(callback, *arguments, context=context)

        attributes["call_soon"] = call_soon
        try:
            task.__init__(coroutine, loop=loop, name=NAME, context=context)  # type: ignore[misc]
        finally:
            if replaced is None:
                del attributes["call_soon"]
            else:
                attributes["call_soon"] = replaced
        for step in steps:
            context.run(step)
