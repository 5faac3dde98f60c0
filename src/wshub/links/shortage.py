"""Descriptors or memory that cannot be had: what is logged then."""

from __future__ import annotations

import errno
import logging

__all__ = ["ShortageLog", "is_shortage"]

logger = logging.getLogger("wshub.server")

SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC))


def is_shortage(error: BaseException) -> bool:
    """Whether the error says that there are no descriptors or no memory."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORTAGES)


class ShortageLog:
    """Logs a shortage once, and again only if it has ended in between.

    Args:
        message: the log line; ``%s`` in it is the reason.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._logged = False

    def failed(self, error: BaseException) -> None:
        """Log the shortage, unless it is in the log already."""
        if not self._logged:
            self._logged = True
            logger.error(self._message, getattr(error, "strerror", None) or "out of memory")

    def recovered(self) -> None:
        """Note that the shortage has ended."""
        self._logged = False
