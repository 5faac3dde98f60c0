"""A JWT in place of a cookie: in a subprotocol, as browsers can send it, or in a query parameter.

``new WebSocket("ws://127.0.0.1:8080/rooms/red", ["bearer", token])``. Without a valid token it is 401, without leave
to enter the room 403, each before the upgrade. A token in a query reaches the access logs of every server on the way:
prefer the subprotocol.
"""

import argparse
import os
import secrets
from typing import Any

import jwt
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse, Response

from wshub import Hub
from wshub.uvicorn import run

SECRET = os.environ.get("JWT_SECRET") or secrets.token_urlsafe(32)
ALGORITHM = "HS256"

app = FastAPI()
hub = Hub()


def token_of(websocket: WebSocket) -> str | None:
    match websocket.scope["subprotocols"]:
        case ["bearer", token]:
            return str(token)
        case _:
            return websocket.query_params.get("token")


def claims_of(websocket: WebSocket) -> dict[str, Any] | None:
    """What the token of a request says, or None if there is none that is valid."""
    token = token_of(websocket)
    if token is None:
        return None
    try:
        claims: dict[str, Any] = jwt.decode(token, SECRET, [ALGORITHM], options={"require": ["exp", "sub"]})
    except jwt.InvalidTokenError:
        return None
    return claims


async def refuse(websocket: WebSocket, response: Response) -> None:
    await websocket.receive()
    await websocket.send_denial_response(response)


@app.websocket("/rooms/{room}")
async def enter(websocket: WebSocket, room: str) -> None:
    claims = claims_of(websocket)
    if claims is None:
        await refuse(websocket, PlainTextResponse("A valid token is needed.", 401, {"WWW-Authenticate": "Bearer"}))
        return
    if room not in claims.get("rooms", ()):
        await refuse(websocket, PlainTextResponse("This room is not yours.", 403))
        return
    # Of the two that were offered, the answer names the one that is no secret.
    connection = await hub.accept(websocket, subprotocols=["bearer"])
    connection.join(room)
    async for message in connection:
        hub.broadcast(f"{claims['sub']}: {message.data!s}", room=room)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
