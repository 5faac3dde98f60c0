"""Which transports carry the connections that the native reactor does not."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["create_server"]


async def create_server(loop: asyncio.AbstractEventLoop, protocol_factory: Any, *, ssl: Any, **options: Any) -> Any:
    """What ``loop.create_server`` does; TLS over aiofastnet's transports, where it is installed."""
    if ssl is not None:
        try:
            import aiofastnet
        except ImportError:
            pass
        else:
            return await aiofastnet.create_server(loop, protocol_factory, ssl=ssl, **options)
    return await loop.create_server(protocol_factory, ssl=ssl, **options)
