"""Middleware between an ASGI server and an application."""

from __future__ import annotations

from typing import Any


class RebuildsAccept:
    """Replaces each accept message by one with its own header field, and with its own subprotocol if it has one."""

    def __init__(self, app: Any, subprotocol: str | None = None) -> None:
        self.app = app
        self.subprotocol = subprotocol

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def rebuild(message: Any) -> None:
            if message["type"] == "websocket.accept":
                headers = [*message.get("headers", ()), (b"x-request-id", b"1")]
                subprotocol = self.subprotocol or message.get("subprotocol")
                message = {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}
            await send(message)

        await self.app(scope, receive, rebuild)
