"""How an exception out of the acceptance of a connection is handled."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["accept_failed", "raise_from_loop"]

logger = logging.getLogger("wshub.server")


def accept_failed(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Log the error. KeyboardInterrupt and SystemExit are raised out of the loop instead, once its turn has ended."""
    if not raise_from_loop(loop, error):
        logger.error("a new connection cannot be served", exc_info=error)


def raise_from_loop(loop: asyncio.AbstractEventLoop, error: BaseException | None) -> bool:
    """Have the loop raise KeyboardInterrupt or SystemExit in its next iteration. Return False for any other error."""
    if not isinstance(error, (KeyboardInterrupt, SystemExit)):
        return False
    loop.call_soon(_raise, error)
    return True


def _raise(error: BaseException) -> None:
    raise error
