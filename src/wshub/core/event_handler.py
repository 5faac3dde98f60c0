"""What an application does with the events of its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wshub.core.handler_checks import EVENTS, check_class, check_event_name, check_function

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.protocol.message import Message

__all__ = ["EventHandler"]


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

    A generator function is no handler, nor is a function that takes other arguments. In a subclass, names that begin
    with ``on_`` are for events: a method with another such name is taken for a misspelt one.

    Raises:
        MisuseError: a keyword is none of these, or its value is no such function. For a method of a subclass the class
            statement raises it.
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
            check_event_name(name)
            if function is not None:
                check_function(name, function, EVENTS[name])
                setattr(self, name, function)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_class(cls, EventHandler)
