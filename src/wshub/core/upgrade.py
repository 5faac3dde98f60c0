"""The WebSocket request that is being handled, for ``hub.register()`` to take."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.event_handler import EventHandler
    from wshub.core.lifecycle import HubLifecycle

__all__ = ["Upgrade", "current_upgrade"]


class Upgrade(Protocol):
    """A request that can become a connection of a hub, once."""

    def register(self, hub: HubLifecycle, handler: EventHandler | Callable[[Connection], Any], /) -> Connection:
        """Take the request. Raises ``HandshakeError`` or ``MisuseError`` if that cannot be."""


current_upgrade: ContextVar[Upgrade | None] = ContextVar("wshub.current_upgrade", default=None)
