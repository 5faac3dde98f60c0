"""What a client of ``graphql-transport-ws`` may do, and the operations that it has under way."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from graphql import GraphQLError
from wshub.core.connection import Connection
from wshub.errors import ConnectionClosed
from wshub.graphql.messages import (
    ClientMessage,
    GraphQLCloseCode,
    InvalidClientMessage,
    parse_message,
    parse_subscribe,
)
from wshub.graphql.operation import INTERNAL_ERROR, Operation, has_ended
from wshub.graphql.pacer import Pacer
from wshub.protocol.close_code import MAX_REASON_LENGTH
from wshub.protocol.message import Message, MessageType

if TYPE_CHECKING:
    from wshub.graphql.handler import GraphQLHandler

__all__ = ["Session"]

logger = logging.getLogger("wshub.graphql")


class Session:
    """One client's part in the protocol, from its open connection to its end."""

    def __init__(self, handler: GraphQLHandler, connection: Connection, pacer: Pacer) -> None:
        self.handler = handler
        self.connection = connection
        self.pacer = pacer
        self.payload: dict[str, Any] | None = None
        self._loop = pacer.loop
        self._introduced = False
        self._acknowledged = False
        self._connecting: asyncio.Task[None] | None = None
        self._operations: dict[str, Operation] = {}
        # These include operations that were cancelled and have not ended yet.
        self._running: set[Operation] = set()
        self._running_bytes = 0
        self._timer = self._loop.call_later(handler.connection_init_timeout, self._time_out)
        if connection.subprotocol != "graphql-transport-ws":
            self._close(GraphQLCloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable")

    def receive(self, message: Message) -> None:
        """Do what a message of the client asks for."""
        if message.type is not MessageType.TEXT:
            self._close(GraphQLCloseCode.BAD_REQUEST, "Invalid message: it is not text")
            return
        try:
            self._handle(parse_message(str(message.data)))
        except InvalidClientMessage as error:
            self._close(GraphQLCloseCode.BAD_REQUEST, f"Invalid message: {error}")
        except ConnectionClosed:
            pass

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Raises ``TypeError`` or ``ValueError`` for one that JSON or UTF-8 cannot express."""
        text = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self.connection.send(text)

    def forget(self, operation: Operation) -> None:
        """Release the id and the share of the limits of an operation that has ended. A second call has no effect."""
        if operation in self._running:
            self._running.remove(operation)
            self._running_bytes -= operation.size
        # After a complete of the client's, another operation may have the id by now.
        if self._operations.get(operation.id) is operation:
            del self._operations[operation.id]

    def end(self) -> None:
        """The connection is gone: nothing is done for it any more."""
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
            self.send(_with_payload("pong", payload))
        except (ValueError, RecursionError):
            raise InvalidClientMessage("the payload cannot be sent back") from None

    def _introduce(self, payload: dict[str, Any] | None) -> None:
        self._timer.cancel()
        if self._introduced:
            self._close(GraphQLCloseCode.TOO_MANY_INITIALISATION_REQUESTS, "Too many initialisation requests")
            return
        self._introduced = True
        self.payload = payload
        self._connecting = self._loop.create_task(self._acknowledge(), name="wshub GraphQL connect")

    async def _acknowledge(self) -> None:
        try:
            await self._connect()
        except (Exception, asyncio.CancelledError) as error:
            if has_ended(self.connection, error):
                return
            logger.error("on_connect of %r has failed", self.connection, exc_info=error)
            self._close(GraphQLCloseCode.TERMINATED, INTERNAL_ERROR)

    async def _connect(self) -> None:
        answer = await self.handler.connect(self.connection, self.payload)
        if answer is False:
            self._close(GraphQLCloseCode.FORBIDDEN, "Forbidden")
            return
        self._acknowledged = True
        self.send(_with_payload("connection_ack", answer if isinstance(answer, dict) else None))

    def _subscribe(self, message: ClientMessage) -> None:
        payload = parse_subscribe(message)
        if not self._acknowledged:
            self._close(GraphQLCloseCode.UNAUTHORIZED, "Unauthorized")
        elif message.id in self._operations:
            self._close(GraphQLCloseCode.SUBSCRIBER_ALREADY_EXISTS, f"Subscriber for {message.id} already exists")
        elif len(self._running) >= self.handler.max_operations:
            self._refuse(message, "There are too many operations on this connection.")
        elif self._running_bytes + message.size > self.handler.max_operation_bytes:
            self._refuse(message, "The operations on this connection are too large.")
        else:
            operation = self._operations[message.id] = Operation(self, message.id, payload, message.size)
            self._running.add(operation)
            self._running_bytes += operation.size
            operation.start(self._loop)

    def _refuse(self, message: ClientMessage, reason: str) -> None:
        self.send({"id": message.id, "type": "error", "payload": [GraphQLError(reason).formatted]})

    def _cancel_operations(self) -> None:
        operations, self._operations = self._operations, {}
        for operation in operations.values():
            operation.cancel()

    def _time_out(self) -> None:
        self._close(GraphQLCloseCode.CONNECTION_INITIALISATION_TIMEOUT, "Connection initialisation timeout")

    def _close(self, code: GraphQLCloseCode, reason: str) -> None:
        self._timer.cancel()
        self._cancel_operations()
        self.connection.close(code, reason.encode()[:MAX_REASON_LENGTH].decode(errors="ignore"))


def _with_payload(kind: str, payload: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": kind} if payload is None else {"type": kind, "payload": payload}
