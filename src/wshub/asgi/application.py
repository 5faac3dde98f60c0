"""How the WebSockets of ASGI applications become connections of a hub, on any ASGI server.

A server whose scope has the extension ``wshub.takeover`` gives the connection itself to the hub, when the application's
accept names it; any other keeps it, and the hub speaks to the server in the messages of ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from wshub.asgi import endings
from wshub.asgi.native import NativeRoute
from wshub.core.admission import UNKNOWN_ADDRESS, is_address
from wshub.core.binding import bind_for_request
from wshub.core.connection import ConnectionState
from wshub.core.event_handler import EventHandler
from wshub.core.hub_core import table_of, table_that_receives
from wshub.errors import HandshakeError, InvalidMessageError, MisuseError
from wshub.links.asgi_link import AsgiLink
from wshub.protocol.http.fields import HeaderField
from wshub.protocol.http.headers import Headers
from wshub.protocol.http.request import RequestHead
from wshub.protocol.validation import check_fields, check_strings

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.hub_state import HandlerTable
    from wshub.hub import Hub

__all__ = [
    "ENDS_WITH_APPLICATION",
    "TAKEOVER",
    "AsgiWebSocket",
    "HubApplication",
    "accept_websocket",
    "hold",
    "open_connection",
    "register_scope",
    "register_scope_when_asked",
    "respond",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

TAKEOVER = "wshub.takeover"
"""The key, in the scope's extensions, that says that the server can give the connection to a hub, and, in the accept
message, that names the connection that it is to become. In the scope, ``peer`` is who has connected to the server.
The server adds ``accepted`` and ``subprotocol`` when it has accepted the WebSocket. If it keeps the connection, because
middleware has made an accept message of its own, ``guest`` is the connection to close when the application ends."""

ENDS_WITH_APPLICATION = "wshub.ends_with_application"
"""The key, in the accept message, of whether the server is to close that connection when the application ends."""


NOT_NEW = "the WebSocket has been accepted, or has ended, already: a hub accepts it itself"


class AsgiWebSocket(Protocol):
    """What frameworks call a WebSocket: Starlette's, FastAPI's and Litestar's have these."""

    @property
    def scope(self) -> Any:
        """The scope of the request."""

    @property
    def receive(self) -> Any:
        """Waits for the next message of the server."""

    @property
    def send(self) -> Any:
        """Sends a message to the server."""


