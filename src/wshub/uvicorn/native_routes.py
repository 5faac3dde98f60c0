"""Finds the native routes: routes that a request reaches with nothing in between. A hub answers these by itself.

Anything in between could be an access check, so we do not try to recognise checks. We descend only through a fixed list
of exact classes that are known to pass WebSocket requests on unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from starlette.routing import BaseRoute, Match

from wshub.asgi.native import NativeRoute, native_endpoint, wrapped_application
from wshub.core.lifecycle import HubLifecycle

__all__ = ["find_native_route", "native_hubs"]

# Classes are compared by name, since FastAPI may not be installed.
_APPLICATIONS = frozenset(("starlette.applications.Starlette", "fastapi.applications.FastAPI"))
_ROUTERS = frozenset(("starlette.routing.Router", "fastapi.routing.APIRouter"))
_ROUTES = frozenset(("starlette.routing.Mount", "starlette.routing.WebSocketRoute", "starlette.routing.Host"))

# The modules of the error handling that every application puts around its own router.
_ERROR_HANDLING = frozenset(("starlette.middleware.errors", "starlette.middleware.exceptions"))


def find_native_route(app: Any, scope: dict[str, Any]) -> NativeRoute | None:
    """Return the native route of a WebSocket request, or None if the application has to be called.

    It has to be called if there is middleware, an earlier route that matches too, or code that may do anything else. If
    a route cannot convert a part of the path, its exception is raised.

    Args:
        app: an ASGI application.
        scope: an ASGI scope. ``type``, ``path``, ``root_path`` and the field ``host`` of ``headers`` are enough. The
            function changes it.
    """
    while app is not None:
        endpoint = native_endpoint(app)
        if endpoint is not None:
            return endpoint.native_route(scope.get("path_params", {}))
        app = _follow(_routes_of(app), scope)
    return None


def native_hubs(app: Any) -> Iterator[HubLifecycle]:
    """Yield the hub of every route that may be native for some request, in the order of the routes."""
    endpoint = native_endpoint(app)
    if endpoint is not None:
        route = endpoint.native_route({})
        if route is not None:
            yield route.hub
    else:
        for each in _routes_of(app):
            yield from native_hubs(_application_of(each))


def _routes_of(app: Any) -> Iterable[BaseRoute]:
    """Return the routes of an application that does nothing to a WebSocket request except route it."""
    app = wrapped_application(app) or app
    if _name_of(app) in _APPLICATIONS:
        if not _only_routes(app):
            return ()
        app = app.router
    # A router has middleware of its own around its method `app`.
    if _name_of(app) in _ROUTERS and app.middleware_stack == app.app:
        return app.routes  # type: ignore[no-any-return]
    return ()


def _only_routes(app: Any) -> bool:
    """Return whether only error handling is around the router of an application."""
    if app.user_middleware or "build_middleware_stack" in vars(app) or getattr(app, "root_path", ""):
        return False
    # The application builds the stack at its first call. Other code may have replaced it.
    layer = app.middleware_stack
    while layer is not None and layer is not app.router:
        module = type(layer).__module__
        if module not in _ERROR_HANDLING and not module.startswith("fastapi."):
            return False
        layer = layer.app
    return True


def _follow(routes: Iterable[BaseRoute], scope: dict[str, Any]) -> Any:
    """Return the application of the first route that matches. Update the scope with what the route adds."""
    for route in routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            scope.update(child_scope)
            return _application_of(route)
    return None


def _application_of(route: Any) -> Any:
    """Return the application that a route passes each request on to; None if it may do something else."""
    return route.app if _name_of(route) in _ROUTES else None


def _name_of(value: object) -> str:
    kind: Any = type(value)
    return _qualified_name(kind)


@cache
def _qualified_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
