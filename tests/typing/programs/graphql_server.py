"""A schema served to the clients of a hub."""

from typing import Any

from graphql import GraphQLSchema, build_schema
from starlette.routing import WebSocketRoute

from wshub import Connection, Hub
from wshub.graphql import SUBPROTOCOL, GraphQLCloseCode, GraphQLHandler

schema: GraphQLSchema = build_schema("type Query { hello: String }")


async def connect(connection: Connection, payload: dict[str, Any] | None) -> dict[str, Any] | bool:
    return {"user": payload["user"]} if payload else False


def context(connection: Connection, payload: dict[str, Any] | None, extensions: dict[str, Any] | None) -> object:
    return connection.metadata, payload, extensions


class Handler(GraphQLHandler):
    def on_close(self, connection: Connection, code: int, reason: str) -> None:
        super().on_close(connection, code, reason)
        print(code == GraphQLCloseCode.FORBIDDEN)


hub = Hub()
handler = Handler(schema, context=context, on_connect=connect, max_operations=10, root_value=object())
route = WebSocketRoute("/graphql", hub.asgi(handler, subprotocols=[SUBPROTOCOL]))

GraphQLHandler("type Query { hello: String }")  # type: ignore[arg-type]
GraphQLHandler(schema, max_operation=10)  # type: ignore[call-arg]
