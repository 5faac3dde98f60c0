"""How an exception out of the acceptance of a connection is handled."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["accept_failed"]

logger = logging.getLogger("wshub.server")


def accept_failed(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Log the error. KeyboardInterrupt and SystemExit are raised out of the loop instead, once its turn has ended."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        loop.call_soon(_raise, error)
    else:
        logger.error("a new connection cannot be served", exc_info=error)


def _raise(error: BaseException) -> None:
    raise error
