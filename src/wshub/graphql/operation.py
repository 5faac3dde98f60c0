"""One operation of a client: prepared, executed, and answered as ``graphql-transport-ws`` has it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    execute,
    get_operation_ast,
    parse,
    subscribe,
    validate,
)
from wshub.core.connection import Connection, ConnectionState
from wshub.errors import ConnectionClosed
from wshub.graphql.messages import SubscribePayload

if TYPE_CHECKING:
    from wshub.graphql.session import Session

__all__ = ["INTERNAL_ERROR", "Operation", "has_ended"]

logger = logging.getLogger("wshub.graphql")

MOST_BUFFERED = 64 * 1024
"""Bytes that may wait for the client before a subscription waits too."""

INTERNAL_ERROR = "Internal server error"

TOO_DEEP = "The operation is nested too deeply."


class Operation:
    """A query, a mutation or a subscription, from its subscribe to its end.

    Nothing that fails in it ends the connection: the client gets an ``error`` for this operation.
    """

    def __init__(self, session: Session, operation_id: str, payload: SubscribePayload, size: int) -> None:
        self.id = operation_id
        self.size = size
        self._session = session
        self._handler = session.handler
        self._payload = payload
        self._wanted = True
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run it in a task of its own."""
        self._task = loop.create_task(self._run(), name=f"wshub GraphQL operation {self.id[:40]}")
        self._handler.tasks.add(self._task)
        self._task.add_done_callback(self._handle_done)

    def cancel(self) -> None:
        """End it: nothing more is sent for it."""
        self._wanted = False
        if self._task is not None:
            self._task.cancel()

    def _handle_done(self, task: asyncio.Task[None]) -> None:
        self._handler.tasks.discard(task)
        # A task that was cancelled before it began has not run its finally clause.
        self._session.forget(self)

    async def _run(self) -> None:
        try:
            await self._answer()
        except asyncio.CancelledError as error:
            if not self._wanted:
                raise
            # The application has cancelled something that the operation waits for.
            self._fail(error)
        except Exception as error:
            self._fail(error)
        finally:
            self._session.forget(self)

    async def _answer(self) -> None:
        await self._session.pacer.wait()
        with self._session.pacer.charge():
            document, errors = self._prepare()
        operation = get_operation_ast(document, self._payload.operation_name) if document is not None else None
        if document is None or operation is None:
            self._send_errors(errors or [GraphQLError("Unable to identify operation")])
            return
        result = await self._execute(document, operation)
        if not isinstance(result, ExecutionResult):
            await self._send_all(result)
        elif operation.operation is OperationType.SUBSCRIPTION:
            # There is no source: the subscription has not begun.
            self._send_errors(result.errors or [])
            return
        else:
            self._send_result(result)
        self._send({"id": self.id, "type": "complete"})

    def _prepare(self) -> tuple[DocumentNode | None, list[GraphQLError]]:
        """The operation as a valid document, or why it is none."""
        try:
            document = parse(self._payload.query, max_tokens=self._handler.max_tokens)
            errors = validate(self._handler.schema, document, self._handler.rules)
        except GraphQLError as error:
            return None, [error]
        except RecursionError:
            return None, [GraphQLError(TOO_DEEP)]
        return (None, errors) if errors else (document, [])

    async def _execute(self, document: DocumentNode, operation: OperationDefinitionNode) -> Any:
        """The result of an operation, or the results of a subscription as an asynchronous iterator."""
        run = subscribe if operation.operation is OperationType.SUBSCRIPTION else execute
        context = await self._create_context()
        await self._session.pacer.wait()
        with self._session.pacer.charge():
            result: Any = run(
                self._handler.schema,
                document,
                root_value=self._handler.root_value,
                context_value=context,
                variable_values=self._payload.variables,
                operation_name=self._payload.operation_name,
            )
        # A subscription may run for long, and needs none of it any more.
        del self._payload
        return await result if inspect.isawaitable(result) else result

    async def _create_context(self) -> Any:
        session = self._session
        try:
            return await self._handler.create_context(session.connection, session.payload, self._payload.extensions)
        except (GraphQLError, ConnectionClosed):
            raise
        except Exception:
            # Unlike what resolvers raise, this is not meant for clients.
            logger.exception("the context of a GraphQL operation of %r has failed", session.connection)
            raise GraphQLError(INTERNAL_ERROR) from None

    async def _send_all(self, results: AsyncIterator[ExecutionResult]) -> None:
        """Send each result of a subscription, at the pace of its reader."""
        connection = self._session.connection
        async with contextlib.aclosing(results) as iterator:  # type: ignore[type-var]
            async for result in iterator:
                self._send_result(result)
                while connection.buffered > MOST_BUFFERED:
                    await connection.drain()

    def _send_result(self, result: ExecutionResult) -> None:
        self._send({"id": self.id, "type": "next", "payload": result.formatted})

    def _send_errors(self, errors: list[GraphQLError]) -> None:
        self._send({"id": self.id, "type": "error", "payload": [error.formatted for error in errors]})

    def _send(self, message: dict[str, Any]) -> None:
        if not self._wanted:
            # A resolver has gone on in spite of its cancellation. Another operation may have the id by now.
            raise asyncio.CancelledError
        self._session.send(message)

    def _fail(self, error: BaseException) -> None:
        """Tell the client that the operation has failed, and why as far as that is for clients."""
        connection = self._session.connection
        if has_ended(connection, error):
            return
        if isinstance(error, RecursionError):
            error = GraphQLError(TOO_DEEP)
        elif not isinstance(error, GraphQLError):
            logger.error("a GraphQL operation of %r has failed", connection, exc_info=error)
        if not self._wanted:
            return
        if not isinstance(error, GraphQLError):
            message = str(error) if isinstance(error, Exception) else INTERNAL_ERROR
            error = GraphQLError(message, original_error=error if isinstance(error, Exception) else None)
        with contextlib.suppress(ConnectionClosed):
            try:
                self._send_errors([error])
            except (TypeError, ValueError):
                self._send_errors([GraphQLError(INTERNAL_ERROR)])


def has_ended(connection: Connection, error: BaseException) -> bool:
    """Whether the error says no more than that the connection has ended in the meantime."""
    ended = connection.state is not ConnectionState.OPEN
    return ended and isinstance(error, ConnectionClosed | asyncio.CancelledError)
