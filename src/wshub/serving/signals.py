"""The signals that ask a program to stop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["stop_signals"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """The two futures of one server: one is done after the first signal, the other after the second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first: asyncio.Future[None] = loop.create_future()
        self.second: asyncio.Future[None] = loop.create_future()

    def arrived(self) -> bool:
        """Note a signal. Returns whether it was the second one or a later one."""
        if not self.first.done():
            self.first.set_result(None)
            return False
        if not self.second.done():
            self.second.set_result(None)
        return True


class SignalWatch:
    """Handles the signals of a loop for all servers that wait for them there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[StopSignal] = []
        self._handlers_before: dict[int, Any] = {}

    def add(self, waiting: StopSignal) -> None:
        """Tell one more server of signals. The first one has the handlers installed."""
        self._waiting.append(waiting)
        if not self._handlers_before:
            for number in STOP_SIGNALS:
                self._handlers_before[number] = _install(self._loop, number, self._arrived)

    def remove(self, waiting: StopSignal) -> bool:
        """Tell a server of no more signals. Returns whether it was the last one, and so the handlers are restored."""
        self._waiting.remove(waiting)
        if not self._waiting:
            self._restore()
        return not self._waiting

    def _arrived(self) -> None:
        repeated = [waiting.arrived() for waiting in self._waiting]
        if any(repeated):
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers_before.items():
            with suppress(NotImplementedError):
                # This leaves Python's default for the signal.
                self._loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)
        self._handlers_before.clear()


_watches: dict[asyncio.AbstractEventLoop, SignalWatch] = {}


@contextmanager
def stop_signals() -> Iterator[tuple[asyncio.Future[None], asyncio.Future[None]]]:
    """Two futures: one is done once SIGINT or SIGTERM has arrived, the other once a second one has.

    Several blocks on one loop share the signals: each gets every signal. After the second signal, and at the end of
    the last block, the signals have the handlers of ``signal.signal`` that they had before. A handler of
    ``loop.add_signal_handler`` cannot be read back: Python's default takes its place. Outside the main thread, where
    Python handles no signals, both futures stay as they are.
    """
    loop = asyncio.get_running_loop()
    waiting = StopSignal(loop)
    if threading.current_thread() is not threading.main_thread():
        yield waiting.first, waiting.second
        return
    watch = _watches.setdefault(loop, SignalWatch(loop))
    watch.add(waiting)
    try:
        yield waiting.first, waiting.second
    finally:
        if watch.remove(waiting):
            del _watches[loop]


def _install(loop: asyncio.AbstractEventLoop, number: int, arrived: Callable[[], None]) -> Any:
    """Handle a signal on the loop. Returns the handler to restore, or None for Python's default."""
    before = signal.getsignal(number)
    try:
        loop.add_signal_handler(number, arrived)
    except NotImplementedError:
        # Windows. A handler that Python calls has to wake the loop.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(arrived))
        return signal.SIG_DFL if before is None else before
    # If the loop handled the signal already, this is the loop's own function, which does nothing by itself.
    return None if before == signal.getsignal(number) else before
