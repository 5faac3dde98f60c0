"""A hub that is to serve a request while there may be no descriptors left for its reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wshub.core.admission import RETRY_LATER
from wshub.errors import HandshakeError
from wshub.links.shortage import ShortageLog, is_shortage

if TYPE_CHECKING:
    from wshub.hub import Hub

__all__ = ["bind_for_request"]

NOT_BOUND = ShortageLog("a hub cannot take its first connection (%s): it is refused with 503")


def bind_for_request(hub: Hub) -> None:
    """Bind the hub to the running loop. Raises ``HandshakeError`` (503) if there are no descriptors or no memory.

    Then the hub is as it was, and the next request tries again.
    """
    try:
        hub._bind()
    except (OSError, MemoryError) as error:
        if not is_shortage(error):
            raise
        NOT_BOUND.failed(error)
        raise HandshakeError(503, "The server has no resources left.", RETRY_LATER) from error
    NOT_BOUND.recovered()
