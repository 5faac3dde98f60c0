from wshub.core.event_handler import EventHandler

class HandlerTable:
    handler: EventHandler
    def __init__(self, handler: EventHandler, endpoint: bool = False, receives: bool = False) -> None: ...
