from typing import Any

class HandlerTable:
    handler: Any
    def __init__(self, handler: Any, endpoint: bool = False, receives: bool = False) -> None: ...
