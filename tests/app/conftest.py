"""An App on a real uvicorn, within the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
import uvloop

from wshub.app.app import PROTOCOL_CLASS

TIMEOUT = 30


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest):
    """Runs a coroutine on one of the loops, for a bounded time."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run_it(coroutine):
        async def bounded():
            async with asyncio.timeout(TIMEOUT):
                return await coroutine

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(bounded())

    return run_it


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    """uvicorn's two readers of HTTP."""
    return request.param


@contextlib.asynccontextmanager
async def listening(app: Any, http: str = "httptools", **options: Any) -> AsyncIterator[str]:
    """The address, ``127.0.0.1:port``, of a uvicorn that serves the application."""
    config = uvicorn.Config(app, ws=PROTOCOL_CLASS, http=http, lifespan="off", log_level="warning", **options)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0)
            if serving.done():
                serving.result()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
