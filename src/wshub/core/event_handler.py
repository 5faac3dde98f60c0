"""The handlers of a connection's events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Never, TypedDict

from wshub.core.handler_checks import EVENTS, check_class, check_event_name, check_function, check_instance
from wshub.core.handler_table import HandlerTable
from wshub.errors import MisuseError

if TYPE_CHECKING:
    from wshub.core.connection import Connection
    from wshub.protocol.message import Message

__all__ = ["EventHandler", "Handlers", "handler_table_of", "receiving_handler_table"]


class Handlers(TypedDict, total=False):
    """The keyword arguments of an EventHandler."""

    on_open: Callable[[Connection], Awaitable[Any] | Any] | None
    on_message: Callable[[Connection, Message], Awaitable[Any] | Any] | None
    on_close: Callable[[Connection, int, str], Awaitable[Any] | Any] | None
    on_error: Callable[[Connection, BaseException], Awaitable[Any] | Any] | None
    on_ping: Callable[[Connection, bytes], Awaitable[Any] | Any] | None
    on_pong: Callable[[Connection, bytes], Awaitable[Any] | Any] | None
    on_drain: Callable[[Connection], Awaitable[Any] | Any] | None


class EventHandler:
    """The handlers of a kind of connection, given as keyword arguments or as methods of a subclass.

    A handler is a function or a coroutine function. One EventHandler serves any number of connections.

    The events of one connection are handled one after another. While a coroutine handler is suspended, the hub reads
    nothing from its connection. An ``on_open`` that has called ``receive()`` is the exception: ``on_ping``, ``on_pong``
    and ``on_drain`` do not wait for its end.

    A coroutine handler runs in an asyncio task of its own. The task starts eagerly, as with
    ``asyncio.eager_task_factory``: its first step runs at once, the rest in later loop iterations.
    ``asyncio.current_task()``, cancellation, ``asyncio.timeout()``, task groups and shared futures work as in any task.
    If the loop has a task factory, it makes the tasks. All handlers of a connection run in one ``contextvars.Context``.

    - ``on_open(connection)``: the handshake is complete.
    - ``on_message(connection, message)``: a text or binary message has arrived. Without this handler, read messages
      with ``connection.receive()`` or ``async for``, in ``on_open`` or in a task of your own. If nothing reads them,
      they are discarded.
    - ``on_close(connection, code, reason)``: the connection is gone. It is called exactly once for each ``on_open``.
    - ``on_error(connection, error)``: another handler has raised ``error``. The connection is closed with 1011.
    - ``on_ping(connection, payload)``: a ping has arrived. The hub has answered it already.
    - ``on_pong(connection, payload)``: a pong has arrived.
    - ``on_drain(connection)``: the send queue is empty again after the peer had fallen behind. If you keep sending
      faster than the peer reads and the policy drops the excess, the queue never empties. Then ``on_drain`` is not
      called, and ``drain()`` still returns.

    A subclass may set ``close_codes``, for a subprotocol with close codes of its own. Where the hub would close with
    ``code``, it closes with ``close_codes[code]``: ``{1011: 4500}`` is for handlers that raise. It applies to rates,
    sizes, broken frames, slow consumers and handlers that raise. ``on_close`` gets the code that was sent.

    A generator function is refused, and so is a function with other parameters. In a subclass, names that begin with
    ``on_`` are for events: another such method counts as a misspelt event.

    Raises:
        MisuseError: a keyword is not an event, or its value is not such a function. For a method of a subclass, the
            class statement raises it.
    """

    if TYPE_CHECKING:
        # Type checkers need methods here. They report an error if a subclass overrides a variable with a method.
        def on_open(self, connection: Connection, /) -> Any: ...
        def on_message(self, connection: Connection, message: Message, /) -> Any: ...
        def on_close(self, connection: Connection, code: int, reason: str, /) -> Any: ...
        def on_error(self, connection: Connection, error: BaseException, /) -> Any: ...
        def on_ping(self, connection: Connection, payload: bytes, /) -> Any: ...
        def on_pong(self, connection: Connection, payload: bytes, /) -> Any: ...
        def on_drain(self, connection: Connection, /) -> Any: ...
    else:
        on_open = on_message = on_close = on_error = on_ping = on_pong = on_drain = None

    close_codes: Mapping[int, int] = MappingProxyType({})
    """The codes that replace those of the hub."""

    def __init__(
        self,
        *,
        on_open: Callable[[Connection], Awaitable[Any] | Any] | None = None,
        on_message: Callable[[Connection, Message], Awaitable[Any] | Any] | None = None,
        on_close: Callable[[Connection, int, str], Awaitable[Any] | Any] | None = None,
        on_error: Callable[[Connection, BaseException], Awaitable[Any] | Any] | None = None,
        on_ping: Callable[[Connection, bytes], Awaitable[Any] | Any] | None = None,
        on_pong: Callable[[Connection, bytes], Awaitable[Any] | Any] | None = None,
        on_drain: Callable[[Connection], Awaitable[Any] | Any] | None = None,
        **unknown: Never,
    ) -> None:
        for name in unknown:
            check_event_name(name)
        functions = (on_open, on_message, on_close, on_error, on_ping, on_pong, on_drain)
        for name, function in zip(EVENTS, functions, strict=True):
            if function is not None:
                check_function(name, function, EVENTS[name])
                setattr(self, name, function)

    def __repr__(self) -> str:
        """Show the events that have a handler, with the names of the functions."""
        functions = {name: getattr(self, name) for name in EVENTS}
        shown = [
            f"{name}={getattr(function, '__qualname__', None) or type(function).__qualname__}"
            for name, function in functions.items()
            if function is not None
        ]
        return f"<{' '.join([type(self).__qualname__, *shown])}>"

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_class(cls, EventHandler)


def handler_table_of(handler: Any) -> HandlerTable:
    """Return the HandlerTable of an EventHandler, or of a coroutine function whose end closes the connection."""
    if isinstance(handler, EventHandler):
        check_instance(handler)
        return HandlerTable(handler)
    if iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        return HandlerTable(EventHandler(on_open=handler), endpoint=True)
    if isinstance(handler, type) and issubclass(handler, EventHandler):
        raise MisuseError(f"a handler is an instance of an EventHandler: give {handler.__name__}(), not the class")
    raise MisuseError(
        "a handler is an EventHandler, or a coroutine function that takes the connection and has no yield, not "
        f"{handler!r}"
    )


def receiving_handler_table() -> HandlerTable:
    """Return the HandlerTable of a connection whose application only calls ``receive()``."""
    return HandlerTable(EventHandler(), receives=True)
