"""The argument of a request's handler: the request, its response, and the application."""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import starlette.requests
import starlette.responses
from starlette.types import Scope

from wshub.asgi.handshake import register_scope, register_scope_when_decided
from wshub.asgi.scope import ScopePeer, request_of
from wshub.core.event_handler import EventHandler, Handlers, handler_table_of
from wshub.core.handler_table import HandlerTable
from wshub.core.refusals import NOT_HANDED_OVER, count_refusal
from wshub.core.upgrade import current_upgrade
from wshub.errors import HandshakeError, MisuseError
from wshub.protocol.handshake.server import Handshake
from wshub.protocol.http.headers import Headers
from wshub.protocol.json_text import json_from_value
from wshub.protocol.validation import check_str, check_strings

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.core.lifecycle import HubLifecycle
    from wshub.core.opening import Opening
    from wshub.hub import Hub

__all__ = ["Context", "HasHub", "Request", "Response"]


class HasHub(Protocol):
    """An application that may have a hub: an ``App``."""

    @property
    def ws_hub(self) -> Hub | None:
        """The hub; None while there is none."""

    def require_hub(self) -> Hub:
        """Return the hub. Raises ``MisuseError`` while there is none."""


class Request:
    """The request that a handler answers."""

    def __init__(self, scope: Scope, receive: Any = None) -> None:
        self.scope = scope
        """The ASGI scope."""
        self.headers = Headers(scope["headers"])
        """The header fields."""
        self.method: str = scope.get("method", "GET")
        """The method, such as ``POST``."""
        self.http_version: str = scope.get("http_version", "1.1")
        """Such as ``1.1``."""
        self.path: str = scope["path"]
        """The path, percent-decoded."""
        self.path_params: Mapping[str, Any] = scope.get("path_params", {})
        """The parameters that the route found in the path."""
        self._starlette = starlette.requests.Request(scope, receive) if receive is not None else None
        self._connection = starlette.requests.HTTPConnection(scope)

    def __repr__(self) -> str:
        """Show all but the query and the header fields: clients send tokens in them."""
        return f"<Request {self.method} {self.path!r}>"

    def get_header(self, name: str) -> str | None:
        """Return the first header field of that name, in any case, or None."""
        return self.headers.get(name)

    @property
    def query_params(self) -> Mapping[str, str]:
        """The query parameters; of a repeated one, the last."""
        return self._connection.query_params

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that the client sent."""
        return self._connection.cookies

    async def body(self) -> bytes:
        """Return the whole body. A WebSocket request has none."""
        return await self._starlette.body() if self._starlette is not None else b""

    async def json(self) -> Any:
        """Return the body, read as JSON. Raises ``ValueError`` if it is not JSON."""
        return json.loads(await self.body())


class Response:
    """The response to a request. Its handler fills it, and it is sent when the handler returns."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.status: int | None = None
        """The HTTP status; None means 200."""
        self.headers: list[tuple[str, str]] = []
        """The header fields."""
        self.body: bytes | None = None
        """The body; None means an empty one."""

    def __repr__(self) -> str:
        size = "no body" if self.body is None else f"{len(self.body)} bytes"
        return f"<Response {self.status or 200}, {size}>"

    def set_status(self, status: int) -> None:
        """Answer with that HTTP status. The default is 200."""
        if isinstance(status, bool) or not hasattr(status, "__index__") or not 200 <= operator.index(status) <= 599:
            raise MisuseError(f"set_status(): status must be an int from 200 to 599, not {status!r}")
        self.status = operator.index(status)

    def set_header(self, name: str, value: str) -> None:
        """Answer with that header field, instead of any other of its name."""
        name = check_str("the name of a header", name)
        value = check_str("the value of a header", value)
        self.headers = [field for field in self.headers if field[0].lower() != name.lower()]
        self.headers.append((name, value))

    def send(self, body: str | bytes) -> None:
        """Answer with that body; a ``str`` is sent as UTF-8, and as plain text unless a header says otherwise."""
        if self.body is not None:
            raise MisuseError("send() has been called already: a response has one body")
        if isinstance(body, str):
            if not any(name.lower() == "content-type" for name, _ in self.headers):
                self.headers.append(("Content-Type", "text/plain; charset=utf-8"))
            self.body = str.encode(body)
            return
        try:
            # bytes() would also take an integer (as a length).
            self.body = bytes(memoryview(body))
        except TypeError:
            raise TypeError(f"send(): body must be a str or bytes, not {type(body).__name__}") from None

    def send_json(self, value: Any) -> None:
        """Answer with ``value`` as JSON."""
        text = json_from_value(value)
        self.set_header("Content-Type", "application/json")
        self.send(text if isinstance(text, bytes) else text.encode())

    def upgrade_websocket(self, *, subprotocols: Sequence[str] = (), **handlers: Unpack[Handlers]) -> Connection:
        """Make the request a WebSocket of the application's hub, with these handlers (``on_open=...`` and so on).

        The 101 is sent when the handler of the request returns, with the first subprotocol that the client offers and
        ``subprotocols`` contains, if there is one. Raises ``HandshakeError``, which the application
        turns into the right status, for a request that does not ask for a WebSocket.
        """
        hub = self._context.app.require_hub()
        names = check_strings("subprotocols", subprotocols)
        connection = self._context.register(hub, EventHandler(**handlers))
        connection.subprotocol = Handshake.choose_subprotocol(self._context.request.headers, names)
        return connection

    def to_starlette(self) -> starlette.responses.Response:
        """Return the response as Starlette sends it."""
        response = starlette.responses.Response(self.body or b"", self.status or 200)
        for name, value in self.headers:
            response.headers[name] = value
        return response