class HubApplication:
    """The ASGI application that ``Hub.asgi`` returns."""

    def __init__(self, hub: Hub, handler: Any, subprotocols: Sequence[str]) -> None:
        self.hub = hub
        self.table = table_of(handler)
        self.subprotocols = check_strings("subprotocols", subprotocols)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; returns when its connection has ended, or is the hub's alone."""
        if scope["type"] == "websocket":
            _check_not_accepted(scope)
            await _expect_connect(receive)
            try:
                accepted = await _accept(self.hub, self.table, scope, receive, send, self.subprotocols)
            except HandshakeError:
                return
            await hold(*accepted)
        elif scope["type"] == "http":
            error = HandshakeError(426, "Only WebSocket handshakes are answered here.", (("Upgrade", "websocket"),))
            await _refuse(error, scope, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise MisuseError(f"a hub does not serve the ASGI scope {scope['type']!r}")

    def native_route(self, path_params: dict[str, Any]) -> NativeRoute:
        """Return how the hub serves a request without the ASGI server."""
        return NativeRoute(self.hub, self.table, self.subprotocols, path_params)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Close the hub at shutdown, where this application is all there is."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.hub.close()
        await send({"type": "lifespan.shutdown.complete"})


async def accept_websocket(
    hub: Hub,
    websocket: AsgiWebSocket,
    handler: EventHandler | None,
    subprotocols: Sequence[str],
    headers: Iterable[HeaderField],
) -> Connection:
    """Do what ``Hub.accept`` says."""
    scope: Scope = websocket.scope
    if handler is not None and not isinstance(handler, EventHandler):
        raise MisuseError(f"accept() takes an EventHandler, not {handler!r}: a coroutine goes on after it by itself")
    table = table_of(handler) if handler is not None else table_that_receives()
    subprotocols = check_strings("subprotocols", subprotocols)
    fields = _encode_fields(headers)
    _check_not_accepted(scope, websocket)
    await _expect_connect(websocket.receive)
    if not _can_take_over(scope):
        endings.end_quietly_in_starlette(scope)
    try:
        connection, link = await _accept(
            hub, table, scope, websocket.receive, websocket.send, subprotocols, fields, ends_with_application=True
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
        await hold(connection, link)
        await connection.wait_closed()
    except asyncio.CancelledError:
        connection.close(1011)
        raise
    return connection


def register_scope(
    hub: Hub, table: HandlerTable, scope: Mapping[str, Any], *, subprotocol: str | None = None
) -> Connection:
    """Register the request of a scope with a hub. Raises ``HandshakeError`` where the hub does not take it."""
    with _CountingRefusals(hub):
        request = _check_scope(hub, scope)
        metadata = hub._ask(request)
    if inspect.isawaitable(metadata):
        if inspect.iscoroutine(metadata):
            metadata.close()
        raise MisuseError(
            "a coroutine cannot be asked by register(): make on_upgrade a function, or use a coroutine route"
        )
    return _register(hub, table, scope, request, metadata, subprotocol)


async def register_scope_when_asked(
    hub: Hub, table: HandlerTable, scope: Mapping[str, Any], *, subprotocol: str | None = None
) -> Connection:
    """``register_scope`` where ``on_upgrade`` may be a coroutine function."""
    with _CountingRefusals(hub):
        request = _check_scope(hub, scope)
        metadata = hub._ask(request)
        if inspect.isawaitable(metadata):
            try:
                async with asyncio.timeout(hub.config.handshake_timeout_ms / 1000):
                    metadata = await metadata
            except TimeoutError:
                raise HandshakeError(503, "The server did not decide in time.") from None
            hub._check_room(request)
    return _register(hub, table, scope, request, metadata, subprotocol)


class _CountingRefusals:
    """Counts, for a hub, the handshake that is refused in its block."""

    __slots__ = ("_hub",)

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __enter__(self) -> None:
        """Nothing is counted yet."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, HandshakeError):
            self._hub._count_refused(error)


def _check_scope(hub: Hub, scope: Mapping[str, Any]) -> RequestHead:
    """The request of a scope. Raises ``HandshakeError`` where the hub does not take it."""
    bind_for_request(hub)
    headers = Headers(scope["headers"])
    request = RequestHead(scope.get("method", "GET"), _target_of(scope), scope.get("http_version", "1.1"), headers)
    if hub._wants_address:
        request.remote_address = _address_of(scope)
    hub._admit(request)
    return request


def _address_of(scope: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Where a request comes from: the peer where what proxies tell of the client is no address; ``None`` if unknown."""
    client = scope.get("client")
    if client and not is_address(client[0]):
        # Where the server does not tell of its peer, all of these have the limits of one address.
        client = (_takeover_of(scope) or {}).get("peer") or UNKNOWN_ADDRESS
    return tuple(client[:2]) if client else None


def _register(
    hub: Hub,
    table: HandlerTable,
    scope: Mapping[str, Any],
    request: RequestHead,
    metadata: Mapping[str, Any] | None,
    subprotocol: str | None,
) -> Connection:
    path_params = dict(scope.get("path_params", ()))
    extensions = _can_take_over(scope)
    return hub._register(table, request, subprotocol, path_params, extensions=extensions, metadata=metadata)


def _check_not_accepted(scope: Scope, websocket: AsgiWebSocket | None = None) -> None:
    """Raise ``MisuseError`` for a WebSocket that is accepted or has ended. Nothing is received from it."""
    accepted = "accepted" in (_takeover_of(scope) or {})
    if accepted or endings.has_outcome(scope) or endings.has_begun(websocket):
        raise MisuseError(NOT_NEW)


async def _expect_connect(receive: Receive) -> None:
    message = await receive()
    if message["type"] != "websocket.connect":
        raise MisuseError(NOT_NEW)


async def _accept(
    hub: Hub,
    table: HandlerTable,
    scope: Scope,
    receive: Receive,
    send: Send,
    subprotocols: Sequence[str],
    headers: Iterable[HeaderField] = (),
    ends_with_application: bool = False,
) -> tuple[Connection, AsgiLink | None]:
    """Take a WebSocket into the hub, or refuse it and raise ``HandshakeError``."""
    subprotocol = next((name for name in scope.get("subprotocols", ()) if name in subprotocols), None)
    try:
        connection = await register_scope_when_asked(hub, table, scope, subprotocol=subprotocol)
    except HandshakeError as error:
        await _refuse(error, scope, send)
        raise
    return connection, await open_connection(connection, scope, receive, send, headers, ends_with_application)


async def open_connection(
    connection: Connection,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Iterable[HeaderField],
    ends_with_application: bool = False,
) -> AsgiLink | None:
    """Accept the WebSocket that has been registered. Returns its link, if the server keeps the connection.

    Raises ``HandshakeError`` if middleware has refused the handshake instead.
    """
    hub = connection.hub
    takeover = _takeover_of(scope)
    try:
        message: dict[str, Any] = {
            "type": "websocket.accept",
            "subprotocol": connection.subprotocol,
            "headers": _encode_fields(headers),
        }
        if takeover is not None:
            message |= {TAKEOVER: connection, ENDS_WITH_APPLICATION: ends_with_application}
        await send(message)
        if takeover is not None:
            if connection.state is not ConnectionState.CONNECTING:
                return None
            _serve_as_guest(connection, takeover)
    except BaseException:
        hub._abandon(connection)
        raise
    loop = asyncio.get_running_loop()
    link = AsgiLink(receive, send, scope.get("client"), private_codes=_is_daphne(scope))
    opened = loop.create_future()

    def open_it() -> None:
        if opened.cancelled():
            hub._abandon(connection)
            return
        try:
            hub._open(connection, link, b"", b"")
            link.start()
        except BaseException as error:
            opened.set_exception(error)
        else:
            opened.set_result(None)

    # Handlers are called from the loop, never from within a task, such as the one of the application here.
    loop.call_soon(open_it)
    try:
        await opened
    except BaseException:
        link.end()
        raise
    return link


async def hold(connection: Connection, link: AsgiLink | None) -> None:
    """Return when the server has no part in the connection any more: when it has ended, if the server keeps it."""
    if link is not None:
        try:
            await connection.wait_closed()
        finally:
            link.end()


def _is_daphne(scope: Scope) -> bool:
    """Return whether the server is daphne: it refuses the close codes that RFC 6455 defines, except 1000."""
    return "http_version" not in scope and "daphne.server" in sys.modules


def _serve_as_guest(connection: Connection, takeover: Mapping[str, Any]) -> None:
    """Prepare a connection that the server has accepted without taking it over, as middleware wanted it."""
    if "accepted" not in takeover:
        raise HandshakeError(403, "The application's middleware has refused the handshake.")
    connection.subprotocol = takeover["subprotocol"]
    connection.hub._renounce_compression(connection)


def _can_take_over(scope: Mapping[str, Any]) -> bool:
    return _takeover_of(scope) is not None


def _takeover_of(scope: Mapping[str, Any]) -> MutableMapping[str, Any] | None:
    """What the server tells of how it gives connections away, if it does."""
    return (scope.get("extensions") or {}).get(TAKEOVER)


def _close_with_endpoint(connection: Connection, link: AsgiLink, scope: Scope) -> None:
    """Close a connection that the server keeps when its endpoint ends.

    wshub's protocol class and the exit stack of FastAPI know when the endpoint ends. Elsewhere the end of the current
    task counts, unless the endpoint has started that task. In that case the server ends the connection.
    """
    takeover = _takeover_of(scope)
    stack = scope.get("fastapi_function_astack")
    if takeover is not None:
        takeover["guest"] = connection
    elif isinstance(stack, contextlib.AsyncExitStack):
        endings.close_with_stack(connection, link, stack)
    else:
        task = asyncio.current_task()
        if task is not None and endings.runs_application():
            endings.close_with_task(connection, task)


async def respond(scope: Mapping[str, Any], send: Send, status: int, headers: Fields, body: bytes) -> None:
    """Answer a request that becomes no WebSocket; servers that cannot say so of one that might have answer with 403."""
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    if scope["type"] == "websocket" and kind not in (scope.get("extensions") or ()):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})


async def _refuse(error: HandshakeError, scope: Scope, send: Send) -> None:
    body = error.reason.encode()
    fields = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *error.headers]
    await respond(scope, send, error.status, _encode_fields(fields), body)


def _encode_fields(fields: Iterable[HeaderField]) -> Fields:
    pairs = check_fields("headers", fields)
    return [(_encode_latin_1(name).lower(), _encode_latin_1(value)) for name, value in pairs]


def _encode_latin_1(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise InvalidMessageError(f"the name and the value of a header must be str or bytes, not {text!r}")
    try:
        return text if isinstance(text, bytes) else str.encode(text, "latin-1")
    except UnicodeEncodeError:
        raise InvalidMessageError(f"the name and the value of a header must be latin-1 text, not {text!r}") from None


def _target_of(scope: Mapping[str, Any]) -> str:
    target: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    return target.decode("ascii", "replace")
