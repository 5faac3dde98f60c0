"""A chat whose pages miss nothing: ``python examples/recovering_chat.py``, then open http://127.0.0.1:8080 in two tabs.

A page that was cut off gets what it has missed, in order, each message once. With ``--broker redis://localhost`` the
engine keeps the messages. Then a page misses nothing either while the server is replaced or the engine restarts.
"""

import argparse
import json
from pathlib import Path

from wshub import BrokerError, CloseCode, Connection, Gap, HistoryConfig, Hub, HubConfig, Position, Publication
from wshub.app import App, Context

PAGE = Path(__file__).with_name("recovering_chat.html")
ROOM = "chat"

SHOWN = 50
"""Messages that a new page gets."""

MAX_KEY = 64
MAX_TEXT = 1_000


def encode(publication: Publication) -> str:
    """Return a message as pages receive it. A page sends the position of its last message when it comes back."""
    position = {"offset": publication.offset, "epoch": publication.epoch}
    return json.dumps({"type": "said", **position, **json.loads(publication.data)})


def encode_gap(gap: Gap) -> str:
    """Return what pages receive if the engine has lost messages: they begin anew."""
    return json.dumps({"type": "reload", "gap": gap})


async def show(connection: Connection) -> None:
    """Send a page what it lacks, and have it join the room."""
    position = position_of(connection)
    if position is None:
        history = await connection.hub.history(ROOM, limit=SHOWN, reverse=True)
        for publication in reversed(history.publications):
            await connection.wait_writable()
            connection.send(encode(publication))
        position = history.position
    recovery = await connection.recover(ROOM, position)
    if recovery.gap:
        connection.send(encode_gap(recovery.gap))
    else:
        connection.send_json({"type": "ready", "offset": recovery.position.offset, "epoch": recovery.position.epoch})


def position_of(connection: Connection) -> Position | None:
    """Return the position that a page has in its URL; None for a new page."""
    assert connection.request is not None
    query = connection.request.query_params
    offset, epoch = query.get("offset", ""), query.get("epoch", "")
    return Position(int(offset), epoch) if offset.isdecimal() and len(offset) < 20 else None


async def say(connection: Connection, said: object) -> None:
    """Store a message of a page, and send it to the room. A page may send it again: it is stored once."""
    match said:
        case {"key": str(key), "text": str(text)} if 0 < len(key) <= MAX_KEY and 0 < len(text) <= MAX_TEXT:
            message = json.dumps({"key": key, "text": text})
            await connection.hub.publish(message, room=ROOM, publisher=connection, idempotency_key=key)
        case {"type": "ping"}:
            connection.send('{"type": "pong"}')
        case _:
            connection.close(CloseCode.POLICY_VIOLATION, "no message of this chat")


async def chat(connection: Connection) -> None:
    """Serve a page."""
    try:
        await show(connection)
        async for said in connection.iter_json():
            await say(connection, said)
    except BrokerError:
        # The page comes back, and sends again what it has not seen in the room.
        connection.close(CloseCode.TRY_AGAIN_LATER, "the messages cannot be read or stored")


def make_app(broker: str | None = None) -> App:
    """Return the application, whose messages the broker keeps; without a broker, its own memory."""
    app = App()
    hub: Hub = app.enable_websocket(HubConfig(max_message_size=16_384), broker=broker)
    hub.configure_room(ROOM, history=HistoryConfig(size=1_000, encode=encode, encode_gap=encode_gap))

    @app.get("/")
    def page(ctx: Context) -> None:
        ctx.response.set_header("Content-Type", "text/html; charset=utf-8")
        ctx.response.send(PAGE.read_bytes())

    app.websocket("/chat")(chat)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--broker", help="such as redis://localhost")
    arguments = parser.parse_args()
    make_app(arguments.broker).listen(arguments.host, arguments.port)
