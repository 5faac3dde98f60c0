"""Asyncio tasks whose first step runs at once.

Python 3.12 has such tasks. On Python 3.11 the loop's ``call_soon`` is replaced while the task is made. The task
schedules its first step there, and the step runs in place.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.tasks import _enter_task as enter_task
from asyncio.tasks import _leave_task as leave_task
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

__all__ = ["start_eager_task"]


def start_eager_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], context: Context, name: str
) -> asyncio.Task[Any]:
    """Start a task for the coroutine, from the loop or from another task. The context may not be entered.

    The task is done when this returns if the coroutine has not suspended. The task keeps an exception of the coroutine;
    ``KeyboardInterrupt`` and ``SystemExit`` are raised here as well.
    """
    # The task is at hand also if its first step raises: then its exception counts as seen.
    task: asyncio.Task[Any] = asyncio.Task.__new__(asyncio.Task)
    try:
        if sys.version_info >= (3, 12):
            task.__init__(coroutine, loop=loop, name=name, context=context, eager_start=True)  # type: ignore[misc]
        else:
            _start_in_place(task, loop, coroutine, context, name)
    except (KeyboardInterrupt, SystemExit):
        if task.done():
            task.exception()
        raise
    return task


def _start_in_place(
    task: asyncio.Task[Any],
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    context: Context,
    name: str,
) -> None:
    steps: list[Callable[[], None]] = []
    schedule = loop.call_soon

    def call_soon(callback: Any, *arguments: Any, context: Context | None = None) -> Any:
        if getattr(callback, "__self__", None) is task:
            steps.append(callback)
            return None
        # A finalizer that the garbage collector runs may have something to schedule too.
        return schedule(callback, *arguments, context=context)

    is_its_own = schedule == type(loop).call_soon.__get__(loop)
    try:
        # Not through the loop's __dict__: once that has been looked at, Python finds every attribute of the loop later.
        loop.call_soon = call_soon  # type: ignore[assignment, method-assign]
    except AttributeError:
        # In a loop of slots the first step waits for the next iteration.
        task.__init__(coroutine, loop=loop, name=name, context=context)  # type: ignore[misc]
        return
    try:
        task.__init__(coroutine, loop=loop, name=name, context=context)  # type: ignore[misc]
    finally:
        if loop.call_soon is call_soon:
            if is_its_own:
                del loop.call_soon
            else:
                loop.call_soon = schedule  # type: ignore[method-assign]
    if steps:
        _run_step(loop, steps[0], context)


def _run_step(loop: asyncio.AbstractEventLoop, step: Callable[[], None], context: Context) -> None:
    running = asyncio.current_task(loop)
    if running is None:
        context.run(step)
        return
    leave_task(loop, running)
    try:
        context.run(step)
    finally:
        enter_task(loop, running)