class Context:
    """A request, the response to it, and the application: the argument of a handler."""

    def __init__(self, app: HasHub, request: Request, *, is_websocket: bool) -> None:
        self.app = app
        """The application."""
        self.request = request
        """The request."""
        self.response = Response(self)
        """The response, for the handler to fill."""
        self.opening: Opening | None = None
        """The opening handshake of the connection that the request has become."""
        self.is_over = False
        """Whether the handler has returned. A task that it has started still has this context."""
        self._is_websocket = is_websocket

    def __repr__(self) -> str:
        return f"<Context {self.request!r}, {self.response!r}>"

    @property
    def connection(self) -> Connection | None:
        """The connection that the request has become; None if it has not."""
        return self.opening.connection if self.opening is not None else None

    def register(self, hub: HubLifecycle, handler: EventHandler | Callable[[Connection], Any]) -> Connection:
        """Do what ``hub.register()`` does within a handler of this request."""
        request = self._check_registration(hub)
        with _without_upgrade():
            self.opening = register_scope(hub, handler_table_of(handler), request.scope)
        return self.opening.connection

    async def register_when_decided(self, hub: HubLifecycle, table: HandlerTable) -> None:
        """Do what ``register`` does; ``on_upgrade`` may be a coroutine function."""
        request = self._check_registration(hub)
        with _without_upgrade():
            self.opening = await register_scope_when_decided(hub, table, request.scope)

    def _check_registration(self, hub: HubLifecycle) -> Request:
        request = self.request
        if self.is_over:
            raise MisuseError("the handler of the request has returned: call register() before")
        if not self._is_websocket:
            try:
                Handshake.check_request(request.method, request.http_version, request.headers)
                raise HandshakeError(*NOT_HANDED_OVER)
            except HandshakeError as error:
                count_refusal(hub, error, request=request_of(request.scope), source=ScopePeer(request.scope))
                raise
        if self.opening is not None:
            raise MisuseError("this request has become a connection already")
        return request


@contextlib.contextmanager
def _without_upgrade() -> Iterator[None]:
    """Remove the request from the context, of which the connection's handlers get a copy."""
    token = current_upgrade.set(None)
    try:
        yield
    finally:
        current_upgrade.reset(token)
