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


@contextmanager
def stop_signals() -> Iterator[tuple[asyncio.Future[None], asyncio.Future[None]]]:
    """Two futures: one is done once SIGINT or SIGTERM has arrived, the other once a second one has.

    After the second signal, and at the end of the block, the signals have the handlers that they had before. Outside
    the main thread, where Python handles no signals, both futures stay as they are.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()
    second: asyncio.Future[None] = loop.create_future()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        before.clear()

    def stop() -> None:
        if not first.done():
            first.set_result(None)
        elif not second.done():
            second.set_result(None)
            restore()

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            before[number] = signal.getsignal(number)
            _handle(loop, number, stop)
    try:
        yield first, second
    finally:
        restore()


def _handle(loop: asyncio.AbstractEventLoop, number: int, stop: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, stop)
    except NotImplementedError:
        # Windows. A handler that Python calls has to wake the loop.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
