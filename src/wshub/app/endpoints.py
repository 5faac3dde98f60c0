"""The ASGI sides of a handler: one for HTTP requests, one for WebSocket requests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import starlette.responses
from starlette.types import Receive, Scope, Send

from wshub.app.context import Context, HasHub, Request
from wshub.asgi.handshake import open_connection, respond, wait_until_released
from wshub.asgi.native import NativeRoute
from wshub.core.event_handler import handler_table_of
from wshub.core.upgrade import current_upgrade
from wshub.errors import HandshakeError, MisuseError

if TYPE_CHECKING:
    from wshub.core.connection import Connection

__all__ = ["ConnectionEndpoint", "HttpEndpoint", "WebSocketEndpoint"]


async def _call(handler: Callable[[Context], Any], context: Context) -> None:
    """Call the handler with its request the one that ``hub.register()`` takes."""
    token = current_upgrade.set(context)
    try:
        result = handler(context)
        if inspect.isawaitable(result):
            await result
        elif inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise MisuseError(f"the handler returned {result!r}, which runs nothing: a handler has no yield")
    except HandshakeError as error:
        for name, value in error.headers:
            context.response.set_header(name, value)
        context.response.set_status(error.status)
        context.response.body = None
        context.response.send(error.reason)
    finally:
        context.is_over = True
        current_upgrade.reset(token)


class HttpEndpoint:
    """Answers HTTP requests with a handler."""

    def __init__(self, app: HasHub, handler: Callable[[Context], Any]) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = Context(self._app, Request(scope, receive), is_websocket=False)
        await _call(self._handler, context)
        await context.response.to_starlette()(scope, receive, send)


class WebSocketEndpoint:
    """Calls a handler for each WebSocket request. The answer is the connection that it registers, or its response."""

    def __init__(self, app: HasHub, handler: Callable[[Context], Any]) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        context = Context(self._app, Request(scope), is_websocket=True)
        try:
            await _call(self._handler, context)
        except BaseException:
            if context.opening is not None:
                context.opening.cancel()
            raise
        response, opening = context.response, context.opening
        if opening is None or response.status is not None:
            if opening is not None:
                opening.cancel()
            await self._deny(response.to_starlette(), scope, send)
            return
        link = await open_connection(opening, scope, receive, send, response.headers)
        await wait_until_released(opening.connection, link)

    @staticmethod
    async def _deny(response: starlette.responses.Response, scope: Scope, send: Send) -> None:
        """Answer a WebSocket request with an ordinary response; one that was to succeed becomes a 426."""
        if response.status_code < 300:
            response.status_code = 426
            response.headers["Upgrade"] = "websocket"
        await respond(scope, send, response.status_code, response.raw_headers, bytes(response.body))


class ConnectionEndpoint(WebSocketEndpoint):
    """Makes every WebSocket request a connection of the application's hub, with a coroutine function for its life."""

    def __init__(self, app: HasHub, endpoint: Callable[[Connection], Any]) -> None:
        super().__init__(app, self._register)
        self.table = handler_table_of(endpoint)

    def native_route(self, path_params: dict[str, Any]) -> NativeRoute | None:
        """Return how the application's hub serves a request without uvicorn; None if there is no hub by now."""
        hub = self._app.ws_hub
        return NativeRoute(hub, self.table, (), path_params) if hub is not None else None

    async def _register(self, context: Context) -> None:
        await context.register_when_decided(self._app.require_hub(), self.table)
