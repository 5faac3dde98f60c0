"""An ASGI application that behaves like a client on a slow network."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SlowLink:
    """Passes on a limited number of bytes per second to the client.

    An ASGI server makes ``send()`` wait while the network takes nothing more, and so does this. The messages that a hub
    sends meanwhile wait in the hub, where ``slow_consumer`` applies to them.

    Args:
        app: an ASGI application, such as ``hub.asgi(handler)``.
        bytes_per_second: what the client gets, without the headers of frames.
    """

    def __init__(self, app: ASGIApp, bytes_per_second: int) -> None:
        self._app = app
        self._bytes_per_second = bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slowly(message: Message) -> None:
            await send(message)
            data: Any = message.get("text") or message.get("bytes") or ""
            await asyncio.sleep(len(data) / self._bytes_per_second)

        # The extensions of the scope would let the hub take the connection from the server, and write to it directly.
        await self._app({**scope, "extensions": {}}, receive, send_slowly)
