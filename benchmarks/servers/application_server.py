"""Applications on uvicorn: what knows nothing of wshub, and wshub's own App, with each of the WebSocket protocols."""

import uvicorn
from command_line import server_parser
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from wshub import Connection, EventHandler, Hub, HubConfig
from wshub.app import App, Context
from wshub.uvicorn.running import PROTOCOL_CLASS, run


def make_app() -> App:
    app = App()
    app.enable_websocket(max_connections=20_000)

    @app.websocket("/")
    async def connected(connection: Connection) -> None:
        async for message in connection:
            connection.send(message)

    @app.get("/page")
    async def page(ctx: Context) -> None:
        ctx.response.send("hello")

    return app


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


async def page(request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


def make_starlette() -> Starlette:
    return Starlette(routes=[WebSocketRoute("/", echo), Route("/page", page)])


def make_fastapi() -> FastAPI:
    api = FastAPI()
    api.websocket("/")(echo)
    api.get("/page", response_class=PlainTextResponse)(lambda: "hello")
    return api


def make_hub() -> Starlette:
    handler = EventHandler(on_message=lambda connection, message: connection.send(message))
    hub = Hub(HubConfig(max_connections=20_000))
    return Starlette(routes=[WebSocketRoute("/", hub.asgi(handler)), Route("/page", page)])


APPLICATIONS = {"app": make_app, "hub": make_hub, "starlette": make_starlette, "fastapi": make_fastapi}

if __name__ == "__main__":
    parser = server_parser()
    parser.add_argument("--application", choices=APPLICATIONS, required=True)
    parser.add_argument("--ws", choices=["serve", "wshub", "websockets", "websockets-sansio", "wsproto"], required=True)
    arguments = parser.parse_args()
    application = APPLICATIONS[arguments.application]()
    options = {"port": arguments.port, "log_level": "warning", "access_log": False, "ws_per_message_deflate": False}
    if arguments.ws == "serve":
        run(application, **options)
    else:
        uvicorn.run(application, ws=PROTOCOL_CLASS if arguments.ws == "wshub" else arguments.ws, **options)
