"""Takes a WebSocket of an ASGI framework into a hub, within the framework's endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from wshub.asgi import endings
from wshub.asgi.handshake import accept_or_refuse, check_not_accepted, expect_connect, wait_until_released
from wshub.asgi.scope import Scope, encode_fields, takeover_of
from wshub.core.event_handler import EventHandler, handler_table_of, receiving_handler_table
from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.http.fields import HeaderField
from wshub.protocol.validation import check_str, check_strings

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.lifecycle import HubLifecycle
    from wshub.links.asgi_link import AsgiLink

__all__ = ["AsgiWebSocket", "accept_websocket"]


class AsgiWebSocket(Protocol):
    """A WebSocket of a framework: Starlette's, FastAPI's and Litestar's have these."""

    @property
    def scope(self) -> Any:
        """The scope of the request."""

    @property
    def receive(self) -> Any:
        """Waits for the next message of the server."""

    @property
    def send(self) -> Any:
        """Sends a message to the server."""


async def accept_websocket(
    hub: HubLifecycle,
    websocket: AsgiWebSocket,
    handler: EventHandler | None,
    user: str | None,
    subprotocols: Sequence[str],
    headers: Iterable[HeaderField],
) -> Connection:
    """Do what ``Hub.accept`` says."""
    scope: Scope = websocket.scope
    if handler is not None and not isinstance(handler, EventHandler):
        raise MisuseError(f"accept() takes an EventHandler, not {handler!r}: a coroutine goes on after it by itself")
    table = handler_table_of(handler) if handler is not None else receiving_handler_table()
    subprotocols = check_strings("subprotocols", subprotocols)
    user = check_str("user", user) if user is not None else None
    fields = encode_fields(headers)
    check_not_accepted(scope, websocket)
    await expect_connect(websocket.receive)
    if takeover_of(scope) is None:
        endings.end_quietly_in_starlette(scope)
    try:
        connection, link = await accept_or_refuse(
            hub,
            table,
            scope,
            websocket.receive,
            websocket.send,
            subprotocols,
            fields,
            user=user,
            ends_with_application=True,
        )
    except HandshakeError as error:
        endings.remember_outcome(scope, error)
        raise
    endings.remember_outcome(scope, connection)
    if handler is None:
        if link is not None:
            _close_with_endpoint(connection, link, scope)
        return connection
    try:
        await wait_until_released(connection, link)
        await connection.wait_closed()
    except asyncio.CancelledError:
        connection.close(1011)
        raise
    return connection


def _close_with_endpoint(connection: Connection, link: AsgiLink, scope: Scope) -> None:
    """Close a connection that the server keeps when its endpoint ends.

    wshub's protocol class and the exit stack of FastAPI know when the endpoint ends. Elsewhere the end of the current
    task counts, unless the endpoint has started that task. In that case the server ends the connection.
    """
    takeover = takeover_of(scope)
    stack = scope.get("fastapi_function_astack")
    if takeover is not None:
        takeover["guest"] = connection
    elif isinstance(stack, contextlib.AsyncExitStack):
        endings.close_with_stack(connection, link, stack)
    else:
        task = asyncio.current_task()
        if task is not None and endings.runs_application():
            endings.close_with_task(connection, task)
