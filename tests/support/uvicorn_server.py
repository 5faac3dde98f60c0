"""An application on a real uvicorn, in the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from wshub.uvicorn.running import PROTOCOL_CLASS


@contextlib.asynccontextmanager
async def listening(
    app: Any,
    http: str = "httptools",
    *,
    host: str = "127.0.0.1",
    ws: str = PROTOCOL_CLASS,
    lifespan: Any = "off",
    **options: Any,
) -> AsyncIterator[str]:
    """Serve the application on a uvicorn. Yields its address, such as ``127.0.0.1:port``, or the path in ``uds``."""
    config = uvicorn.Config(app, ws=ws, http=http, lifespan=lifespan, log_level="warning", **options)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        listener.listen(128)
        serving = asyncio.create_task(server.serve(sockets=None if config.uds else [listener]))
        while not server.started:
            await asyncio.sleep(0)
            if serving.done():
                serving.result()
        try:
            name = f"[{host}]" if ":" in host else host
            yield config.uds or f"{name}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
