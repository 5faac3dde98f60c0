"""Traces that a broker may leave behind: tasks, threads, descriptors, timers and references."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable

__all__ = ["Traces"]


class Traces:
    """A list of what exists in the process, to find out later what was added."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._descriptors = descriptors()
        self._timers = set(map(id, timers()))

    def left(self, broker: Callable[[], object]) -> list[str]:
        """Return what there is more than at the beginning, in words."""
        gc.collect()
        found = [f"task {task.get_name()}" for task in asyncio.all_tasks() - self._tasks]
        found += [f"thread {thread.name}" for thread in set(threading.enumerate()) - self._threads]
        found += [f"descriptor {number}: {name}" for number, name in (descriptors() - self._descriptors)]
        found += [f"timer {timer!r}" for timer in timers() if id(timer) not in self._timers]
        if broker() is not None:
            found.append("a reference to the broker")
        return found


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the loop that are not the checks' own. Only asyncio's own loop shows them."""
    scheduled = getattr(asyncio.get_running_loop(), "_scheduled", ())
    # Each sleep of this suite, and each of its limits, is a timer too: it calls a function of asyncio.
    return [
        timer
        for timer in scheduled
        if not timer.cancelled() and "asyncio" not in getattr(timer._callback, "__module__", "")
    ]


def descriptors() -> set[tuple[int, str]]:
    """Return the open descriptors of the process with what each one is, where the system shows them."""
    found = set()
    for directory in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(directory):
            for name in os.listdir(directory):
                try:
                    found.add((int(name), os.readlink(f"{directory}/{name}")))
                except OSError:
                    # The descriptor of the list itself.
                    continue
            break
    return found
