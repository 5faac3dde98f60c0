from typing import Any

from wshub.core.event_handler import EventHandler

class HandlerTable:
    handler: EventHandler
    def __init__(self, handler: EventHandler, endpoint: bool = False, receives: bool = False) -> None: ...

def table_of(handler: Any) -> HandlerTable: ...
def table_that_receives() -> HandlerTable: ...
