"""A running server for the tests of the hub, on each event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
import websockets

from wshub import Hub, HubConfig

TIMEOUT = 20


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on one of the loops, for a bounded time."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run_it(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(TIMEOUT):
                return await coroutine

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(bounded())

    return run_it


@contextlib.asynccontextmanager
async def serving(handler: Any, *, path: str | None = None, subprotocols: tuple[str, ...] = (), clock=None, **settings):
    """A hub that serves on a free port of the loopback, as a pair of the hub and the URL."""
    hub = Hub(HubConfig(**settings), **({"clock": clock} if clock else {}))
    async with hub.serve("127.0.0.1", 0, handler, path=path, subprotocols=subprotocols) as server:
        yield hub, f"ws://127.0.0.1:{server.port}{path or '/'}"


@contextlib.asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[websockets.ClientConnection]:
    """A client of the websockets package, without compression, and without pings of its own."""
    options = {"compression": None, "ping_interval": None, "proxy": None, **options}
    async with websockets.connect(url, **options) as client:
        yield client
