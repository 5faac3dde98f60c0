"""One operation of a client: it is parsed, validated, executed and answered."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

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

from wshub.errors import ConnectionClosed
from wshub.graphql.client import Client
from wshub.graphql.messages import SubscribePayload

__all__ = ["INTERNAL_ERROR", "Operation"]

logger = logging.getLogger("wshub.graphql")

MAX_BUFFERED = 64 * 1024
"""Bytes that may wait for the client. A subscription with more pauses until they are sent."""

INTERNAL_ERROR = "Internal server error"

TOO_DEEP = "The operation is nested too deeply."


class Operation:
    """A query, a mutation or a subscription, from its ``subscribe`` message to its end.

    If it fails, the client gets an ``error`` for this operation and the connection stays open.

    Args:
        client: the client that asks.
        operation_id: the id that the client chose.
        payload: of the ``subscribe`` message.
        size: bytes of the ``subscribe`` message.
        on_end: called with the operation when it has ended. It may be called twice.
    """

    def __init__(
        self,
        client: Client,
        operation_id: str,
        payload: SubscribePayload,
        size: int,
        on_end: Callable[[Operation], None],
    ) -> None:
        self.id = operation_id
        self.size = size
        self._client = client
        self._options = client.options
        self._payload = payload
        self._on_end = on_end
        self._wanted = True
        self._task: asyncio.Task[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the operation in a task of its own."""
        self._task = loop.create_task(self._run(), name=f"wshub GraphQL operation {self.id[:40]}")
        self._client.tasks.add(self._task)
        self._task.add_done_callback(self._handle_done)

    def cancel(self) -> None:
        """Cancel the operation. Nothing is sent for it from here on."""
        self._wanted = False
        if self._task is not None:
            self._task.cancel()

    def _handle_done(self, task: asyncio.Task[None]) -> None:
        self._client.tasks.discard(task)
        # A task that was cancelled before it began has not run its finally clause.
        self._on_end(self)

    async def _run(self) -> None:
        try:
            await self._answer()
        except asyncio.CancelledError as error:
            if not self._wanted:
                raise
            # The application has cancelled an awaitable of the operation.
            self._fail(error)
        except Exception as error:
            self._fail(error)
        finally:
            self._on_end(self)

    async def _answer(self) -> None:
        await self._client.pacer.wait()
        with self._client.pacer.charge():
            document, errors = self._prepare()
        operation = get_operation_ast(document, self._payload.operation_name) if document is not None else None
        if document is None or operation is None:
            self._send_errors(errors or [GraphQLError("Unable to identify operation")])
            return
        result = await self._execute(document, operation)
        if not isinstance(result, ExecutionResult):
            await self._send_all(result)
        elif operation.operation is OperationType.SUBSCRIPTION:
            # The subscription has no source: it has not begun.
            self._send_errors(result.errors or [])
            return
        else:
            self._send_result(result)
        self._send("complete")

    def _prepare(self) -> tuple[DocumentNode | None, list[GraphQLError]]:
        """Return the operation as a valid document, or the errors that it has."""
        try:
            document = parse(self._payload.query, max_tokens=self._options.max_tokens)
            errors = validate(self._options.schema, document, self._options.rules)
        except GraphQLError as error:
            return None, [error]
        except RecursionError:
            return None, [GraphQLError(TOO_DEEP)]
        return (None, errors) if errors else (document, [])

    async def _execute(self, document: DocumentNode, operation: OperationDefinitionNode) -> Any:
        """Return the result of an operation, or an asynchronous iterator of the results of a subscription."""
        run = subscribe if operation.operation is OperationType.SUBSCRIPTION else execute
        context = await self._create_context()
        await self._client.pacer.wait()
        with self._client.pacer.charge():
            result: Any = run(
                self._options.schema,
                document,
                root_value=self._options.root_value,
                context_value=context,
                variable_values=self._payload.variables,
                operation_name=self._payload.operation_name,
            )
        # A subscription may run for long. It does not need its payload again.
        del self._payload
        return await result if inspect.isawaitable(result) else result

    async def _create_context(self) -> Any:
        client = self._client
        try:
            return await self._options.create_context(client.connection, client.payload, self._payload.extensions)
        except (GraphQLError, ConnectionClosed):
            raise
        except Exception:
            # Clients see the exceptions of resolvers, and not those of the context.
            logger.exception("the context of a GraphQL operation of %r has failed", client.connection)
            raise GraphQLError(INTERNAL_ERROR) from None

    async def _send_all(self, results: AsyncIterator[ExecutionResult]) -> None:
        """Send each result of a subscription, as fast as the client reads."""
        connection = self._client.connection
        async with contextlib.aclosing(results) as iterator:  # type: ignore[type-var]
            async for result in iterator:
                self._send_result(result)
                while connection.buffered > MAX_BUFFERED:
                    await connection.drain()

    def _send_result(self, result: ExecutionResult) -> None:
        self._send("next", result.formatted)

    def _send_errors(self, errors: list[GraphQLError]) -> None:
        self._send("error", [error.formatted for error in errors])

    def _send(self, kind: str, payload: Any = None) -> None:
        if not self._wanted:
            # A resolver has ignored its cancellation. Another operation may have the id by now.
            raise asyncio.CancelledError
        self._client.send(kind, payload, operation_id=self.id)

    def _fail(self, error: BaseException) -> None:
        """Send the error of a failed operation to the client, if the client may see it."""
        connection = self._client.connection
        if self._client.has_ended(error):
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
