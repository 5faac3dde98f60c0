"""The choice of a reactor: the native one over epoll, or asyncio's transports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from wshub.links.asyncio_reactor import AsyncioReactor
from wshub.links.link import LinkCounters
from wshub.links.reactor_api import Reactor

try:
    from wshub.links.epoll_reactor import EpollReactor
except ModuleNotFoundError:
    # The package was built where there is no epoll.
    EpollReactor = None  # type: ignore[assignment,misc]

__all__ = ["create_reactor", "has_native_reactor"]


def has_native_reactor() -> bool:
    """Return whether it was built, and ``WSHUB_USE_REACTOR=0`` does not forbid it in this process."""
    return EpollReactor is not None and os.environ.get("WSHUB_USE_REACTOR", "1") != "0"


def create_reactor(
    loop: asyncio.AbstractEventLoop, counters: LinkCounters, *, native: bool, clock: Callable[[], float]
) -> Reactor:
    """Create a reactor whose links count in the counters: the native one if it is wanted and was built."""
    if native and has_native_reactor():
        return EpollReactor(loop, counters, clock)
    return AsyncioReactor(loop, counters)
