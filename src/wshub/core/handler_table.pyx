# cython: language_level=3
"""The handlers of a connection, looked up once for all connections that share them."""

from collections.abc import Mapping
from inspect import iscoroutinefunction

from wshub.core.event_handler import EventHandler
from wshub.core.handler_checks import check_instance
from wshub.errors import MisuseError
from wshub.protocol.close_code import is_valid_on_wire


cdef dict check_close_codes(object codes):
    """Return a copy of an EventHandler's close_codes, or None if it is empty. Raise MisuseError if it is invalid."""
    if not isinstance(codes, Mapping):
        raise MisuseError(f"close_codes must be a mapping of close codes, not {codes!r}")
    for code in (*codes, *codes.values()):
        if isinstance(code, bool) or not isinstance(code, int) or not is_valid_on_wire(code):
            raise MisuseError(f"close_codes: {code!r} cannot be sent: use 1000-1003, 1007-1014 or one of 3000-4999")
    return {int(code): int(other) for code, other in codes.items()} or None


cdef class HandlerTable:
    def __init__(self, handler, endpoint=False, receives=False):
        self.receives = endpoint or receives
        self.handler = handler
        self.on_open = handler.on_open
        self.on_message = handler.on_message
        self.on_close = handler.on_close
        self.on_error = handler.on_error
        self.on_ping = handler.on_ping
        self.on_pong = handler.on_pong
        self.on_drain = handler.on_drain
        self.endpoint = endpoint
        # A mock of a handler has every attribute, so look for a real one.
        has_codes = "close_codes" in vars(handler) or hasattr(type(handler), "close_codes")
        self.close_codes = check_close_codes(handler.close_codes) if has_codes else None


def table_of(handler):
    """Return the HandlerTable of an EventHandler, or of a coroutine function whose end closes the connection."""
    if isinstance(handler, EventHandler):
        check_instance(handler)
        return HandlerTable(handler)
    if iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None)):
        return HandlerTable(EventHandler(on_open=handler), endpoint=True)
    if isinstance(handler, type) and issubclass(handler, EventHandler):
        raise MisuseError(f"a handler is an instance of an EventHandler: give {handler.__name__}(), not the class")
    raise MisuseError(
        "a handler is an EventHandler, or a coroutine function that takes the connection and has no yield, not "
        f"{handler!r}"
    )


def table_that_receives():
    """Return the HandlerTable of a connection whose application only calls ``receive()``."""
    return HandlerTable(EventHandler(), receives=True)
