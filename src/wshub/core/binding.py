"""Binds a hub to the running loop for a request, while no descriptors may be left for the hub's reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wshub.core.refusals import OUT_OF_RESOURCES
from wshub.errors import HandshakeError
from wshub.links.shortage import ShortageLog, is_shortage

if TYPE_CHECKING:
    from wshub.core.hub_core import HubCore

__all__ = ["bind_for_request"]

NOT_BOUND = ShortageLog("a hub cannot take its first connection (%s): it is refused with 503")


def bind_for_request(hub: HubCore) -> None:
    """Bind the hub to the running loop. Raises ``HandshakeError`` (503) if there are no descriptors or no memory.

    Then the hub is as it was, and the next request tries again.
    """
    try:
        hub.bind()
    except (OSError, MemoryError) as error:
        if not is_shortage(error):
            raise
        NOT_BOUND.failed(error)
        raise HandshakeError(*OUT_OF_RESOURCES) from error
    NOT_BOUND.recovered()
