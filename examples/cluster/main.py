"""A chat that runs on several machines: a message reaches the members of the room on all nodes."""

from wshub import Connection
from wshub.app import App, Context

app = App()
hub = app.enable_websocket()


@app.websocket("/chat")
async def chat(connection: Connection) -> None:
    connection.join("lobby")
    async for message in connection:
        hub.broadcast(message, room="lobby")


@app.get("/ready")
def ready(ctx: Context) -> None:
    health = hub.health()
    ctx.response.set_status(200 if health.ok else 503)
    ctx.response.send_json({"broker": health.broker.state if health.broker else None})


@app.get("/nodes")
async def nodes(ctx: Context) -> None:
    ctx.response.send_json([{"id": node.info.id, "connections": node.connections} for node in await hub.nodes()])
