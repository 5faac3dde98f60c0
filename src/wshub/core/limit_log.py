"""Warns once of each limit of a hub that is reached."""

from __future__ import annotations

import logging
from typing import Any

from wshub.core.config import HubConfig

__all__ = ["LimitLog"]

logger = logging.getLogger("wshub.server")

_TEXTS = {
    "max_connections": "there are max_connections (%d): further handshakes get 503",
    "max_connections_per_address": "an address has max_connections_per_address (%d): its further handshakes get 429",
    "max_connection_rate": "there are more than max_connection_rate (%d) handshakes per second: some get 503",
    "max_connection_rate_per_address": (
        "an address begins more than max_connection_rate_per_address (%d) handshakes per second: some are refused"
    ),
    "max_pending_handshakes": "max_pending_handshakes (%d) requests are not complete: the oldest are dropped",
    "max_send_buffer": (
        "a client is not reading: %d bytes are queued (max_send_buffer); applying the slow_consumer policy"
    ),
    "max_message_size": "a client has sent more than max_message_size (%d bytes): its connection is closed with 1009",
    "max_fragments": (
        "a client has sent a message in more than max_fragments (%d) fragments or compressed blocks: its connection is "
        "closed with 1008"
    ),
}


class LimitLog:
    """Warns of each limit of a hub at most once."""

    def __init__(self, config: HubConfig) -> None:
        self._config = config
        self._reached: set[str] = set()

    def reached(self, limit: str) -> None:
        """Warn that a limit, a field of ``HubConfig``, was reached, unless that has happened before."""
        if limit not in self._reached:
            self.warn(limit, _TEXTS[limit], getattr(self._config, limit))

    def warn(self, limit: str, text: str, *arguments: Any) -> None:
        """Warn with another text, unless that has happened before for the limit."""
        if limit not in self._reached:
            self._reached.add(limit)
            fields = {"event": "limit", "limit": limit}
            logger.warning("%s; this is logged once, and stats() counts", text % arguments, extra=fields)
