"""A chat that runs on several machines: a message reaches the members of the room on all nodes."""

from wshub import Connection
from wshub.app import App, Context
from wshub.health import health_endpoint

app = App()
hub = app.enable_websocket()
app.mount("/health", health_endpoint(hub))


@app.websocket("/chat")
async def chat(connection: Connection) -> None:
    connection.join("lobby")
    async for message in connection:
        hub.broadcast(message, room="lobby")


@app.get("/nodes")
async def nodes(ctx: Context) -> None:
    ctx.response.send_json([{"id": node.info.id, "connections": node.connections} for node in await hub.nodes()])
