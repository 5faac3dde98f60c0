"""An App, and a hub under another framework."""

from typing import assert_type

from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from wshub import Connection, EventHandler, Hub, HubConfig, Message, RequestHead
from wshub.app import App, Context

app = App()
assert_type(app.enable_websocket(max_connections=5000, allowed_origins=("https://example.com",)), Hub)
assert_type(app.ws_hub, Hub | None)


@app.get("/")
def home(ctx: Context) -> None:
    assert_type(ctx.request.path, str)
    ctx.response.set_header("Cache-Control", "no-store")
    ctx.response.send("hello")


@app.post("/messages")
async def post(ctx: Context) -> None:
    app.require_hub().broadcast(await ctx.request.body())
    ctx.response.send_json({"sent": True})


@app.websocket("/echo")
async def echo(connection: Connection) -> None:
    async for message in connection:
        connection.send(message)


def handle(connection: Connection, message: Message) -> None:
    connection.send(message)


@app.get("/upgrade")
def upgrade(ctx: Context) -> None:
    connection = ctx.response.upgrade_websocket(subprotocols=["chat"], on_message=handle)
    assert_type(connection, Connection)
    assert_type(app.require_hub().register(EventHandler(on_message=handle)), Connection)


async def check(request: RequestHead) -> dict[str, str]:
    return {"path": request.path}


App().enable_websocket(HubConfig(), on_upgrade=check)
App().enable_websocket(
    trusted_proxies=["10.0.0.0/8"], allowed_origins=["https://example.com"], broker="redis://localhost"
)
App().enable_websocket(max_connection=5000)  # type: ignore[call-arg]
App().enable_websocket(slow_consumer="drop")  # type: ignore[arg-type]

hub = Hub()


async def live(websocket: WebSocket) -> None:
    connection = await hub.accept(websocket, subprotocols=["chat"], headers=[("X-Version", "1")])
    assert_type(connection, Connection)


starlette = Starlette(routes=[Mount("/ws", hub.asgi(echo)), WebSocketRoute("/live", live)])


def main() -> None:
    app.listen("127.0.0.1", 8080)


def misspelt(ctx: Context) -> None:
    ctx.response.upgrade_websocket(on_mesage=handle)  # type: ignore[call-arg]
