"""A chat under FastAPI: ``python examples/fastapi_chat.py``, then open http://127.0.0.1:8080 in two tabs.

The endpoint is FastAPI's own, with its path parameters and its dependencies. A new client is sent what it has missed.
"""

import argparse
import json
from collections import defaultdict, deque
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket
from fastapi.responses import FileResponse

from wshub import Connection, Hub, HubConfig
from wshub.uvicorn import run

PAGE = Path(__file__).with_name("fastapi_chat.html")
LONGEST_NAME = 32
REMEMBERED = 20

app = FastAPI()
hub = Hub(HubConfig(max_message_size=4096))
history: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))


@app.get("/")
def page() -> FileResponse:
    return FileResponse(PAGE)


@app.get("/rooms/{room}")
def members(room: str) -> list[str]:
    """Who is in a room: HTTP endpoints have the hub too."""
    return [connection.get_metadata("name") for connection in hub.room_members(room)]


def name_of(websocket: WebSocket) -> str:
    return websocket.query_params.get("name", "").strip()[:LONGEST_NAME] or "guest"


@app.websocket("/chat/{room}")
async def chat(websocket: WebSocket, room: str, name: Annotated[str, Depends(name_of)]) -> None:
    connection = await hub.accept(websocket)
    connection.set_metadata("name", name)
    for notice in history[room]:
        connection.send(notice)
    connection.join(room)
    tell(connection, room, "joined")
    try:
        async for message in connection:
            tell(connection, room, "said", str(message.data))
    finally:
        tell(connection, room, "left")


def tell(connection: Connection, room: str, event: str, text: str = "") -> None:
    """Tell everybody in the room what a user did."""
    notice = json.dumps({"name": connection.get_metadata("name"), "event": event, "text": text})
    if event == "said":
        history[room].append(notice)
    hub.broadcast(notice, room=room)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
