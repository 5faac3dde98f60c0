"""The tasks of coroutine handlers, which start eagerly.

A coroutine handler runs in an asyncio task of its own, as if ``asyncio.eager_task_factory`` had made it. The first step
runs before the hub goes on. A handler that does not suspend costs no iteration of the loop.

A task factory of the loop is respected. The tasks that it makes start when it says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from wshub.links.eager_task import start_eager_task

__all__ = ["start_handler_task"]

NAME = "wshub handler"


def start_handler_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], context: Context
) -> asyncio.Task[Any]:
    """Start a task for the coroutine of a handler; see ``start_eager_task``."""
    if loop.get_task_factory() is not None:
        return loop.create_task(coroutine, name=NAME, context=context)
    return start_eager_task(loop, coroutine, context, NAME)
