"""Routes requests to handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp

from wshub.app.endpoints import ConnectionEndpoint, HttpEndpoint, WebSocketEndpoint
from wshub.core.handler_checks import check_function
from wshub.protocol.validation import check_str

if TYPE_CHECKING:
    from wshub.app.context import Context, HasHub
    from wshub.core.connection import Connection

__all__ = ["Router"]

Handler = TypeVar("Handler", bound="Callable[[Context], Any]")
Endpoint = TypeVar("Endpoint", bound="Callable[[Connection], Any]")


class Router:
    """The routes of an application, as Starlette's: ``"/rooms/{name}"``, ``"/files/{path:path}"``.

    Each method takes a handler, ``router.get("/", home)``, or decorates one. A handler is a function or a coroutine
    function of a ``Context``; anything else raises ``MisuseError``. A GET handler also receives WebSocket requests for
    its path. To accept one, call ``hub.register(handler)`` in it.
    """

    def __init__(self, app: HasHub) -> None:
        self._app = app
        self.routes: list[BaseRoute] = []

    def __repr__(self) -> str:
        return f"<Router {len(self.routes)} routes>"

    @overload
    def get(self, path: str, handler: Handler) -> Handler: ...
    @overload
    def get(self, path: str, handler: None = None) -> Callable[[Handler], Handler]: ...
    def get(self, path: str, handler: Any = None) -> Any:
        """Route GET, HEAD and WebSocket requests."""
        return self._route("GET", path, handler)

    @overload
    def post(self, path: str, handler: Handler) -> Handler: ...
    @overload
    def post(self, path: str, handler: None = None) -> Callable[[Handler], Handler]: ...
    def post(self, path: str, handler: Any = None) -> Any:
        """Route POST requests."""
        return self._route("POST", path, handler)

    @overload
    def put(self, path: str, handler: Handler) -> Handler: ...
    @overload
    def put(self, path: str, handler: None = None) -> Callable[[Handler], Handler]: ...
    def put(self, path: str, handler: Any = None) -> Any:
        """Route PUT requests."""
        return self._route("PUT", path, handler)

    @overload
    def patch(self, path: str, handler: Handler) -> Handler: ...
    @overload
    def patch(self, path: str, handler: None = None) -> Callable[[Handler], Handler]: ...
    def patch(self, path: str, handler: Any = None) -> Any:
        """Route PATCH requests."""
        return self._route("PATCH", path, handler)

    @overload
    def delete(self, path: str, handler: Handler) -> Handler: ...
    @overload
    def delete(self, path: str, handler: None = None) -> Callable[[Handler], Handler]: ...
    def delete(self, path: str, handler: Any = None) -> Any:
        """Route DELETE requests."""
        return self._route("DELETE", path, handler)

    def websocket(self, path: str) -> Callable[[Endpoint], Endpoint]:
        """Route WebSocket requests to a coroutine function that takes the connection.

        The connection is closed when the function returns or raises. Raises ``MisuseError`` for any other handler.
        """
        path = check_str("path", path)

        def decorate(endpoint: Endpoint) -> Endpoint:
            self.routes.append(WebSocketRoute(path, ConnectionEndpoint(self._app, endpoint)))
            return endpoint

        return decorate

    def mount(self, path: str, app: ASGIApp) -> None:
        """Have an ASGI application answer every request below a path, such as ``health_endpoint(hub)``."""
        self.routes.append(Mount(check_str("path", path), app))

    def _route(self, method: str, path: str, handler: Any) -> Any:
        path = check_str("path", path)
        if handler is None:
            return lambda decorated: self._route(method, path, decorated)
        check_function("a handler", handler, ("ctx",))
        self.routes.append(Route(path, HttpEndpoint(self._app, handler), methods=[method]))
        if method == "GET":
            self.routes.append(WebSocketRoute(path, WebSocketEndpoint(self._app, handler)))
        return handler
