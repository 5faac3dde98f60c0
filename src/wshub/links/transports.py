"""Which transports carry the connections that the native reactor does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["create_server"]


async def create_server(
    loop: asyncio.AbstractEventLoop,
    protocol_factory: Callable[[], Any],
    *address: Any,
    ssl: Any,
    original: Callable[..., Awaitable[Any]] | None = None,
    **options: Any,
) -> Any:
    """What ``loop.create_server`` does; TLS over aiofastnet's transports, where it is installed.

    ``original`` is the method of the loop, where something else has been put in its place.
    """
    if ssl is not None:
        try:
            import aiofastnet
        except ImportError:
            pass
        else:
            return await aiofastnet.create_server(loop, protocol_factory, *address, ssl=ssl, **options)
    return await (original or loop.create_server)(protocol_factory, *address, ssl=ssl, **options)
