"""Endpoints that a hub can serve without an ASGI server: each says so itself."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from wshub.core.handler_table import HandlerTable
    from wshub.core.lifecycle import HubLifecycle

__all__ = ["NativeEndpoint", "NativeRoute", "native_endpoint", "wrapped_application"]


class NativeRoute(NamedTuple):
    """The connection that a request becomes without the application: its hub, its handlers and its path."""

    hub: HubLifecycle
    table: HandlerTable
    subprotocols: tuple[str, ...]
    path_params: dict[str, Any]


class NativeEndpoint(Protocol):
    """An ASGI application whose WebSocket requests a hub can answer by itself.

    A class that inherits ``native_route`` and overrides ``__call__`` does not count: its ``__call__`` may check access.
    """

    def native_route(self, path_params: dict[str, Any]) -> NativeRoute | None:
        """Return how a hub serves a request with these parameters in its path; None if there is no hub yet."""


def native_endpoint(app: Any) -> NativeEndpoint | None:
    """Return the application if it is a native endpoint, else None."""
    return app if _speaks_for_its_call(app.__class__, "native_route") else None


def wrapped_application(app: Any) -> Any:
    """Return the ASGI application that ``app`` passes each request on to, unchanged; None if it does not say.

    An application says it with a method ``native_application``, under the same condition as ``native_route``.
    """
    return app.native_application() if _speaks_for_its_call(app.__class__, "native_application") else None


@cache
def _speaks_for_its_call(kind: Any, method: str) -> bool:
    """Return whether the class that defines the method has not been given another ``__call__`` since."""
    for ancestor in kind.__mro__:
        if method in vars(ancestor):
            return True
        if "__call__" in vars(ancestor):
            return False
    return False
