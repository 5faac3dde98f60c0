"""A chat in a browser, with rooms and names: ``python examples/chat.py``, then open http://127.0.0.1:8080."""

import argparse
import json
from pathlib import Path

from wshub import CloseCode, Connection, EventHandler, Hub, Message
from wshub.app import App, Context

PAGE = Path(__file__).with_name("chat.html")
LONGEST_NAME = 32

app = App()
hub: Hub = app.enable_websocket(max_message_size=4096)


@app.get("/")
def page(ctx: Context) -> None:
    ctx.response.set_header("Content-Type", "text/html; charset=utf-8")
    ctx.response.send(PAGE.read_bytes())


@app.get("/chat/{room}")
def chat(ctx: Context) -> None:
    connection = hub.register(EventHandler(on_open=joined, on_message=said, on_close=left))
    name = ctx.request.query_params.get("name", "").strip()[:LONGEST_NAME] or f"guest {connection.id}"
    connection.set_metadata("name", name)
    hub.join_room(connection, ctx.request.path_params["room"])


def joined(connection: Connection) -> None:
    tell(connection, "joined")


def said(connection: Connection, message: Message) -> None:
    if not isinstance(message.data, str):
        connection.close(CloseCode.UNSUPPORTED, "a chat is text")
        return
    tell(connection, "said", message.data)


def left(connection: Connection, code: int, reason: str) -> None:
    tell(connection, "left")


def tell(connection: Connection, event: str, text: str = "") -> None:
    """Tell everybody in the connection's room what its user did."""
    notice = json.dumps({"name": connection.get_metadata("name"), "event": event, "text": text})
    for room in connection.rooms:
        hub.broadcast_to_room(room, notice)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    app.listen(arguments.host, arguments.port)
