"""What an application does with the events of its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wshub.errors import MisuseError

if TYPE_CHECKING:
    from wshub.hub.connection import Connection
    from wshub.protocol.message import Message

__all__ = ["EventHandler"]

_EVENTS = ("on_open", "on_message", "on_close", "on_error", "on_ping", "on_pong", "on_drain")


class EventHandler:
    """The handlers of a kind of connection, given as keyword functions or as methods of a subclass.

    Each is a function or a coroutine function. The events of one connection are handled one after another: while a
    coroutine is suspended, nothing more is read from its connection. Only an ``on_open`` that receives does not keep
    ``on_ping``, ``on_pong`` and ``on_drain`` waiting. One handler serves any number of connections.

    A coroutine handler runs in an asyncio task of its own that starts eagerly, as ``asyncio.eager_task_factory`` makes
    them: its first step runs at once, the rest in later iterations of the loop. ``asyncio.current_task()``,
    cancellation, ``asyncio.timeout()``, task groups and shared futures work as in any task. If the loop has a task
    factory, that makes the tasks. All handlers of a connection run in one ``contextvars.Context``.

    - ``on_open(connection)``: the handshake is complete.
    - ``on_message(connection, message)``: a text or binary message. Without it, messages are there for
      ``connection.receive()`` and ``async for``, in ``on_open`` or in a task of the application's own, or are discarded
      if nobody asks.
    - ``on_close(connection, code, reason)``: exactly once for each ``on_open``, when the connection is gone.
    - ``on_error(connection, error)``: another handler has raised ``error``; the connection is closed with 1011.
    - ``on_ping(connection, payload)``, ``on_pong(connection, payload)``: a ping, which is answered already; a pong.
    - ``on_drain(connection)``: all that was queued has left, after some of it had to wait for the peer to read. Where
      ever more is sent than the peer reads, and the rest is dropped, that is never; ``drain()`` returns all the same.

    A subclass may set ``close_codes``, for a subprotocol whose clients expect codes of their own: the hub closes with
    ``close_codes[code]`` where it would close with ``code``, such as ``{1011: 4500}`` for a handler that raises. It
    concerns rates, sizes, broken frames, slow consumers and handlers that raise. ``on_close`` sees the code that was
    sent.

    Raises:
        MisuseError: a keyword is none of these, or its value cannot be called.
    """

    on_open: Callable[[Connection], Awaitable[Any] | Any] | None = None
    on_message: Callable[[Connection, Message], Awaitable[Any] | Any] | None = None
    on_close: Callable[[Connection, int, str], Awaitable[Any] | Any] | None = None
    on_error: Callable[[Connection, BaseException], Awaitable[Any] | Any] | None = None
    on_ping: Callable[[Connection, bytes], Awaitable[Any] | Any] | None = None
    on_pong: Callable[[Connection, bytes], Awaitable[Any] | Any] | None = None
    on_drain: Callable[[Connection], Awaitable[Any] | Any] | None = None
    close_codes: Mapping[int, int] = MappingProxyType({})

    def __init__(self, **handlers: Callable[..., Any] | None) -> None:
        for name, function in handlers.items():
            if name not in _EVENTS:
                raise MisuseError(f"there is no event {name!r}: the events are {', '.join(_EVENTS)}")
            if function is not None and not callable(function):
                raise MisuseError(f"{name} must be a function or a coroutine function, not {function!r}")
            if function is not None:
                setattr(self, name, function)
