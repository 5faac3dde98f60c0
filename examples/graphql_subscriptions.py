"""GraphQL with subscriptions: ``python examples/graphql_subscriptions.py``, then any client of graphql-transport-ws.

``subscription { posts(room: "lobby") }`` gets what ``mutation { post(room: "lobby", text: "hello") }`` posts.
"""

import argparse
import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLString,
)
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from wshub import Hub
from wshub.graphql import SUBPROTOCOL, GraphQLHandler
from wshub.uvicorn import run

TEXT = GraphQLNonNull(GraphQLString)

readers: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def posts(root: Any, info: Any, room: str) -> AsyncIterator[str]:
    queue: asyncio.Queue[str] = asyncio.Queue(100)
    readers[room].add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        readers[room].discard(queue)


def text_of(text: str, info: Any, room: str) -> str:
    return text


def count_readers(root: Any, info: Any, room: str) -> int:
    return len(readers[room])


def post(root: Any, info: Any, room: str, text: str) -> int:
    for queue in readers[room]:
        # Whoever is a hundred posts behind misses some.
        if not queue.full():
            queue.put_nowait(text)
    return len(readers[room])


room_argument = GraphQLArgument(TEXT)
schema = GraphQLSchema(
    query=GraphQLObjectType(
        "Query",
        {
            "readers": GraphQLField(GraphQLInt, {"room": room_argument}, resolve=count_readers),
        },
    ),
    mutation=GraphQLObjectType(
        "Mutation",
        {"post": GraphQLField(GraphQLInt, {"room": room_argument, "text": GraphQLArgument(TEXT)}, resolve=post)},
    ),
    subscription=GraphQLObjectType(
        "Subscription",
        {"posts": GraphQLField(TEXT, {"room": room_argument}, subscribe=posts, resolve=text_of)},
    ),
)

hub = Hub()
application = hub.asgi(GraphQLHandler(schema), subprotocols=[SUBPROTOCOL])
app = Starlette(routes=[WebSocketRoute("/graphql", application)])

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    run(app, host=arguments.host, port=arguments.port)
