"""The settings of a GraphQLHandler, as sessions and operations use them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

from graphql import GraphQLSchema
from graphql.validation import ASTValidationRule

from wshub.core.connection import Connection

__all__ = ["Connect", "CreateContext", "Options"]

Payload: TypeAlias = dict[str, Any] | None
"""The ``payload`` or the ``extensions`` of a message of the client."""

CreateContext: TypeAlias = Callable[[Connection, Payload, Payload], Awaitable[Any]]
"""Makes the context value of an operation from the connection, the payload of ``connection_init`` and the extensions of
the operation."""

Connect: TypeAlias = Callable[[Connection, Payload], Awaitable[dict[str, Any] | bool | None]]
"""Returns the payload of ``connection_ack``, or ``False`` to refuse the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The arguments of a GraphQLHandler, checked. ``GraphQLHandler`` describes each."""

    schema: GraphQLSchema
    root_value: Any
    create_context: CreateContext
    connect: Connect
    connection_init_timeout: float
    max_operations: int
    max_operation_bytes: int
    max_tokens: int
    rules: Collection[type[ASTValidationRule]] | None
