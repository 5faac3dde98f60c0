"""The headers of proxies that uvicorn's ``--forwarded-allow-ips`` trusts.

With ``"*"``, uvicorn takes the first entry of ``X-Forwarded-For``, which the client itself may have written. So
WebSockets do not go through uvicorn's middleware. The functions here have its rules with one exception: they take the
last entry that is not a trusted proxy's.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wshub.core.admission import forwarded_address
from wshub.protocol.http.headers import Headers

__all__ = ["application_of", "client_of", "is_trusted", "scheme_of"]

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def application_of(config: Config) -> tuple[Any, Container[Any] | None]:
    """Return the application of a loaded configuration, and the proxies that the configuration trusts.

    The application is the one within uvicorn's middleware for proxies. With ``--no-proxy-headers`` there is no such
    middleware, and the second result is ``None``.
    """
    app: Any = config.loaded_app
    if not config.proxy_headers or type(app) is not ProxyHeadersMiddleware:
        return app, None
    trusted: Any = app.trusted_hosts
    return app.app, trusted


def client_of(trusted: Container[Any] | None, peer: tuple[str, int] | None, headers: Headers) -> tuple[str, int] | None:
    """Return the client's address as ``forwarded_address`` finds it; ``None`` if the peer is not trusted."""
    if trusted is None or not headers.get_all_raw(b"x-forwarded-for") or not is_trusted(trusted, peer):
        return None
    return forwarded_address(peer, headers, trusted.__contains__)


def scheme_of(trusted: Container[Any] | None, peer: tuple[str, int] | None, headers: Headers) -> str | None:
    """Return ``ws`` or ``wss`` by the peer's ``X-Forwarded-Proto``; ``None`` without one, or from an untrusted peer."""
    values = headers.get_all_raw(b"x-forwarded-proto")
    if not values or not is_trusted(trusted, peer):
        return None
    return _SCHEMES.get(values[-1].decode("latin-1"))


def is_trusted(trusted: Container[Any] | None, peer: tuple[Any, ...] | None) -> bool:
    """Return whether the peer is a proxy that is trusted. A peer on a Unix socket has no address: None."""
    return trusted is not None and (peer[0] if peer is not None else None) in trusted
