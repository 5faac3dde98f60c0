"""The ASGI application of a hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wshub.asgi.handshake import accept_or_refuse, check_not_accepted, expect_connect, refuse_with, wait_until_released
from wshub.asgi.lifespan import join_nodes
from wshub.asgi.native import NativeRoute
from wshub.asgi.scope import Receive, Scope, ScopePeer, Send, request_of
from wshub.core.event_handler import handler_table_of
from wshub.core.refusals import NOT_A_HANDSHAKE, count_refusal
from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.validation import check_strings

if TYPE_CHECKING:
    from wshub.core.lifecycle import HubLifecycle

__all__ = ["HubApplication"]


class HubApplication:
    """The ASGI application that ``Hub.asgi`` returns."""

    def __init__(self, hub: HubLifecycle, handler: Any, subprotocols: Sequence[str]) -> None:
        self.hub = hub
        self.table = handler_table_of(handler)
        self.subprotocols = check_strings("subprotocols", subprotocols)

    def __repr__(self) -> str:
        return f"<HubApplication of {self.hub!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Return when its connection has ended, or once the server has given it to the hub."""
        if scope["type"] == "websocket":
            check_not_accepted(scope)
            await expect_connect(receive)
            try:
                accepted = await accept_or_refuse(self.hub, self.table, scope, receive, send, self.subprotocols)
            except HandshakeError:
                return
            await wait_until_released(*accepted)
        elif scope["type"] == "http":
            error = HandshakeError(*NOT_A_HANDSHAKE)
            count_refusal(self.hub, error, request=request_of(scope), source=ScopePeer(scope))
            await refuse_with(error, scope, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise MisuseError(f"a hub does not serve the ASGI scope {scope['type']!r}")

    def native_route(self, path_params: dict[str, Any]) -> NativeRoute:
        """Return how the hub serves a request without the ASGI server."""
        return NativeRoute(self.hub, self.table, self.subprotocols, path_params)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Have the hub join other nodes at startup, and close it at shutdown: this application is all there is."""
        await receive()
        await join_nodes(self.hub)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.hub.close()
        await send({"type": "lifespan.shutdown.complete"})
