"""Which reactor a hub has: the native one over epoll, or asyncio's transports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from wshub.links.asyncio_reactor import AsyncioReactor
from wshub.links.link import Ledger

try:
    from wshub.links.epoll_reactor import Reactor
except ImportError:
    # The package was built where there is no epoll.
    Reactor = None  # type: ignore[assignment,misc]

__all__ = ["create_reactor", "has_native_reactor"]


def has_native_reactor() -> bool:
    """Whether there is one, and ``WSHUB_USE_REACTOR=0`` does not forbid it in this process."""
    return Reactor is not None and os.environ.get("WSHUB_USE_REACTOR", "1") != "0"


def create_reactor(
    loop: asyncio.AbstractEventLoop, ledger: Ledger, *, native: bool, clock: Callable[[], float]
) -> Reactor | AsyncioReactor:
    """A reactor that counts in the ledger; the native one, if it is wanted and there is one."""
    if native and has_native_reactor():
        return Reactor(loop, ledger, clock)
    return AsyncioReactor(loop, ledger)
