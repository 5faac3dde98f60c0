"""An ASGI application that answers with the directory that its process has in common with the other workers.

``app_with_hub`` has a hub that joins the others there.
"""

from __future__ import annotations

import json
import os
from typing import Any

from wshub import Hub
from wshub.brokers.workers_directory import DIRECTORY_VARIABLE

hub = Hub()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    body = json.dumps({"directory": os.environ.get(DIRECTORY_VARIABLE), "pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


async def app_with_hub(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        async with hub:
            await hub.broker_started()
            await app(scope, receive, send)
    else:
        await app(scope, receive, send)
