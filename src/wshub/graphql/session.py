"""One client's session: the order of its messages, its running operations and its limits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from graphql import GraphQLError

from wshub.core.connection import Connection
from wshub.errors import ConnectionClosed
from wshub.graphql.client import Client
from wshub.graphql.messages import (
    SUBPROTOCOL,
    ClientMessage,
    GraphQLCloseCode,
    InvalidClientMessage,
    parse_message,
    parse_subscribe,
)
from wshub.graphql.operation import INTERNAL_ERROR, Operation
from wshub.graphql.options import Options
from wshub.graphql.pacer import Pacer
from wshub.protocol.close_code import MAX_REASON_LENGTH
from wshub.protocol.message import Message, MessageType

__all__ = ["Session"]

logger = logging.getLogger("wshub.graphql")


class Session:
    """Speaks the protocol with one client, until its connection ends.

    Args:
        options: of the handler.
        connection: an open connection.
        pacer: of the connection's event loop.
        tasks: the running operations of all clients. The session adds its own.
    """

    def __init__(self, options: Options, connection: Connection, pacer: Pacer, tasks: set[asyncio.Task[None]]) -> None:
        self._client = Client(connection, options, pacer, tasks)
        self._options = options
        self._connection = connection
        self._loop = pacer.loop
        self._introduced = False
        self._acknowledged = False
        self._connecting: asyncio.Task[None] | None = None
        self._operations: dict[str, Operation] = {}
        # Includes operations that were cancelled and have not ended yet.
        self._running: set[Operation] = set()
        self._running_bytes = 0
        self._timer = self._loop.call_later(options.connection_init_timeout, self._time_out)
        if connection.subprotocol != SUBPROTOCOL:
            self._close(GraphQLCloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable")

    def receive(self, message: Message) -> None:
        """Handle a message of the client."""
        if message.type is not MessageType.TEXT:
            self._close(GraphQLCloseCode.BAD_REQUEST, "Invalid message: it is not text")
            return
        try:
            self._handle(parse_message(str(message.data)))
        except InvalidClientMessage as error:
            self._close(GraphQLCloseCode.BAD_REQUEST, f"Invalid message: {error}")
        except ConnectionClosed:
            pass

    def end(self) -> None:
        """Cancel everything that runs for the connection, which is closed."""
        self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._cancel_operations()

    def _handle(self, message: ClientMessage) -> None:
        match message.type:
            case "connection_init":
                self._introduce(message.payload)
            case "ping":
                self._answer_ping(message.payload)
            case "subscribe":
                self._subscribe(message)
            case "complete":
                operation = self._operations.pop(message.id, None)
                if operation is not None:
                    operation.cancel()

    def _answer_ping(self, payload: dict[str, Any] | None) -> None:
        try:
            self._client.send("pong", payload)
        except (ValueError, RecursionError):
            raise InvalidClientMessage("the payload cannot be sent back") from None

    def _introduce(self, payload: dict[str, Any] | None) -> None:
        self._timer.cancel()
        if self._introduced:
            self._close(GraphQLCloseCode.TOO_MANY_INITIALISATION_REQUESTS, "Too many initialisation requests")
            return
        self._introduced = True
        self._client.payload = payload
        self._connecting = self._loop.create_task(self._acknowledge(), name="wshub GraphQL connect")

    async def _acknowledge(self) -> None:
        try:
            await self._connect()
        except (Exception, asyncio.CancelledError) as error:
            if self._client.has_ended(error):
                return
            logger.error("on_connect of %r has failed", self._connection, exc_info=error)
            self._close(GraphQLCloseCode.TERMINATED, INTERNAL_ERROR)

    async def _connect(self) -> None:
        answer = await self._options.connect(self._connection, self._client.payload)
        if answer is False:
            self._close(GraphQLCloseCode.FORBIDDEN, "Forbidden")
            return
        self._acknowledged = True
        self._client.send("connection_ack", answer if isinstance(answer, dict) else None)

    def _subscribe(self, message: ClientMessage) -> None:
        payload = parse_subscribe(message)
        if not self._acknowledged:
            self._close(GraphQLCloseCode.UNAUTHORIZED, "Unauthorized")
        elif message.id in self._operations:
            self._close(GraphQLCloseCode.SUBSCRIBER_ALREADY_EXISTS, f"Subscriber for {message.id} already exists")
        elif len(self._running) >= self._options.max_operations:
            self._refuse(message, "There are too many operations on this connection.")
        elif self._running_bytes + message.size > self._options.max_operation_bytes:
            self._refuse(message, "The operations on this connection are too large.")
        else:
            operation = self._operations[message.id] = Operation(
                self._client, message.id, payload, message.size, self._release
            )
            self._running.add(operation)
            self._running_bytes += operation.size
            operation.start(self._loop)

    def _refuse(self, message: ClientMessage, reason: str) -> None:
        self._client.send("error", [GraphQLError(reason).formatted], operation_id=message.id)

    def _release(self, operation: Operation) -> None:
        """Release the id and the limits of an operation that has ended. A second call has no effect."""
        if operation in self._running:
            self._running.remove(operation)
            self._running_bytes -= operation.size
        # After a ``complete`` of the client, another operation may have the id.
        if self._operations.get(operation.id) is operation:
            del self._operations[operation.id]

    def _cancel_operations(self) -> None:
        operations, self._operations = self._operations, {}
        for operation in operations.values():
            operation.cancel()

    def _time_out(self) -> None:
        self._close(GraphQLCloseCode.CONNECTION_INITIALISATION_TIMEOUT, "Connection initialisation timeout")

    def _close(self, code: GraphQLCloseCode, reason: str) -> None:
        self._timer.cancel()
        self._cancel_operations()
        self._connection.close(code, reason.encode()[:MAX_REASON_LENGTH].decode(errors="ignore"))
