"""The handlers of an application for the events of its connections."""

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
    """The handlers of one kind of connection, given as keyword functions or as methods of a subclass.

    Each handler is a function or a coroutine function. One EventHandler serves any number of connections.

    The events of one connection are handled one after another. While a coroutine handler is suspended, the hub reads
    nothing more from that connection. An ``on_open`` that calls ``receive`` is the exception: ``on_ping``, ``on_pong``
    and ``on_drain`` are called meanwhile.

    A coroutine handler runs in an asyncio task of its own. The task starts eagerly, as with
    ``asyncio.eager_task_factory``: the first step runs at once, the rest in later iterations of the loop. If the loop
    has a task factory, that makes the tasks. ``asyncio.current_task()``, cancellation, ``asyncio.timeout()``, task
    groups and shared futures work as in any task. All handlers of a connection run in one ``contextvars.Context``.

    - ``on_open(connection)``: the handshake is complete.
    - ``on_message(connection, message)``: a text or binary message arrived. Without this handler, messages go to
      ``connection.receive()`` and ``async for``, which ``on_open`` or a task of yours may use. If nothing receives,
      they are discarded.
    - ``on_close(connection, code, reason)``: the connection is closed. Called exactly once for each ``on_open``.
    - ``on_error(connection, error)``: another handler raised ``error``. The hub closes the connection with 1011.
    - ``on_ping(connection, payload)``: a ping arrived. The hub has answered it already.
    - ``on_pong(connection, payload)``: a pong arrived.
    - ``on_drain(connection)``: the send queue is empty again after the peer had fallen behind. If you keep sending
      faster than the peer reads and the policy drops the excess, the queue never empties and ``on_drain`` is not
      called; ``drain()`` still returns.

    A subclass may set ``close_codes`` for a subprotocol whose clients expect codes of their own. It is a mapping such
    as ``{1011: 4500}``. Where the hub would close with a key of it, it closes with the value instead. This concerns
    rates, sizes, broken frames, slow consumers and handlers that raise. ``on_close`` gets the code that was sent.

    A generator function is not a handler. A function with other parameters is not one either. In a subclass, names
    that begin with ``on_`` are reserved for events: a method with another such name counts as a misspelling.

    Raises:
        MisuseError: a keyword is not one of these events, or its value cannot be their handler. For a method of a
            subclass, the class statement raises it.
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
