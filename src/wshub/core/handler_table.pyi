"""The handlers of a connection, looked up once for all connections that share them."""

from typing import Any

class HandlerTable:
    """The handlers of one EventHandler, looked up once."""

    handler: Any
    def __init__(self, handler: Any, endpoint: bool = False, receives: bool = False) -> None: ...
