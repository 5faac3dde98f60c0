"""The handler that serves the operations of a schema to the clients of a hub."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

try:
    from graphql import GraphQLSchema
    from graphql.validation import ASTValidationRule
except ImportError as error:
    raise ImportError("wshub.graphql needs graphql-core: pip install wshub[graphql]") from error

from wshub.core.connection import Connection
from wshub.core.event_handler import EventHandler
from wshub.core.handler_checks import check_function
from wshub.errors import ConfigurationError
from wshub.graphql.messages import GraphQLCloseCode
from wshub.graphql.options import Options
from wshub.graphql.pacer import Pacer
from wshub.graphql.session import Session
from wshub.protocol.message import Message
from wshub.protocol.validation import check_integer

__all__ = ["GraphQLHandler"]


class GraphQLHandler(EventHandler):
    """Serves the queries, mutations and subscriptions of a schema::

        handler = GraphQLHandler(schema)
        app.mount("/graphql", hub.asgi(handler, subprotocols=[SUBPROTOCOL]))

    A subscription pauses while more than 64 KiB wait to be sent to its client. If an operation fails, its client gets
    an ``error`` and the other operations go on. Where a hub would close with 1008, 1009 or 1011 (rates, sizes and
    exceptions), it closes with 4499. The npm package ``graphql-ws`` would not reconnect after the other codes.

    Args:
        schema: a schema of graphql-core.
        context: a function or coroutine function that returns the context value of an operation. It is called with the
            connection and the payload of its ``connection_init``. If it has a parameter ``extensions``, that is the
            ``extensions`` of the client's operation: a dictionary or ``None``. By default the context value is a
            dictionary with ``connection``, ``payload`` and ``extensions``.
        root_value: the root value of every operation.
        on_connect: a function or coroutine function, called with the connection and the payload of its
            ``connection_init``. If it returns a dictionary, that is the payload of ``connection_ack``. If it returns
            ``False``, the connection is closed with 4403. If it raises, the connection is closed with 4499.
        connection_init_timeout: seconds that a client has to send its ``connection_init``. Then the connection is
            closed with 4408. The time that ``on_connect`` takes does not count.
        max_operations: maximum number of running operations on one connection. One more is answered with an error. A
            cancelled operation counts until its source has ended.
        max_operation_bytes: maximum bytes of the running operations of one connection, counted from their ``subscribe``
            messages. An operation that would exceed it is answered with an error. It bounds the memory for the
            variables of a client.
        max_tokens: maximum number of tokens in the document of an operation. A document with more is answered with an
            error. The time to validate a document can grow with the square of its tokens, and blocks the event loop.
        rules: the validation rules. The default is the rules of graphql-core.

    Raises:
        ConfigurationError: a value is out of range.
        MisuseError: ``context`` or ``on_connect`` is not a function with these parameters.
    """

    close_codes: Mapping[int, int] = MappingProxyType(
        dict.fromkeys((1008, 1009, 1011), int(GraphQLCloseCode.TERMINATED))
    )

    def __init__(
        self,
        schema: GraphQLSchema,
        *,
        context: Callable[..., Any] | None = None,
        root_value: Any = None,
        on_connect: Callable[[Connection, dict[str, Any] | None], Any] | None = None,
        connection_init_timeout: float = 3.0,
        max_operations: int = 100,
        max_operation_bytes: int = 256 * 1024,
        max_tokens: int = 1000,
        rules: Collection[type[ASTValidationRule]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(schema, GraphQLSchema):
            raise ConfigurationError(f"schema must be a GraphQLSchema, not {schema!r}")
        if isinstance(connection_init_timeout, bool | str) or not connection_init_timeout > 0:
            raise ConfigurationError(
                f"connection_init_timeout must be a number of seconds over 0, not {connection_init_timeout!r}"
            )
        self._context_has_extensions = context is not None and _has_parameter(context, "extensions")
        if context is not None:
            extensions = ("extensions",) if self._context_has_extensions else ()
            check_function("context", context, ("connection", "payload", *extensions))
        if on_connect is not None:
            check_function("on_connect", on_connect, ("connection", "payload"))
        self.options = Options(
            schema=schema,
            root_value=root_value,
            create_context=self.create_context,
            connect=self.connect,
            connection_init_timeout=connection_init_timeout,
            max_operations=check_integer("max_operations", max_operations, 1, 2**31),
            max_operation_bytes=check_integer("max_operation_bytes", max_operation_bytes, 1, 2**31),
            max_tokens=check_integer("max_tokens", max_tokens, 1, 2**31),
            rules=rules,
        )
        self.tasks: set[asyncio.Task[None]] = set()
        """The running operations of all clients."""
        self._context = context
        self._on_connect = on_connect
        self._sessions: dict[Connection, Session] = {}
        self._pacer: Pacer | None = None

    async def create_context(
        self, connection: Connection, payload: dict[str, Any] | None, extensions: dict[str, Any] | None
    ) -> Any:
        """Return the context value of an operation that has these extensions."""
        if self._context is None:
            return {"connection": connection, "payload": payload, "extensions": extensions}
        if self._context_has_extensions:
            return await _result_of(self._context(connection, payload, extensions=extensions))
        return await _result_of(self._context(connection, payload))

    async def connect(self, connection: Connection, payload: dict[str, Any] | None) -> dict[str, Any] | bool | None:
        """Return the payload of ``connection_ack``, or ``False`` to refuse the client."""
        if self._on_connect is None:
            return None
        answer = await _result_of(self._on_connect(connection, payload))
        return answer if answer is False or isinstance(answer, dict) else None

    def on_open(self, connection: Connection) -> None:
        """Start the session of a client."""
        loop = asyncio.get_running_loop()
        if self._pacer is None or self._pacer.loop is not loop:
            self._pacer = Pacer(loop)
        self._sessions[connection] = Session(self.options, connection, self._pacer, self.tasks)

    def on_message(self, connection: Connection, message: Message) -> None:
        """Handle a message of a client."""
        self._sessions[connection].receive(message)

    def on_close(self, connection: Connection, code: int, reason: str) -> None:
        """End the session of a client."""
        self._sessions.pop(connection).end()


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Some built-in functions have no signature.
        return False


async def _result_of(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
