# cython: language_level=3
"""The handlers of a connection, looked up once for all connections that share them."""

from collections.abc import Mapping

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
