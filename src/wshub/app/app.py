"""An application: routes for HTTP, a hub for WebSockets, and a server to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from wshub.app.router import Router
from wshub.asgi.lifespan import send_around_life
from wshub.brokers.interface import Broker
from wshub.core.config import HubConfig, HubSettings
from wshub.errors import MisuseError
from wshub.hub import Hub, UpgradeHook

__all__ = ["App"]


class App:
    """An ASGI application with a hub.

    ::

        app = App()
        app.enable_websocket(max_connections=5000)

        @app.get("/")
        def home(ctx):
            ctx.response.send("hello")

        @app.websocket("/echo")
        async def echo(connection):
            async for message in connection:
                connection.send(message)

        app.listen("127.0.0.1", 8080)

    Args:
        middleware: Starlette's, for HTTP and WebSocket requests alike.
        starlette: further keyword arguments for Starlette, such as ``lifespan`` and ``exception_handlers``.
    """

    def __init__(self, *, middleware: Sequence[Middleware] = (), **starlette: Any) -> None:
        self.router = Router(self)
        """The routes. The methods of the application with the names of HTTP methods, ``websocket`` and ``mount`` are
        those of its router."""
        self.get = self.router.get
        self.post = self.router.post
        self.put = self.router.put
        self.patch = self.router.patch
        self.delete = self.router.delete
        self.websocket = self.router.websocket
        self.mount = self.router.mount
        self.ws_hub: Hub | None = None
        """The application's hub; None before ``enable_websocket()``."""
        self._middleware = list(middleware)
        self._options = starlette
        self._starlette: Starlette | None = None

    def __repr__(self) -> str:
        return f"<App {len(self.router.routes)} routes, {repr(self.ws_hub) if self.ws_hub is not None else 'no hub'}>"

    def enable_websocket(
        self,
        config: HubConfig | None = None,
        *,
        on_upgrade: UpgradeHook | None = None,
        broker: Broker | str | None = None,
        name: str = "hub",
        **settings: Unpack[HubSettings],
    ) -> Hub:
        """Give the application a hub, which is ``app.ws_hub`` from here on, and return it.

        Args:
            config: the hub's settings; or
            settings: the fields of a HubConfig, each by its name.
            on_upgrade: called with each handshake request, as in ``Hub``. It may be a coroutine function for routes of
                coroutines (``app.websocket``) only: ``register()`` cannot wait.
            broker, name: as in ``Hub``.
        """
        if self.ws_hub is not None:
            raise MisuseError("the application has its hub already: app.ws_hub")
        if config is not None and settings:
            raise MisuseError("give enable_websocket() a HubConfig or settings by name, not both")
        config = config if config is not None else HubConfig(**settings)
        self.ws_hub = Hub(config, on_upgrade=on_upgrade, broker=broker, name=name)
        return self.ws_hub

    def require_hub(self) -> Hub:
        """Return the application's hub. Raises ``MisuseError`` while it has none."""
        if self.ws_hub is None:
            raise MisuseError("the application has no hub: call app.enable_websocket() first")
        return self.ws_hub

    @property
    def starlette(self) -> Starlette:
        """The Starlette application that serves the routes."""
        if self._starlette is None:
            self._starlette = Starlette(routes=self.router.routes, middleware=self._middleware, **self._options)
        return self._starlette

    def native_application(self) -> Starlette:
        """Return what every request goes to unchanged, so that a hub can look for a route of its own there."""
        return self.starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            send = send_around_life(lambda: self.ws_hub, send)
        await self.starlette(scope, receive, send)

    def listen(self, host: str = "127.0.0.1", port: int = 8080, **options: Any) -> None:
        """Serve until SIGINT or SIGTERM, which closes every connection with 1001.

        Args:
            host: the address to listen on; ``"0.0.0.0"`` is every IPv4 interface.
            port: 0 lets the system choose.
            options: any of ``uvicorn.run()``'s, such as ``log_level``.

        Raises:
            ConfigurationError: a port that cannot be, such as one over 65535.
        """
        from wshub.uvicorn.running import run

        run(self, host=host, port=port, **options)
