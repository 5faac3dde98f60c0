"""How the end of an application ends its connection, and what the application's exceptions mean for that."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import MutableMapping
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from wshub.core.connection import Connection, ConnectionState
from wshub.errors import (
    ConnectionClosed,
    HandshakeError,
    InvalidMessageError,
    MisuseError,
    UnexpectedMessageError,
)
from wshub.links.asgi_link import AsgiLink
from wshub.protocol.close_code import CloseCode, encode_close_payload

__all__ = [
    "close_with_stack",
    "close_with_task",
    "code_of",
    "end_quietly_in_starlette",
    "has_begun",
    "has_outcome",
    "is_end_of",
    "remember_outcome",
    "runs_application",
]

# By their names, since none of these packages need be installed.
_DISCONNECTS = frozenset(
    (
        "starlette.websockets.WebSocketDisconnect",
        "litestar.exceptions.websocket_exceptions.WebSocketDisconnect",
        "uvicorn.protocols.utils.ClientDisconnected",
    )
)
_USES_AFTER_DISCONNECT = frozenset(("starlette.websockets.WebSocketDisconnected",))
_CLOSES = frozenset(
    ("starlette.exceptions.WebSocketException", "litestar.exceptions.websocket_exceptions.WebSocketException")
)

_HTTP_ERRORS = frozenset(("starlette.exceptions.HTTPException",))

_ASGI_PARAMETERS = frozenset(("scope", "receive", "send"))

# The states of a WebSocket that has received its connect message, or has been answered.
_BEGUN_IN_STARLETTE = ("CONNECTED", "DISCONNECTED", "RESPONSE")
_BEGUN_IN_LITESTAR = ("connect", "receive", "disconnect")

_OUTCOME = "wshub.outcome"
"""The key, in the scope, of what has become of its request."""


def is_end_of(connection: Connection, error: BaseException) -> bool:
    """Return whether the application has failed only because its connection has ended."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_end_of(connection, each) for each in error.exceptions)
    if connection.state not in (ConnectionState.CLOSING, ConnectionState.CLOSED):
        return False
    if isinstance(error, ConnectionClosed) or _is_one_of(error, _DISCONNECTS):
        return True
    return connection.close_code == CloseCode.ABNORMAL and _is_one_of(error, _USES_AFTER_DISCONNECT)


def code_of(error: BaseException) -> tuple[int, str] | None:
    """Return the close code and the reason that an exception asks for, if it is one of those that close a WebSocket."""
    if isinstance(error, UnexpectedMessageError):
        return error.code, error.reason
    if not _is_one_of(error, _CLOSES):
        return None
    code: Any = getattr(error, "code", None)
    reason = getattr(error, "reason", None) or getattr(error, "detail", None) or ""
    try:
        encode_close_payload(code, reason)
    except (InvalidMessageError, TypeError):
        return None
    return int(code), reason


def runs_application() -> bool:
    """Return whether the current task is the one in which the server runs the application.

    Then an ASGI application is among the callers. The stack of a task that the endpoint has started has none.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if _ASGI_PARAMETERS.issubset(code.co_varnames[: code.co_argcount]):
            return True
        frame = frame.f_back
    return False


def close_with_task(connection: Connection, task: asyncio.Task[Any]) -> None:
    """Close the connection when the task ends: with 1000, or with 1011 if it fails."""

    def close(task: asyncio.Task[Any]) -> None:
        failed = task.cancelled() or task.exception() is not None
        connection.close(CloseCode.INTERNAL_ERROR if failed else CloseCode.NORMAL)

    task.add_done_callback(close)


def close_with_stack(connection: Connection, link: AsgiLink, stack: contextlib.AsyncExitStack) -> None:
    """Close the connection when the block of the stack ends, and wait there until the server has the close."""
    stack.push_async_exit(partial(_exit, connection, link))


async def _exit(
    connection: Connection,
    link: AsgiLink,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> bool:
    """Close the connection, unless the framework closes it. Returns whether the error is no more than its end."""
    if isinstance(error, UnexpectedMessageError):
        connection.close(error.code, error.reason)
        await connection.wait_closed()
        return True
    closing = code_of(error) if error is not None else None
    if closing is not None:
        with contextlib.suppress(ConnectionClosed):
            await connection.drain()
            link.leave_close(*closing)
        return False
    expected = error is None or is_end_of(connection, error)
    connection.close(CloseCode.NORMAL if expected else CloseCode.INTERNAL_ERROR)
    await connection.wait_closed()
    if error is not None and _is_one_of(error, _HTTP_ERRORS):
        # The framework would respond, which some servers refuse with an error and others ignore.
        raise MisuseError("the WebSocket is accepted: raise WebSocketException, not HTTPException") from error
    return error is not None and expected


def end_quietly_in_starlette(scope: MutableMapping[str, Any]) -> None:
    """Have Starlette and FastAPI end an endpoint in the ordinary way where nothing is wrong with it.

    That is if it fails because its connection has ended, because the client has sent something unexpected, or because
    the hub has refused the handshake. Another server than wshub's logs every exception that reaches it. A handler that
    the application has registered stays.
    """
    handlers = scope.get("starlette.exception_handlers")
    if handlers:
        handlers[0].setdefault(ConnectionClosed, _end_quietly)
        handlers[0].setdefault(UnexpectedMessageError, _end_quietly)
        handlers[0].setdefault(HandshakeError, _end_quietly)


def remember_outcome(scope: MutableMapping[str, Any], outcome: Connection | HandshakeError) -> None:
    """Note the connection that the request of a scope has become, or the error with which it was refused."""
    scope[_OUTCOME] = outcome


def has_outcome(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a hub has accepted or refused the request of a scope."""
    return _OUTCOME in scope


def has_begun(websocket: Any) -> bool:
    """Return whether a framework's WebSocket says that its connect message is received, or that it is answered."""
    for name in ("client_state", "application_state"):
        if getattr(getattr(websocket, name, None), "name", None) in _BEGUN_IN_STARLETTE:
            return True
    return getattr(websocket, "connection_state", None) in _BEGUN_IN_LITESTAR


async def _end_quietly(request: Any, error: Exception) -> None:
    outcome = request.scope.get(_OUTCOME)
    if isinstance(outcome, Connection) and isinstance(error, UnexpectedMessageError):
        outcome.close(error.code, error.reason)
        await outcome.wait_closed()
        return
    if outcome is not error and not (isinstance(outcome, Connection) and is_end_of(outcome, error)):
        raise error


def _is_one_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)
