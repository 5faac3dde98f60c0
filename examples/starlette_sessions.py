"""Sessions under Starlette: who has logged in over HTTP may connect, and nobody else.

``python examples/starlette_sessions.py``, then ``POST /login?user=ada`` and connect to ``/live`` with the cookie.
"""

import argparse
import secrets

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from wshub import EventHandler, Hub, HubConfig
from wshub.uvicorn import run

ORIGIN = "http://127.0.0.1:8080"

# Browsers send cookies with every WebSocket request, whichever page asks: only our own pages may.
hub = Hub(HubConfig(allowed_origins=(ORIGIN,)))


async def log_in(request: Request) -> Response:
    request.session["user"] = request.query_params["user"]
    return PlainTextResponse("welcome")


async def log_out(request: Request) -> Response:
    user = request.session.pop("user", None)
    for connection in hub.room_members(f"user {user}"):
        connection.close(4001, "logged out")
    return PlainTextResponse("bye")


async def live(websocket: WebSocket) -> None:
    user = websocket.session.get("user")
    if user is None:
        await websocket.receive()
        await websocket.send_denial_response(PlainTextResponse("Log in first.", 401))
        return
    handler = EventHandler(
        on_open=lambda connection: connection.join(f"user {user}"),
        on_message=lambda connection, message: hub.broadcast(f"{user}: " + str(message.data)),
    )
    await hub.accept(websocket, handler)


app = Starlette(
    routes=[
        Route("/login", log_in, methods=["POST"]),
        Route("/logout", log_out, methods=["POST"]),
        WebSocketRoute("/live", live),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key=secrets.token_urlsafe(32), same_site="lax")],
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
