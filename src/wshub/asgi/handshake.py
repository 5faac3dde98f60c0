"""The opening handshake of a WebSocket that an ASGI server has: register its request, accept it or refuse it.

If the scope has the extension ``wshub.takeover``, the server gives the connection itself to the hub. Any other server
keeps the connection, and the hub speaks to the server in the messages of ASGI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Self

from wshub.asgi import endings
from wshub.asgi.scope import (
    ENDS_WITH_APPLICATION,
    TAKEOVER,
    Fields,
    Receive,
    Scope,
    ScopePeer,
    Send,
    address_of,
    encode_fields,
    is_of_daphne,
    request_of,
    takeover_of,
)
from wshub.core.binding import bind_for_request
from wshub.core.connection import ConnectionState
from wshub.core.opening import Opening
from wshub.core.refusals import FAILED, REFUSED_BY_MIDDLEWARE, count_refusal
from wshub.errors import HandshakeError, MisuseError
from wshub.links.asgi_link import AsgiLink
from wshub.protocol.http.fields import HeaderField

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.handler_table import HandlerTable
    from wshub.core.lifecycle import HubLifecycle

__all__ = [
    "accept_or_refuse",
    "check_not_accepted",
    "expect_connect",
    "open_connection",
    "refuse_with",
    "register_scope",
    "register_scope_when_decided",
    "respond",
    "wait_until_released",
]

NOT_NEW = "the WebSocket has been accepted, or has ended, already: a hub accepts it itself"


def register_scope(
    hub: HubLifecycle, table: HandlerTable, scope: Mapping[str, Any], *, subprotocol: str | None = None
) -> Opening:
    """Register the request of a scope with a hub. Raises ``HandshakeError`` if the hub refuses it."""
    with _CountingRefusals(hub, scope) as refusals:
        opening = refusals.opening = _begin(hub, table, scope)
        opening.admit()
        decision: Any = opening.decide()
    if opening.waits:
        if iscoroutine(decision):
            decision.close()
        raise MisuseError(
            "a coroutine cannot be asked by register(): make on_upgrade a function, or use a coroutine route"
        )
    return _register(opening, scope, decision, subprotocol)


async def register_scope_when_decided(
    hub: HubLifecycle, table: HandlerTable, scope: Mapping[str, Any], *, subprotocol: str | None = None
) -> Opening:
    """Do what ``register_scope`` does; ``on_upgrade`` may be a coroutine function."""
    with _CountingRefusals(hub, scope) as refusals:
        opening = refusals.opening = _begin(hub, table, scope)
        opening.admit()
        decision: Any = opening.decide()
        if opening.waits:
            decision = await opening.wait(decision)
        return _register(opening, scope, decision, subprotocol)


class _CountingRefusals:
    """Counts, for a hub, the handshake that is refused in its block, or that fails there."""

    __slots__ = ("_hub", "_scope", "opening")

    def __init__(self, hub: HubLifecycle, scope: Mapping[str, Any]) -> None:
        self._hub = hub
        self._scope = scope
        self.opening: Opening | None = None
        """The opening of the handshake, as soon as there is one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, HandshakeError):
            count_refusal(self._hub, error, self.opening, source=ScopePeer(self._scope))
        elif isinstance(error, Exception):
            count_refusal(self._hub, HandshakeError(*FAILED), self.opening, source=ScopePeer(self._scope))
        elif error is not None and self.opening is not None:
            self.opening.abandoned()


def _begin(hub: HubLifecycle, table: HandlerTable, scope: Mapping[str, Any]) -> Opening:
    bind_for_request(hub)
    client = address_of(scope) if hub.wants_address else None
    return Opening(hub, table, request_of(scope), client=client)


def _register(
    opening: Opening, scope: Mapping[str, Any], metadata: Mapping[str, Any] | None, subprotocol: str | None
) -> Opening:
    path_params = dict(scope.get("path_params", ()))
    extensions = takeover_of(scope) is not None
    opening.register(subprotocol, metadata=metadata, path_params=path_params, extensions=extensions)
    return opening


