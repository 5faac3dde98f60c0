"""The process that has started this worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal

__all__ = ["end_with_parent"]

logger = logging.getLogger("wshub.server")


def end_with_parent(loop: asyncio.AbstractEventLoop) -> None:
    """Have this worker end as at SIGTERM when its parent process has died, such as by SIGKILL.

    Otherwise it would keep the port, and nothing would replace or stop it. Without a parent of ``multiprocessing``, or
    on a loop that cannot wait for one, nothing is done.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def parent_died() -> None:
        loop.remove_reader(sentinel)
        logger.error("the process that has started this worker has died: the worker ends")
        signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(NotImplementedError):
        loop.add_reader(sentinel, parent_died)
