"""Liveness and readiness of an application, for load balancers and orchestrators.

::

    app.mount("/health", health_endpoint(hub))

``/health/live`` answers 200 as long as the event loop runs. ``/health/ready`` answers 200 if the hub takes connections
and its broker is connected, and 503 if not. ``Hub.serve(health_path="/health")`` answers the same requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from wshub.core.probes import PROBE_FIELDS, answer_probe
from wshub.errors import MisuseError
from wshub.hub import Hub

__all__ = ["health_endpoint"]

_Application = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

_NOT_FOUND = (404, b'{"error": "ask for live or ready"}')
_NOT_ALLOWED = (405, b'{"error": "use GET"}')


def health_endpoint(*hubs: Hub) -> _Application:
    """Return an ASGI application with the paths ``/live`` and ``/ready``, to be mounted in front of authentication.

    It answers with JSON: ``ok``, and for ``ready`` the state of each broker by the name of its hub. A readiness probe
    binds a hub that is not in use yet to the event loop, so that its broker starts before the first client comes. While
    a hub closes, and after that, it is not ready.

    Args:
        hubs: the hubs that must be ready; usually one.

    Raises:
        MisuseError: an argument is no Hub, or there is none.
    """
    if not hubs or not all(isinstance(hub, Hub) for hub in hubs):
        raise MisuseError(f"health_endpoint() takes hubs, not {hubs!r}")

    async def answer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            raise MisuseError(f"health_endpoint() does not serve the ASGI scope {scope['type']!r}: mount it at a path")
        if scope["method"] not in ("GET", "HEAD"):
            status, body = _NOT_ALLOWED
        else:
            status, body = answer_probe(scope["path"].rstrip("/").rpartition("/")[2], *hubs) or _NOT_FOUND
        fields = [(name.lower().encode(), value.encode()) for name, value in PROBE_FIELDS]
        fields.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return answer
