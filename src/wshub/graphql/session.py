"""What a client of ``graphql-transport-ws`` may do, and the operations that it has under way."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    OperationType,
    execute,
    get_operation_ast,
    parse,
    subscribe,
    validate,
)
from wshub.errors import ConnectionClosed
from wshub.graphql.messages import (
    ClientMessage,
    GraphQLCloseCode,
    InvalidClientMessage,
    SubscribePayload,
    parse_message,
    parse_subscribe,
)
from wshub.hub.connection import Connection
from wshub.protocol.message import Message, MessageType

if TYPE_CHECKING:
    from wshub.graphql.handler import GraphQLHandler

__all__ = ["Session"]

logger = logging.getLogger("wshub.graphql")

MOST_BUFFERED = 64 * 1024
"""Octets that may wait for the client before a subscription waits too."""

LONGEST_REASON = 123
"""Octets of the reason of a close, at most (RFC 6455 section 5.5)."""


class Session:
    """One client's part in the protocol, from its open connection to its end."""

    def __init__(self, handler: GraphQLHandler, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._handler = handler
        self._connection = connection
        self._loop = loop
        self._payload: dict[str, Any] | None = None
        self._introduced = False
        self._acknowledged = False
        self._connecting: asyncio.Task[None] | None = None
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._timer = loop.call_later(handler.connection_init_timeout, self._time_out)
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

    def end(self) -> None:
        """The connection is gone: nothing is done for it any more."""
        self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        for task in self._operations.values():
            task.cancel()
        self._operations.clear()

    def _handle(self, message: ClientMessage) -> None:
        match message.type:
            case "connection_init":
                self._introduce(message.payload)
            case "ping":
                self._connection.send_json(_with_payload("pong", message.payload))
            case "subscribe":
                self._subscribe(message)
            case "complete":
                task = self._operations.pop(message.id, None)
                if task is not None:
                    task.cancel()

    def _introduce(self, payload: dict[str, Any] | None) -> None:
        if self._introduced:
            self._close(GraphQLCloseCode.TOO_MANY_INITIALISATION_REQUESTS, "Too many initialisation requests")
            return
        self._introduced = True
        self._payload = payload
        self._connecting = self._loop.create_task(self._guard(self._acknowledge()), name="wshub GraphQL connect")

    async def _acknowledge(self) -> None:
        answer = await self._handler.connect(self._connection, self._payload)
        self._timer.cancel()
        if answer is False:
            self._close(GraphQLCloseCode.FORBIDDEN, "Forbidden")
            return
        self._acknowledged = True
        self._connection.send_json(_with_payload("connection_ack", answer if isinstance(answer, dict) else None))

    def _subscribe(self, message: ClientMessage) -> None:
        payload = parse_subscribe(message)
        if not self._acknowledged:
            self._close(GraphQLCloseCode.UNAUTHORIZED, "Unauthorized")
        elif message.id in self._operations:
            self._close(GraphQLCloseCode.SUBSCRIBER_ALREADY_EXISTS, f"Subscriber for {message.id} already exists")
        elif len(self._operations) >= self._handler.max_operations:
            self._send_errors(message.id, [GraphQLError("There are too many operations on this connection.")])
        else:
            name = f"wshub GraphQL operation {message.id[:40]}"
            running = self._guard(self._run(message.id, payload))
            self._operations[message.id] = self._loop.create_task(running, name=name)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work for the client, whose connection is closed if that fails."""
        try:
            await work
        except ConnectionClosed:
            pass
        except Exception:
            logger.exception("a GraphQL operation has failed")
            self._close(GraphQLCloseCode.INTERNAL_SERVER_ERROR, "Internal server error")

    async def _run(self, operation_id: str, payload: SubscribePayload) -> None:
        """Answer an operation, and forget it."""
        try:
            document, errors = self._prepare(payload)
            if document is None:
                self._send_errors(operation_id, errors)
                return
            operation = get_operation_ast(document, payload.operation_name)
            if operation is None:
                self._send_errors(operation_id, [GraphQLError("Unable to identify operation")])
                return
            context = await self._handler.create_context(self._connection, self._payload)
            run = subscribe if operation.operation is OperationType.SUBSCRIPTION else execute
            result: Any = run(
                self._handler.schema,
                document,
                root_value=self._handler.root_value,
                context_value=context,
                variable_values=payload.variables,
                operation_name=payload.operation_name,
            )
            if inspect.isawaitable(result):
                result = await result
            if isinstance(result, ExecutionResult):
                self._send_result(operation_id, result)
            else:
                await self._send_all(operation_id, result)
            self._connection.send_json({"id": operation_id, "type": "complete"})
        finally:
            # After a complete of the client's, another operation may have the id by now.
            if self._operations.get(operation_id) is asyncio.current_task():
                del self._operations[operation_id]

    def _prepare(self, payload: SubscribePayload) -> tuple[DocumentNode | None, list[GraphQLError]]:
        """The operation as a valid document, or why it is none."""
        try:
            document = parse(payload.query)
            errors = validate(self._handler.schema, document, self._handler.rules)
        except GraphQLError as error:
            return None, [error]
        except RecursionError:
            return None, [GraphQLError("The operation is nested too deeply.")]
        return (None, errors) if errors else (document, [])

    async def _send_all(self, operation_id: str, results: AsyncIterator[ExecutionResult]) -> None:
        """Send each result of a subscription, at the pace of its reader."""
        async with contextlib.aclosing(results) as iterator:  # type: ignore[type-var]
            async for result in iterator:
                self._send_result(operation_id, result)
                while self._connection.buffered > MOST_BUFFERED:
                    await self._connection.drain()

    def _send_result(self, operation_id: str, result: ExecutionResult) -> None:
        self._connection.send_json({"id": operation_id, "type": "next", "payload": result.formatted})

    def _send_errors(self, operation_id: str, errors: list[GraphQLError]) -> None:
        formatted = [error.formatted for error in errors]
        self._connection.send_json({"id": operation_id, "type": "error", "payload": formatted})

    def _time_out(self) -> None:
        self._close(GraphQLCloseCode.CONNECTION_INITIALISATION_TIMEOUT, "Connection initialisation timeout")

    def _close(self, code: GraphQLCloseCode, reason: str) -> None:
        self._timer.cancel()
        self._connection.close(code, reason.encode()[:LONGEST_REASON].decode(errors="ignore"))


def _with_payload(kind: str, payload: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": kind} if payload is None else {"type": kind, "payload": payload}
