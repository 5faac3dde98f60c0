"""The access log: a line when a handshake is answered, and one when its connection ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping

__all__ = ["log_answer", "log_end"]

logger = logging.getLogger("wshub.access")


def log_answer(fields: Mapping[str, object]) -> None:
    """Log the status of a handshake."""
    logger.info('%(remote_address)s - "WebSocket %(path)s" %(status)d', fields, extra=fields)


def log_end(fields: Mapping[str, object]) -> None:
    """Log the end of a connection."""
    logger.info(
        '%(remote_address)s - "WebSocket %(path)s" closed %(close_code)d, %(duration_ms)d ms, '
        "%(bytes_received)d bytes received, %(bytes_sent)d sent",
        fields,
        extra=fields,
    )
