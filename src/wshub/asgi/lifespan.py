"""Has a hub join other nodes when its application starts, and close when it ends, on any ASGI server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from wshub.asgi.scope import Send
from wshub.errors import MisuseError

if TYPE_CHECKING:
    from wshub.core.lifecycle import HubLifecycle

__all__ = ["close_joined", "join_nodes", "send_around_life"]

logger = logging.getLogger("wshub.broker")


async def join_nodes(hub: HubLifecycle) -> bool:
    """Have a hub with a broker join other nodes. Return False without a broker, or if the hub cannot be used now."""
    if hub.broker is None:
        return False
    try:
        await hub.join_nodes()
    except MisuseError:
        # It is in use on another event loop.
        return False
    except Exception as error:
        # An application goes on without it. Its use of the hub raises the error again.
        logger.warning("the hub %r does not join other nodes before its first use: %s", hub.name, error)
        return False
    return True


async def close_joined(hub: HubLifecycle) -> None:
    """Close a hub that has joined, unless the application has moved it to another event loop since."""
    with contextlib.suppress(MisuseError):
        await hub.close()


def send_around_life(find_hub: Callable[[], HubLifecycle | None], send: Send) -> Send:
    """Return the ``send`` for the lifespan of an application that has a hub, or may get one while it starts.

    The hub joins when the application has started, and closes when it has ended.
    """

    joined: HubLifecycle | None = None

    async def send_around(message: MutableMapping[str, Any]) -> None:
        nonlocal joined
        kind = message["type"]
        hub = find_hub()
        if kind == "lifespan.startup.complete" and hub is not None and await join_nodes(hub):
            joined = hub
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed") and joined is not None:
            await close_joined(joined)
        await send(message)

    return send_around
