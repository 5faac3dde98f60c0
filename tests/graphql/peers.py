"""A schema, its server and its clients, for the GraphQL tests."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLString,
)

from tests.support.node_packages import node_modules
from tests.support.serving_hub import connected
from wshub import Hub, HubConfig
from wshub.graphql import SUBPROTOCOL, GraphQLHandler

CLIENT = Path(__file__).with_name("client.mjs")
PACKAGES = ("graphql-ws@6.0.6", "graphql@16.11.0", "ws@8.18.3")


class Source:
    """The source of the subscriptions. It counts their starts, values and ends."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.values = 0

    async def count(self, root: Any, info: Any, to: int) -> AsyncIterator[dict[str, int]]:
        self.started += 1
        try:
            for number in range(to):
                yield {"count": number}
        finally:
            self.ended += 1

    async def endless(self, root: Any, info: Any) -> AsyncIterator[dict[str, str]]:
        self.started += 1
        try:
            while True:
                self.values += 1
                yield {"endless": "x" * 10_000}
                await asyncio.sleep(0)
        finally:
            self.ended += 1


def fail(root: Any, info: Any) -> None:
    raise RuntimeError("asked to fail")


def make_schema(source: Source) -> GraphQLSchema:
    name = {"name": GraphQLArgument(GraphQLString)}
    query = {
        "hello": GraphQLField(GraphQLString, name, resolve=lambda root, info, name="you": f"hello {name}"),
        "who": GraphQLField(GraphQLString, resolve=lambda root, info: info.context["payload"]["user"]),
        "fails": GraphQLField(GraphQLString, resolve=fail),
    }
    mutation = {"shout": GraphQLField(GraphQLString, name, resolve=lambda root, info, name: name.upper())}
    to = {"to": GraphQLArgument(GraphQLNonNull(GraphQLInt))}
    subscription = {
        "count": GraphQLField(GraphQLInt, to, subscribe=source.count, resolve=lambda root, info, to: root["count"]),
        "endless": GraphQLField(GraphQLString, subscribe=source.endless),
    }
    return GraphQLSchema(
        GraphQLObjectType("Query", query),
        GraphQLObjectType("Mutation", mutation),
        GraphQLObjectType("Subscription", subscription),
    )


@asynccontextmanager
async def serving(
    schema: GraphQLSchema | None = None, *, config: HubConfig | None = None, kind: Any = GraphQLHandler, **options: Any
) -> AsyncIterator[tuple[str, Source, Hub]]:
    source = Source()
    hub = Hub(config)
    handler = kind(schema or make_schema(source), **options)
    async with hub.serve("127.0.0.1", 0, handler, subprotocols=[SUBPROTOCOL]) as server:
        yield f"ws://127.0.0.1:{server.port}/", source, hub


class Client:
    """A client that sends the messages that a test chooses."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def receive(self) -> dict[str, Any]:
        return json.loads(await self.connection.recv())

    async def introduce(self, **fields: Any) -> None:
        await self.send("connection_init", **fields)
        assert (await self.receive())["type"] == "connection_ack"

    async def subscribe(self, operation_id: str, query: str, **payload: Any) -> None:
        await self.send("subscribe", id=operation_id, payload={"query": query, **payload})

    async def closed(self) -> tuple[int | None, str | None]:
        await self.connection.wait_closed()
        return self.connection.close_code, self.connection.close_reason


@asynccontextmanager
async def speaking(url: str, **options: Any) -> AsyncIterator[Client]:
    async with connected(url, **{"subprotocols": [SUBPROTOCOL], **options}) as connection:
        yield Client(connection)


async def reference_client(url: str, payload: Any, *queries: str) -> list[dict[str, Any]]:
    """Return the lines that graphql-ws prints for these operations. A list of payloads has one for each connection."""
    modules = node_modules(*PACKAGES)
    if isinstance(modules, str):
        pytest.skip(modules)
    # A module finds only the packages beside itself.
    script = modules.parent / CLIENT.name
    shutil.copy(CLIENT, script)
    process = await asyncio.create_subprocess_exec(
        *("node", str(script), url, json.dumps(payload), *queries), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]
