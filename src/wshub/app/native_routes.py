"""Which requests a hub answers by itself: those that reach one of its routes with nothing in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import starlette.applications
import starlette.routing
from starlette.routing import BaseRoute, Match

from wshub.app.app import App
from wshub.app.endpoints import ConnectionEndpoint
from wshub.hub.asgi import HubApplication
from wshub.hub.base import HandlerTable
from wshub.hub.hub import Hub

__all__ = ["NativeRoute", "find_native_route", "native_hubs"]


class NativeRoute(NamedTuple):
    """What becomes of a request without the application: a connection of that hub, with those handlers."""

    hub: Hub
    table: HandlerTable
    subprotocols: tuple[str, ...]
    path_params: dict[str, Any]


def find_native_route(app: Any, scope: dict[str, Any]) -> NativeRoute | None:
    """The native route of a WebSocket request, or None where something of the application has a say in it.

    That is any middleware, any route before it that matches too, and all code that is not known to do nothing else.

    Args:
        app: an ASGI application.
        scope: of ASGI's, ``type``, ``path``, ``root_path`` and, of ``headers``, ``host``. It is changed.
    """
    while True:
        if isinstance(app, HubApplication):
            return NativeRoute(app.hub, app.table, app.subprotocols, scope.get("path_params", {}))
        if isinstance(app, ConnectionEndpoint):
            return NativeRoute(app.hub, app.table, (), scope.get("path_params", {})) if app.hub is not None else None
        app = _follow(_routes_of(app), scope)
        if app is None:
            return None


def native_hubs(app: Any) -> Iterator[Hub]:
    """The hub of every route that may be native for some request, in the order of the routes."""
    if isinstance(app, HubApplication | ConnectionEndpoint):
        if app.hub is not None:
            yield app.hub
    else:
        for route in _routes_of(app):
            yield from native_hubs(getattr(route, "app", None))


def _routes_of(app: Any) -> Iterable[BaseRoute]:
    """The routes of an application that does nothing to a WebSocket request but to route it."""
    if isinstance(app, App):
        app = app.starlette
    if isinstance(app, starlette.applications.Starlette):
        # A subclass may do anything; FastAPI's is known to do nothing more, and so are both routers.
        if not _is_known(app) or app.user_middleware or "build_middleware_stack" in vars(app):
            return ()
        if getattr(app, "root_path", ""):
            return ()
        app = app.router
    if isinstance(app, starlette.routing.Router) and _is_known(app):
        return app.routes
    return ()


def _is_known(app: object) -> bool:
    return type(app).__module__ in (
        "starlette.applications",
        "starlette.routing",
        "fastapi.applications",
        "fastapi.routing",
    )


def _follow(routes: Iterable[BaseRoute], scope: dict[str, Any]) -> Any:
    """The application of the first route that matches, whose part of the scope is added to it."""
    for route in routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            scope.update(child_scope)
            return getattr(route, "app", None)
    return None
