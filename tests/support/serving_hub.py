"""A serving hub, its clock, and a client of the websockets package."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import websockets

from wshub import Hub, HubConfig


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_for(self, seconds: float, hub: Hub) -> None:
        """Let time pass, and have the hub sweep."""
        self.now += seconds
        hub._sweep()


@contextlib.asynccontextmanager
async def serving(handler: Any, *, path: str | None = None, subprotocols: tuple[str, ...] = (), clock=None, **settings):
    """Serve a hub on a free port of the loopback. Yields the hub and its URL."""
    hub = Hub(HubConfig(**settings), **({"clock": clock} if clock else {}))
    async with hub.serve("127.0.0.1", 0, handler, path=path, subprotocols=subprotocols, close_hub=True) as server:
        yield hub, f"ws://127.0.0.1:{server.port}{path or '/'}"


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[websockets.ClientConnection]:
    """Connect a client of the websockets package, without compression and without keepalive pings."""
    options = {"compression": None, "ping_interval": None, "proxy": None, **options}
    async with websockets.connect(url, **options) as client:
        yield client
