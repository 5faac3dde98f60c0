"""An event loop in a thread of its own, for programs without asyncio and for programs with many short loops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

Result = TypeVar("Result")


class LoopThread:
    """An event loop that runs in a daemon thread until ``stop()``. The thread closes it.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.loop.close()
            raise

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Run a coroutine on the loop, from another thread. To cancel the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        """End the loop and the thread, from another thread. Nothing may run on the loop any more."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, for some seconds at most."""
        self._thread.join(timeout)
