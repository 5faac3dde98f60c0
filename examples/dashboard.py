"""A price board with live statistics: ``python examples/dashboard.py``, then open http://127.0.0.1:8080/dashboard.

The server sends thousands of prices a second. A client that reads slowly gets the newest price of each symbol
instead of all of them. The page has a switch for that, and shows how many prices arrived and how many were replaced.
It also shows what the other policies would do.
"""

import argparse
import os
import time
from pathlib import Path

from dashboard_feed import SYMBOLS, Feed
from pages import Page
from slow_link import SlowLink
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from wshub import CloseCode, Connection, EventHandler, Hub, HubConfig, Message, RateLimits, SlowConsumer
from wshub.uvicorn import run

PAGE = Page(Path(__file__).with_name("dashboard.html"))

SLOW_RATE = 3_000
"""Bytes per second that a slow reader gets."""

POLICIES: tuple[SlowConsumer, ...] = ("latest", "drop_oldest", "drop_newest", "close")
ROOMS: dict[SlowConsumer, str] = {policy: f"prices:{policy}" for policy in POLICIES}
"""The rooms of the readers: a reader chooses what happens if it falls behind."""

hub = Hub(
    # The page sends two short messages a second, and nothing else. A short queue is full after a moment.
    HubConfig(max_message_size=200, max_send_buffer=64 * 1024, rates=RateLimits(messages=10, bytes=1024)),
    name="prices",
)
for policy, room in ROOMS.items():
    hub.configure_room(room, slow_consumer=policy)
feed = Feed(hub, tuple(ROOMS.values()), int(os.environ.get("PRICES_PER_SECOND", "5000")))

watched = {"prices": hub}
"""The hubs whose statistics the page shows, by name."""


def on_open(reader: Connection) -> None:
    """Send prices to a reader from now on."""
    room = ROOMS.get((reader.path_params or {})["policy"])
    if room is None:
        reader.close(CloseCode.POLICY_VIOLATION, f"the policies are {', '.join(POLICIES)}")
        return
    reader.send_json({"reader": reader.id, "symbols": SYMBOLS, "rate": feed.rate, "slow_rate": SLOW_RATE})
    reader.join(room)
    feed.start()


def on_question(watcher: Connection, question: Message) -> None:
    """Answer with the statistics. The question is the id of the reader in the same page."""
    try:
        reader = hub.get_connection(int(question.data))
    except ValueError:
        reader = None
    watcher.send_json(
        {
            "time": feed.now(),
            "cpu": time.process_time(),
            "waiting": reader.buffered if reader is not None else 0,
            "hubs": {name: each.stats().asdict() for name, each in watched.items()},
        }
    )


async def page(request: Request) -> Response:
    return Response(PAGE.body, headers=PAGE.headers)


prices = hub.asgi(EventHandler(on_open=on_open))
statistics = hub.asgi(EventHandler(on_message=on_question))

routes = [
    Route("/dashboard", page),
    WebSocketRoute("/dashboard/prices/{policy}", prices),
    WebSocketRoute("/dashboard/prices/{policy}/slow", SlowLink(prices, SLOW_RATE)),
    WebSocketRoute("/dashboard/statistics", statistics),
]
app = Starlette(routes=routes)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
