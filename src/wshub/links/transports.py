"""Which transports carry the connections that the native reactor does not."""

from __future__ import annotations

import asyncio
import logging
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
            logging.getLogger("asyncio").addFilter(_has_no_class_for_an_error)
            return await aiofastnet.create_server(loop, protocol_factory, *address, ssl=ssl, **options)
    return await (original or loop.create_server)(protocol_factory, *address, ssl=ssl, **options)


def _has_no_class_for_an_error(record: logging.LogRecord) -> bool:
    """Leave out of the log what logging cannot format.

    Of a client that leaves during the handshake of TLS, aiofastnet tells with a class where an exception should be.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], type)
