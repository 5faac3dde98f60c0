"""A chat with rooms: ``python examples/chat.py``, then open http://127.0.0.1:8080 in two tabs.

Nothing that was sent is lost or shown twice, whatever happens to the connection or to the server:

- A client gives each message an id. It sends the message again, over every new connection, until an ``ack`` has the id.
- The server stores a message before it acknowledges it, and stores each id once.
- The messages of a room are numbered. A client that misses a number fetches what follows the last one that it has.

The environment variable ``CHAT_HISTORY`` names the file that keeps the messages. The default is ``chat.sqlite3``, and
``:memory:`` keeps them until the server stops. One process serves the chat.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from chat_history import History, Refused
from chat_messages import BadMessage, ClientMessage, Enter, Fetch, Ping, Say, Typing, parse
from chat_presence import Presence
from pages import Page

from wshub import CloseCode, Connection, ConnectionClosed, Hub, RateLimits
from wshub.app import App, Context

PAGE = Page(Path(__file__).with_name("chat.html"))

HISTORY_PAGE = 50
"""Messages that a client gets at once. It fetches further ones when it has these."""

app = App()
# A text of the greatest length fits into max_message_size even if JSON escapes each of them. A client that exceeds the
# rates is read more slowly. So it may send all that it has kept when its connection is back.
hub: Hub = app.enable_websocket(
    max_message_size=16 * 1024,
    rates=RateLimits(messages=20, bytes=64 * 1024, burst_ms=5_000),
)
history = History(os.environ.get("CHAT_HISTORY", "chat.sqlite3"))
presence = Presence(hub, history)


@app.get("/")
def page(ctx: Context) -> None:
    for name, value in PAGE.headers.items():
        ctx.response.set_header(name, value)
    ctx.response.send(PAGE.body)


@app.websocket("/chat")
async def chat(connection: Connection) -> None:
    """Serve one client until it leaves."""
    try:
        async for message in connection:
            # A client that has left gets no answers. The messages that it sent before count.
            with contextlib.suppress(ConnectionClosed):
                handle(connection, parse(message.data))
    except BadMessage as error:
        connection.close(CloseCode.POLICY_VIOLATION, str(error))
    finally:
        presence.announce(connection.rooms)


def handle(connection: Connection, message: ClientMessage) -> None:
    """Do what a client asks for."""
    match message:
        case Enter():
            enter(connection, message)
        case Say():
            say(connection, message)
        case Fetch(room, after):
            connection.send_json(messages_after(room, after))
        case Typing():
            tell_typing(connection)
        case Ping():
            connection.send_json({"type": "pong"})


def enter(connection: Connection, request: Enter) -> None:
    """Move a client to a room, and send it the messages of the room that it does not have."""
    former = connection.rooms
    for room in former - {request.room}:
        connection.leave(room)
    connection.set_metadata("name", request.name)
    connection.join(request.room)
    presence.announce(former | {request.room})
    you = {"member": connection.id, "name": request.name}
    connection.send_json({"type": "entered", "room": request.room, "epoch": history.epoch, **you})
    after = request.after
    if after is None:
        after = max(history.newest_number(request.room) - HISTORY_PAGE, 0)
    connection.send_json(messages_after(request.room, after))


def say(connection: Connection, request: Say) -> None:
    """Store a message, send it to the other members of its room if it is new, and acknowledge it."""
    try:
        entry, is_new = history.add(request.room, request.id, connection.get_metadata("name", "Guest"), request.text)
    except Refused as refusal:
        connection.send_json({"type": "refused", "id": request.id, "reason": str(refusal)})
        return
    if is_new:
        said = json.dumps({"type": "said", "room": request.room, **entry})
        hub.broadcast(said, room=request.room, exclude=connection)
        presence.announce()
    connection.send_json({"type": "ack", "room": request.room, **entry})


def messages_after(room: str, number: int) -> dict[str, Any]:
    """Return the first messages of a room after that number. ``newest`` tells the client whether there are more."""
    messages, newest = history.after(room, number, HISTORY_PAGE), history.newest_number(room)
    return {"type": "history", "room": room, "after": number, "messages": messages, "newest": newest}


def tell_typing(connection: Connection) -> None:
    """Tell the other members that a user is typing. A client that reads slowly is not told."""
    for room in connection.rooms:
        notice = json.dumps({"type": "typing", "room": room, "name": connection.metadata["name"]})
        hub.broadcast(notice, room=room, exclude=connection, slow_consumer="drop_newest")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    app.listen(arguments.host, arguments.port)
