"""An ASGI application that answers with the directory that its process has in common with the other workers."""

from __future__ import annotations

import json
import os
from typing import Any

from wshub.brokers.workers_directory import DIRECTORY_VARIABLE


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