def check_not_accepted(scope: Scope, websocket: Any = None) -> None:
    """Raise ``MisuseError`` for a WebSocket that is accepted or has ended. Nothing is received from it."""
    accepted = "accepted" in (takeover_of(scope) or {})
    if accepted or endings.has_outcome(scope) or endings.has_begun(websocket):
        raise MisuseError(NOT_NEW)


async def expect_connect(receive: Receive) -> None:
    """Receive the connect message. Raises ``MisuseError`` if another message comes first."""
    message = await receive()
    if message["type"] != "websocket.connect":
        raise MisuseError(NOT_NEW)


async def accept_or_refuse(
    hub: HubLifecycle,
    table: HandlerTable,
    scope: Scope,
    receive: Receive,
    send: Send,
    subprotocols: Sequence[str],
    headers: Iterable[HeaderField] = (),
    *,
    user: str | None = None,
    ends_with_application: bool = False,
) -> tuple[Connection, AsgiLink | None]:
    """Take a WebSocket into the hub, or refuse it and raise ``HandshakeError``."""
    subprotocol = next((name for name in scope.get("subprotocols", ()) if name in subprotocols), None)
    try:
        opening = await register_scope_when_decided(hub, table, scope, subprotocol=subprotocol)
    except HandshakeError as error:
        await refuse_with(error, scope, send)
        raise
    if user is not None:
        opening.connection.user = user
    return opening.connection, await open_connection(opening, scope, receive, send, headers, ends_with_application)


async def open_connection(
    opening: Opening,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Iterable[HeaderField],
    ends_with_application: bool = False,
) -> AsgiLink | None:
    """Accept the WebSocket that has been registered. Returns its link, if the server keeps the connection.

    Raises ``HandshakeError`` if middleware has refused the handshake instead.
    """
    connection = opening.connection
    takeover = takeover_of(scope)
    try:
        message: dict[str, Any] = {
            "type": "websocket.accept",
            "subprotocol": connection.subprotocol,
            "headers": encode_fields(headers),
        }
        if takeover is not None:
            message |= {TAKEOVER: opening, ENDS_WITH_APPLICATION: ends_with_application}
        await send(message)
        if takeover is not None:
            if connection.state is not ConnectionState.CONNECTING:
                return None
            _become_guest(opening, takeover)
    except BaseException:
        opening.cancel()
        raise
    link = AsgiLink(receive, send, scope.get("client"), private_codes=is_of_daphne(scope))

    def open_it() -> None:
        opening.open_on(link, b"", b"")
        link.start()

    try:
        await opening.open_from_loop(open_it)
    except BaseException:
        link.end()
        raise
    return link


def _become_guest(opening: Opening, takeover: Mapping[str, Any]) -> None:
    """Prepare a connection that the server has accepted and keeps, because of middleware."""
    if "accepted" not in takeover:
        raise HandshakeError(*REFUSED_BY_MIDDLEWARE)
    opening.connection.subprotocol = takeover["subprotocol"]
    opening.drop_compression()


async def wait_until_released(connection: Connection, link: AsgiLink | None) -> None:
    """Return once the server has no part in the connection. If the server keeps it, wait until it is closed."""
    if link is not None:
        try:
            await connection.wait_closed()
        finally:
            link.end()


async def refuse_with(error: HandshakeError, scope: Scope, send: Send) -> None:
    """Answer a request with the error, which has been counted."""
    body = error.reason.encode()
    fields = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *error.headers]
    await respond(scope, send, error.status, encode_fields(fields), body)


async def respond(scope: Mapping[str, Any], send: Send, status: int, headers: Fields, body: bytes) -> None:
    """Answer a request that becomes no WebSocket. Some servers can answer a WebSocket request with 403 only."""
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket" and kind not in (scope.get("extensions") or ()):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
